"""What the engine makes of a checkpoint against what diffusers makes of it, with the same seeds, stage by stage.

    python -m bench.verify MODEL… [--sizes 512x512,640x384] [--dtype auto|float32|bfloat16] [--modes tp2,sp2,cfg]
        [--report FILE]

MODEL is a folder in the diffusers layout, a Hugging Face name, or demo, which is both of the demo's checkpoints. Give
the folders of Turbo and Raw to verify both. Needs diffusers and transformers (pip install -e '.[test]').

First the ids of many prompts. Then diffusers makes images and the engine makes the same ones, on one GPU and on as many
as there are, in every mode that they allow; and of one image every stage is compared by itself, from the text encoder's
layers to the pixels, each being given what diffusers' stage was given. The report says in its first lines whether all
holds, or which is the first stage that does not, and how far it is off; it can be pasted into an issue. What may
differ, and why, is told in bench/verify/judging.py.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

from bench.measure.arguments import duration, end_with, json_file, modes, positive
from bench.measure.output import publish
from bench.measure.timing import time_calls
from bench.verify.judging import Check, failed
from bench.verify.models import Model, Request, default_sizes, describe_loading, find_models, operations, requests_for
from bench.verify.oracle.loading import CannotJudge
from bench.verify.paths import check_paths
from bench.verify.report import Verified, json_result, write_report
from engine.config.degrees import Degrees
from engine.device.devices import free_bytes
from engine.errors import ArgumentError, CheckpointError

_BAD_ARGUMENT = 2
_NEEDED = ("diffusers", "transformers")
_INSTALL = "pip install -e '.[test]'"
_MULTIPLE = 16
_ROOM = 1.1  # of the weights: what a few images take besides
_GROUP_SECONDS = 3600.0
_PRODUCT = 1024  # rows and columns of the matrices that are timed; on a GPU 8 times as many
_SLOWER, _FORWARD_S = 10, 0.1  # than a matrix product, on a CPU; of a forward of whatever size
_LARGEST_SIDE = 4096
_ALL_MODES = "tp2,sp2,cfg,tp4,sp4,tp2xsp2,tp2xcfg,sp2xcfg"
_DTYPES = ("float32", "bfloat16")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.verify", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a folder in the diffusers layout, a name, or demo")
    parser.add_argument("--sizes", type=_sizes, help="of the images, as 512x512,640x384; one at least not square")
    parser.add_argument("--steps", type=positive, default=8, help="of each image, also of Raw's (8)")
    parser.add_argument("--images", type=positive, help="in each dtype (one a size in float32, 16 in bfloat16)")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", *_DTYPES),
        help="auto: float32, and on a GPU bfloat16 too, as far as the weights fit",
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument(
        "--modes", type=modes, help="of several ranks, as tp2,sp2,cfg (all that there are GPUs for; none on a CPU)"
    )
    parser.add_argument("--seconds", type=duration, default=_GROUP_SECONDS, help="of a mode's ranks at most (3600)")
    parser.add_argument("--report", type=json_file, metavar="FILE", help="write the report there too")
    parser.add_argument("--json", type=json_file, metavar="FILE", help="append a JSON line for each check to it")
    options = parser.parse_args(arguments)
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        return _refuse(f"{' and '.join(missing)} needed, and not installed: {_INSTALL}")
    try:
        check_paths(options.models)  # before what takes long to import
    except (ArgumentError, CheckpointError) as error:
        return _refuse(str(error))
    try:
        import_module("bench.verify.oracle.asking")
    except ImportError as error:  # of versions that do not know the model
        return _refuse(f"diffusers and transformers are there, but cannot be used: {error}; {_INSTALL}")
    if options.device == "cuda" and not torch.cuda.is_available():
        return _refuse("device cuda is not available: torch finds no CUDA device")
    try:
        models = find_models(options.models)
        chosen = [(model, _modes(model, options)) for model in models]
    except (ArgumentError, CheckpointError) as error:
        return _refuse(str(error))
    _quieten()
    torch.backends.cudnn.allow_tf32 = False  # or diffusers' float32 would not be
    command = _shown(sys.argv[1:] if arguments is None else arguments)
    began, problem = datetime.now(UTC), None
    results: list[Verified] = []
    for model, degrees in chosen:
        try:
            results.append(_verify(model, degrees, options))
        except Exception:
            results.append(Verified(model, [failed("verifying", "", "", traceback.format_exc())]))
        report = write_report(results, command, began)
        if options.report is not None:  # of the models so far: what was found outlives the process
            problem = _write(options.report, report)
    print(report)
    if problem is not None:
        print(f"error: the report cannot be written to {options.report}: {problem}", file=sys.stderr)
    return 0 if problem is None and all(result.holds for result in results) else 1


def _write(file: Path, text: str) -> str | None:
    """Why it cannot be written; None if it is."""
    try:
        file.write_text(text)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _shown(arguments: Sequence[str]) -> str:
    """The command line, with the last part of each path alone."""
    words = []
    for word in arguments:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        is_path = value.startswith(("/", "~", ".")) or value.count("/") > 1  # one with a slash may be a repository
        words.append(option + equals + (Path(value).name if is_path else value))
    return shlex.join(["python", "-m", "bench.verify", *words])


def _verify(model: Model, degrees: Sequence[Degrees], options: argparse.Namespace) -> Verified:
    from bench.verify.checks import How, verify_dtype
    from bench.verify.oracle.pipeline import release
    from bench.verify.tokens import compare_tokens, tokens_failed

    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {text}", file=sys.stderr, flush=True)

    on_gpu = options.device != "cpu" and torch.cuda.is_available()
    device, host = torch.device("cuda", 0) if on_gpu else torch.device("cpu"), torch.device("cpu")
    dtypes, left_out = _dtypes(model, options.dtype, device)
    sizes = options.sizes or default_sizes(model.config)
    requests = {
        dtype: requests_for(model, dtype, sizes, steps=options.steps, images=options.images) for dtype in dtypes
    }
    say(describe_loading(model, dtypes, device.type))
    reference = next(
        (place for place in (device, host) if _lacking_for_diffusers(model, "float32", place) is None), None
    )
    if reference != device and "bfloat16" in dtypes:
        say(
            f"diffusers' float32, which bfloat16 is compared with, does not fit on {device.type}: "
            + ("it will run on the CPU, which takes long" if reference else "final latents will not be judged")
        )
    say(_describe_time(model, requests, device, reference))
    how = How(device, reference, degrees, options.seconds)
    checks: list[Check] = []

    def note(check: Check) -> None:
        checks.append(check)
        if options.json is not None:
            publish("verify", json_result(model, check), options.json)
        if not check.holds:
            say(f"DIFFERENT: {check.name}, {check.dtype}, {check.mode}")

    try:
        note(compare_tokens(model))
    except Exception:
        note(tokens_failed(traceback.format_exc()))
    cannot_judge = ""
    try:
        for dtype, asked in requests.items():
            problem = _lacking_for(model, dtype, device)
            if problem is not None:
                note(failed("all stages", dtype, "one", f"not run, {problem}"))
                continue
            for check in verify_dtype(model, asked, dtype, how, say):
                note(check)
    except CannotJudge as error:
        cannot_judge = str(error)
        if options.json is not None:
            line = {"model": model.name, "variant": model.variant, "cannot_judge": cannot_judge, "holds": False}
            publish("verify", line, options.json)
    if cannot_judge:
        release(device)  # what the error held until now
    notes = [*(f"left out: {reason}" for reason in left_out), *how.notes]
    result = Verified(model, checks, notes, requests, cannot_judge)
    say(f"{model.name}: {result.verdict}")
    return result


def _describe_time(
    model: Model, requests: Mapping[str, Sequence[Request]], device: torch.device, reference: torch.device | None
) -> str:
    """How long it may take, of diffusers' images and as long again for the engine's, which take less: from as fast as a
    matrix product is here to `_SLOWER` times that and what a forward takes at least."""
    least, forwards = 0.0, 0
    for dtype, asked in requests.items():
        work = operations(model, asked)
        least += 2 * work / _operations_a_second(device, dtype)
        each = sum(one.steps * (1 + (one.guidance > 0)) for one in asked)
        forwards += 2 * each
        if dtype == "bfloat16" and reference is not None:
            least += work / _operations_a_second(reference, "float32")
            forwards += each
    images = sum(map(len, requests.values()))
    between = _in_words(least, _SLOWER * least + _FORWARD_S * forwards)
    return (
        f"{images} image{'s' if images > 1 else ''} on each side: {between}, by how long a matrix product takes here; "
        "loading comes on top, and each mode of several ranks"
    )


def _in_words(least: float, most: float) -> str:
    """From so many seconds to so many."""
    (low, unit), (high, other) = map(_in_unit, (least, most))
    return f"{low} to {high} {unit}" if unit == other else f"{low} {unit} to {high} {other}"


def _in_unit(seconds: float) -> tuple[int, str]:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return round(seconds / size), unit
    return max(1, round(seconds)), "seconds"


def _operations_a_second(device: torch.device, dtype: str) -> float:
    side = _PRODUCT if device.type == "cpu" else 8 * _PRODUCT
    matrix = torch.ones((side, side), device=device, dtype=getattr(torch, dtype))
    (seconds,) = time_calls(lambda: matrix @ matrix, 1, device)
    return 2.0 * side**3 / max(seconds, 1e-9)


def _dtypes(model: Model, chosen: str, device: torch.device) -> tuple[list[str], list[str]]:
    """In which to verify, and why not in others."""
    if chosen != "auto":
        return [chosen], []
    if device.type == "cpu":
        return ["float32"], []
    problem = _lacking_for(model, "float32", device)
    return (list(_DTYPES), []) if problem is None else (["bfloat16"], [f"float32, {problem}"])


def _lacking_for(model: Model, dtype: str, device: torch.device) -> str | None:
    """What memory there is too little of, for this dtype; None if there is enough."""
    return _lacking(model.engine_bytes(dtype), device) or _lacking_for_diffusers(model, dtype, device)


def _lacking_for_diffusers(model: Model, dtype: str, device: torch.device) -> str | None:
    """The same of diffusers alone, whose weights pass through host memory."""
    size = max(model.diffusers_bytes(dtype).values())
    return _lacking(size, device) or _lacking(size, torch.device("cpu"))


def _lacking(size: int, device: torch.device) -> str | None:
    """Whether weights of so many bytes and the work on them have no room on a device."""
    free, needed = free_bytes(device), _ROOM * size
    if free is None or needed <= free:
        return None
    return f"since {needed / 1e9:.3g} GB are needed on {device.type} and {free / 1e9:.3g} GB are free"


def _modes(model: Model, options: argparse.Namespace) -> list[Degrees]:
    """Those that were asked for, or all that there are GPUs for. Raises `ArgumentError` for what the model's sizes do
    not allow."""
    if options.modes is not None:
        several = [degrees for degrees in options.modes if degrees.ranks > 1]
        for degrees in several:
            model.config.check_parallel(degrees.tp, degrees.sp)
        return several
    gpus = torch.cuda.device_count() if options.device != "cpu" else 0
    return [
        degrees
        for degrees in modes(_ALL_MODES)
        if degrees.ranks <= gpus
        and degrees.tp in model.config.possible_tp()
        and degrees.sp in model.config.possible_sp(degrees.tp)
    ]


def _sizes(text: str) -> list[tuple[int, int]]:
    """Widths and heights. Raises `ArgumentTypeError`."""
    sizes = []
    for word in text.split(","):
        match = re.fullmatch(r"(\d{1,5})[x×](\d{1,5})", word)
        sides = tuple(map(int, match.groups())) if match else ()
        if not sides or any(side % _MULTIPLE or not 64 <= side <= _LARGEST_SIDE for side in sides):
            raise argparse.ArgumentTypeError(f"must be as 512x512,640x384, multiples of {_MULTIPLE}, got {text}")
        sizes.append((sides[0], sides[1]))
    return sizes


def _quieten() -> None:
    """Leave out what diffusers says of keys that only the engine reads, and of an argument's new name."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()  # which weights are missing is told by `load_parts`
    warnings.filterwarnings("ignore", message=".*torch_dtype", category=FutureWarning)


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return _BAD_ARGUMENT


if __name__ == "__main__":
    end_with(main, stacks=False)
