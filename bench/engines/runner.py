"""One rank with random weights, driven as the front-end drives it, and what the benchmarks that do so share."""

from __future__ import annotations

import argparse
import gc
import itertools
import logging
import queue
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from bench.engines.real_size import PROMPT_TOKENS, SIZES, RandomWeights, model_of_size, random_prompt
from bench.measure.arguments import duration, json_file
from bench.measure.lost import LOST, DeviceLost, raise_if_lost
from bench.measure.output import append_json, print_json, print_table, publish_left_out
from bench.measure.timing import Budget, is_shared
from bench.survive import Attempts
from engine.config.chat_template import MAX_PROMPT_TOKENS, PREFIX_TOKENS, SUFFIX_TOKENS
from engine.config.engine_config import ATTENTIONS, DEVICES, DTYPES, EngineConfig
from engine.config.model_config import ModelConfig
from engine.device.devices import pick_device, pick_dtype
from engine.errors import ArgumentError, Krea2Error
from engine.parallel.mesh import Mesh
from engine.rank.image_decoder import DecodedImage
from engine.rank.rank import Rank
from engine.rank.step_handle import PendingStep
from engine.step import Job, Step

if TYPE_CHECKING:
    from bench.engines.peer import Peer

STEPS_AHEAD = 2  # as the front-end: one step runs while the next waits
WARM_UP_TEXT_TOKENS = 64  # of the prompt with which a rank warms up, with the suffix
DEADLINE_S = 300.0  # for an image to come out of the decoder
_LOOK_S = 1.0  # between looks at whether the decoder has failed
# The floors know no other: int8 is for memory, not for speed.
QUANTIZATIONS = ("none", "fp8")
PEERS = ("none", "diffusers")
T = TypeVar("T")


@dataclass(frozen=True)
class Version:
    """How an engine is built."""

    quantization: str = "none"
    attention: str = "auto"
    cuda_graphs: bool = True

    def __str__(self) -> str:
        graphs = "" if self.cuda_graphs else ", without CUDA graphs"
        return f"quantization {self.quantization}, attention {self.attention}{graphs}"


@dataclass(frozen=True)
class Setup:
    """What the options that all of these benchmarks come to. `size` is "real" only with the real model's layers."""

    model: ModelConfig
    size: str
    device: torch.device
    dtype: torch.dtype
    versions: tuple[Version, ...]
    prompt_tokens: int
    peer: str
    budget: Budget
    json: Path | None

    @property
    def bytes_per_element(self) -> int:
        return self.dtype.itemsize

    def text_tokens(self) -> int:
        """Of a segment: prompt and suffix."""
        return len(random_prompt(self.model, 0, self.prompt_tokens)) - PREFIX_TOKENS

    def segment_tokens(self, side: int) -> int:
        return self.text_tokens() + self.model.image_tokens(side, side)

    @property
    def title(self) -> str:
        return (
            f"random weights, size {self.size}, {self.model.transformer.num_layers} DiT blocks, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device.type}, {self.prompt_tokens} prompt tokens"
        )


def add_options(parser: argparse.ArgumentParser, *, quantization: str) -> None:
    """The options of `Setup`."""
    parser.add_argument("--size", choices=SIZES, default="real", help="whose sizes the model has (real)")
    parser.add_argument("--layers", type=int, help="so many DiT blocks instead")
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument(
        "--quantization", default=quantization, help=f"comma-separated, of {', '.join(QUANTIZATIONS)} ({quantization})"
    )
    parser.add_argument("--attention", default="auto", help=f"comma-separated, of {', '.join(ATTENTIONS)} (auto)")
    parser.add_argument("--graphs", default="on", help="CUDA graphs: on, off, or on,off (on)")
    parser.add_argument("--prompt-tokens", type=int, default=PROMPT_TOKENS, help=f"({PROMPT_TOKENS})")
    parser.add_argument("--peer", choices=PEERS, default="none", help="measure it too, on the same weights (none)")
    parser.add_argument("--seconds", type=duration, help="begin nothing more after so many")
    parser.add_argument(
        "--json", type=json_file, metavar="FILE", help="add a line for each result to this file as well"
    )


def read_options(arguments: argparse.Namespace) -> Setup:
    """Raises `ArgumentError`."""
    if arguments.layers is not None:
        check_positive("layers", arguments.layers)
    if not 1 <= arguments.prompt_tokens <= MAX_PROMPT_TOKENS:
        raise ArgumentError.of("prompt-tokens", f"between 1 and {MAX_PROMPT_TOKENS}", arguments.prompt_tokens)
    config = EngineConfig(device=arguments.device, dtype=arguments.dtype)
    device = pick_device(config, 0, 1)
    versions = itertools.product(
        parse_list("quantization", arguments.quantization, QUANTIZATIONS),
        parse_list("attention", arguments.attention, ATTENTIONS),
        [graphs == "on" for graphs in parse_list("graphs", arguments.graphs, ("on", "off"))],
    )
    return Setup(
        model=model_of_size(arguments.size, arguments.layers),
        size=arguments.size if arguments.layers is None else f"{arguments.size} with other layers",
        device=device,
        dtype=pick_dtype(config, device),
        versions=tuple(Version(*version) for version in versions),
        prompt_tokens=arguments.prompt_tokens,
        peer=arguments.peer,
        budget=Budget(arguments.seconds),
        json=arguments.json,
    )


def check_positive(name: str, value: int) -> None:
    """Raises `ArgumentError`."""
    if value < 1:
        raise ArgumentError.of(name, "positive", value)


def parse_list(name: str, text: str, allowed: Sequence[str]) -> list[str]:
    """Comma-separated words. Raises `ArgumentError` if one is not allowed."""
    words = text.split(",")
    if not set(words) <= set(allowed):
        raise ArgumentError.of(name, f"comma-separated, of {', '.join(allowed)}", text)
    return words


def parse_sides(name: str, text: str, multiple: int) -> list[int]:
    """Comma-separated sides of square images in pixels. Raises `ArgumentError` if one is no multiple."""
    try:
        sides = [int(side) for side in text.split(",")]
    except ValueError:
        sides = [0]
    if any(side < multiple or side % multiple for side in sides):
        raise ArgumentError.of(name, f"comma-separated positive multiples of {multiple}", text)
    return sides


class Engine:
    """A rank and the steps that it was told."""

    def __init__(self, setup: Setup, version: Version, *, decodes: bool = True) -> None:
        """Loaded and warmed up. decodes: whether for images too. Raises `ArgumentError` if the version cannot run
        here."""
        began = time.perf_counter()
        self.setup, self.version = setup, version
        self._images: queue.Queue[tuple[DecodedImage, float]] = queue.Queue()
        self._on_image: Callable[[DecodedImage], None] = self._keep
        config = EngineConfig(
            device=setup.device.type, dtype=str(setup.dtype).removeprefix("torch."), **asdict(version)
        )
        weights = RandomWeights(setup.model, setup.device)
        self.rank = Rank(config, Mesh(), setup.device, lambda image: self._on_image(image), weights)
        self._step_numbers = itertools.count()
        self._job_ids = itertools.count()
        self._lengths = {WARM_UP_TEXT_TOKENS - SUFFIX_TOKENS}  # of prompts, in tokens
        loaded = time.perf_counter()
        try:
            self.rank.warm_up(decodes=decodes)
        except BaseException:
            self.close()
            raise
        warmed_up = time.perf_counter()
        note(f"{version}: loaded in {loaded - began:.1f} s, warmed up in {warmed_up - loaded:.1f} s")
        choice = self.rank.attention_choice.describe()
        note("\n".join(f"  attention, {name}: {what}" for name, what in choice.items()))

    def new_jobs(self, count: int, side: int, steps: int, prompt_tokens: int | None = None) -> list[Job]:
        """Square images, each with a prompt and a seed that this engine has not had. prompt_tokens: the setup's."""
        tokens = prompt_tokens or self.setup.prompt_tokens
        self._lengths.add(tokens)
        self.build_plans()
        return [
            Job(
                job_id=number,
                prompt_ids=random_prompt(self.setup.model, number, tokens),
                negative_ids=None,
                width=side,
                height=side,
                steps=steps,
                guidance=0.0,
                mu=None,
                seed=number,
            )
            for number in itertools.islice(self._job_ids, count)
        ]

    def build_plans(self) -> float:
        """Have attention plans built for all lengths that images had so far, as a server does while it has nothing to
        do. Returns seconds, 0 where there is nothing to build."""
        began = time.perf_counter()
        return time.perf_counter() - began if self.rank.build_attention_plans() else 0.0

    def unseen_length(self) -> int | None:
        """Prompt tokens that no job of this engine has had, nor its warm-up, as few above the setup's as possible."""
        return next((n for n in range(self.setup.prompt_tokens, MAX_PROMPT_TOKENS + 1) if n not in self._lengths), None)

    def execute(
        self,
        *,
        start: Sequence[Job] = (),
        denoise: Sequence[int] = (),
        decode: Sequence[int] = (),
        release: Sequence[int] = (),
    ) -> PendingStep:
        """The next step. On a GPU it has only been queued when this returns."""
        step = Step(next(self._step_numbers), tuple(start), tuple(denoise), tuple(decode), tuple(release))
        return self.rank.execute(step)

    def next_image(self) -> tuple[DecodedImage, float]:
        """The next image out of the decoder, and the time on `perf_counter` at which it came."""
        return self.wait_for(self._images)

    def wait_for(self, images: queue.Queue[T]) -> T:
        """The next of what the decoder causes to be put there. Raises what the decoder raised, `queue.Empty` after
        `DEADLINE_S`."""
        due = time.monotonic() + DEADLINE_S
        while True:
            try:
                return images.get(timeout=_LOOK_S)
            except queue.Empty:
                self.rank.raise_failure()
                if time.monotonic() > due:
                    raise

    @contextmanager
    def images_to(self, receive: Callable[[DecodedImage], None]) -> Iterator[None]:
        """Meanwhile images go there instead, in the decoder's thread."""
        self._on_image = receive
        try:
            yield
        finally:
            self._on_image = self._keep

    def close(self) -> None:
        """Wait for the decoder and give the memory back. The engine is of no use any more."""
        try:
            self.rank.close()
        finally:
            del self.rank
            gc.collect()
            if self.setup.device.type == "cuda":
                torch.cuda.empty_cache()

    def _keep(self, image: DecodedImage) -> None:
        self._images.put((image, time.perf_counter()))


def measure_all(
    setup: Setup,
    cases: Sequence[T],
    measure: Callable[[Engine, T], tuple[Any, Sequence[str]]],
    results: Results,
    *,
    decodes: bool = True,
    after: Callable[[Engine, T], None] = lambda engine, case: None,
) -> None:
    """Add to `results` what `measure` says of each case with each version's engine, which is a result and its row; call
    `after` then.

    The first case is always tried, the others as long as there is time. A version that cannot run here is named. What
    fails is told with its traceback, and the other cases go on with a new engine; in a new process (`bench.survive`) if
    the GPU is lost, with which this ends, since nothing can be trusted that it computes.
    """
    try:
        _measure_all(setup, cases, measure, results, decodes, after)
    except DeviceLost as error:
        results.lose_device(error)


def _measure_all(
    setup: Setup,
    cases: Sequence[T],
    measure: Callable[[Engine, T], tuple[Any, Sequence[str]]],
    results: Results,
    decodes: bool,
    after: Callable[[Engine, T], None],
) -> None:
    """Raises `DeviceLost`."""
    attempts = results.attempts
    began = False
    left_out: list[str] = []
    for version in setup.versions:
        waiting = [case for case in cases if attempts.is_new(f"{case} with {version}")]
        most = len(waiting)
        while waiting and not (began and setup.budget.spent):
            began = True
            if not attempts.prepare(f"the engine with {version}"):
                results.fail(str(version), "an earlier process died of its engine")
                break
            try:
                engine = Engine(setup, version, decodes=decodes)
            except ArgumentError as error:
                note(f"{version} is left out: {error}")
                break
            except Exception as error:
                results.fail(str(version), traceback.format_exc())
                raise_if_lost(error)
                break
            try:
                while waiting and not (setup.budget.spent and len(waiting) < most):
                    case = waiting.pop(0)
                    attempts.begin(f"{case} with {version}")
                    results.add(*measure(engine, case))
                    after(engine, case)
            except Exception as error:
                results.fail(f"{case} with {version}", traceback.format_exc())
                raise_if_lost(error)
            try:
                engine.close()
            except Exception as error:
                results.fail(f"the end of {version}", traceback.format_exc())
                raise_if_lost(error)
        else:
            for case in waiting:
                note(f"{case} with {version} is left out: the time is up")
                left_out.append(f"{case} with {version}")
    publish_left_out(left_out, len(cases) * len(setup.versions), setup.json)


def load_peer(setup: Setup) -> Peer | None:
    """The peer that is asked for, with the weights that the engines have. Raises `ArgumentError` if it is missing."""
    if setup.peer == "none":
        return None
    try:
        from bench.engines.peer import Peer
    except ImportError as error:
        raise ArgumentError(f"peer diffusers is not available: {error}", parameter="peer") from None
    return Peer(RandomWeights(setup.model, setup.device), setup.dtype)


class Results:
    """Writes every result as it comes: a JSON line to stdout and, if asked to, to a file; at the end one table."""

    def __init__(self, benchmark: str, setup: Setup, columns: Sequence[str]) -> None:
        self._benchmark, self._setup, self._columns = benchmark, setup, columns
        self._rows: list[Sequence[str]] = []
        self._failures: list[str] = []
        self._lost = False
        self.attempts = Attempts()

    @property
    def any(self) -> bool:
        """Whether there is a result yet."""
        return bool(self._rows)

    @property
    def status(self) -> int:
        """The exit status: 0 if there is one and nothing failed, `LOST` if the GPU is lost."""
        if self._lost:
            return LOST
        return 0 if (self.any or self.attempts.resumed) and not self._failures else 1

    def fail(self, what: str, why: str) -> None:
        """Tell whoever watches at once, and again below the table."""
        note(f"FAILED: {what}: {why}")
        self._failures.append(what)

    def lose_device(self, error: DeviceLost) -> None:
        """Nothing will be added any more."""
        self._lost = True
        self._failures.append(f"the GPU is lost, and whatever it would compute in this process: {error}")

    def add(self, result: Any, row: Sequence[str]) -> None:
        """result: a dataclass with the GPU's state before and after; row: what the table shows of it."""
        setup = self._setup
        shared = is_shared(result.gpu_before, result.gpu_after)
        if shared:
            note("not valid: another process uses the GPU")
        line = {
            "weights": "random",
            "size": setup.size,
            "layers": setup.model.transformer.num_layers,
            "device": setup.device.type,
            "dtype": str(setup.dtype).removeprefix("torch."),
            "prompt_tokens": setup.prompt_tokens,
            "gpu_shared": shared,
            **asdict(result),
        }
        print_json(self._benchmark, line)
        if setup.json is not None:
            append_json(setup.json, self._benchmark, line)
        self._rows.append(row)

    def print_table(self) -> None:
        """With a title that says what the weights are."""
        print(f"\nbench.{self._benchmark}: {self._setup.title}")
        print_table(self._columns, self._rows)
        for what in self._failures:
            note(f"FAILED: {what}")
        if not self.any and not self.attempts.resumed:
            note("FAILED: nothing was measured")


def note(text: str) -> None:
    """To whoever watches."""
    print(text, file=sys.stderr, flush=True)


def run_main(
    run: Callable[[argparse.Namespace], Results | None], parser: argparse.ArgumentParser, words: Sequence[str]
) -> int:
    """Parse, run and print the table, unless there is none to be. 1 if something failed or nothing was measured, `LOST`
    if the GPU is lost; a user's mistake is one line on stderr and the exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        results = run(parser.parse_args(words))
    except Krea2Error as error:
        note(f"error: {error}")
        return error.exit_code
    if results is None:
        return 0
    results.print_table()
    return results.status
