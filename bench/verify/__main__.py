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
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

from bench.measure.arguments import duration, end_with, json_file, modes, positive
from bench.measure.output import publish
from bench.verify.judging import Check, failed
from bench.verify.oracle.loading import CannotJudge
from bench.verify.report import Verified, json_result, write_report
from bench.verify.resources import DTYPES, describe_time, lacking_for, lacking_for_diffusers, possible_dtypes
from bench.verify.subject.models import Model, default_sizes, describe_loading, find_models, requests_for
from bench.verify.subject.paths import check_paths
from engine.config.degrees import Degrees
from engine.errors import ArgumentError, CheckpointError

_BAD_ARGUMENT = 2
_NEEDED = ("diffusers", "transformers")
_INSTALL = "pip install -e '.[test]'"
_MULTIPLE = 16
_GROUP_SECONDS = 3600.0
_LARGEST_SIDE = 4096
_ALL_MODES = "tp2,sp2,cfg,tp4,sp4,tp2xsp2,tp2xcfg,sp2xcfg"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.verify", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a folder in the diffusers layout, a name, or demo")
    parser.add_argument("--sizes", type=_sizes, help="of the images, as 512x512,640x384; one at least not square")
    parser.add_argument("--steps", type=positive, default=8, help="of each image, also of Raw's (8)")
    parser.add_argument("--images", type=positive, help="in each dtype (one a size in float32, 16 in bfloat16)")
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", *DTYPES),
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
    dtypes, left_out = possible_dtypes(model, options.dtype, device)
    sizes = options.sizes or default_sizes(model.config)
    requests = {
        dtype: requests_for(model, dtype, sizes, steps=options.steps, images=options.images) for dtype in dtypes
    }
    say(describe_loading(model, dtypes, device.type))
    reference = next(
        (place for place in (device, host) if lacking_for_diffusers(model, "float32", place) is None), None
    )
    if reference != device and "bfloat16" in dtypes:
        say(
            f"diffusers' float32, which bfloat16 is compared with, does not fit on {device.type}: "
            + ("it will run on the CPU, which takes long" if reference else "final latents will not be judged")
        )
    say(describe_time(model, requests, device, reference))
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
            problem = lacking_for(model, dtype, device)
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


def _modes(model: Model, options: argparse.Namespace) -> list[Degrees]:
    """Return the modes that were asked for, or all that there are GPUs for. Raises `ArgumentError` for what the model's
    sizes do not allow."""
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
