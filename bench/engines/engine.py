"""One rank with random weights, driven as the front-end drives it."""

from __future__ import annotations

import gc
import itertools
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TypeVar

import torch

from bench.engines.real_size import RandomWeights, random_prompt
from bench.engines.setup import Setup, Version
from bench.measure.output import note
from engine.config.chat_template import MAX_PROMPT_TOKENS, SUFFIX_TOKENS
from engine.config.engine_config import EngineConfig
from engine.parallel.mesh import Mesh
from engine.planning.floor import Ceilings, Floor, step_floor
from engine.rank.image_decoder import DecodedImage
from engine.rank.rank import Rank
from engine.rank.step_handle import StepHandle
from engine.rank.warm_up import warm_up
from engine.step import Job, Step

STEPS_AHEAD = 2  # as the front-end: one step runs while the next waits
WARM_UP_TEXT_TOKENS = 64  # of the prompt with which a rank warms up, with the suffix
DEADLINE_S = 300.0  # for an image to come out of the decoder
_LOOK_S = 1.0  # between looks at whether the decoder has failed
T = TypeVar("T")


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
            warm_up(self.rank, decodes=decodes)
        except BaseException:
            self.close()
            raise
        warmed_up = time.perf_counter()
        note(f"{version}: loaded in {loaded - began:.1f} s, warmed up in {warmed_up - loaded:.1f} s")
        choice = self.rank.model.attention_choice.describe()
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
        plans = self.rank.plans
        return time.perf_counter() - began if plans is not None and plans.build_all() else 0.0

    def unseen_length(self) -> int | None:
        """Prompt tokens that no job of this engine has had, nor its warm-up, as few above the setup's as possible."""
        return next((n for n in range(self.setup.prompt_tokens, MAX_PROMPT_TOKENS + 1) if n not in self._lengths), None)

    def floor(self, segments: Iterable[int], ceilings: Ceilings, steps: int = 1) -> Floor:
        """The least time of `steps` denoise steps of packed segments of these lengths in tokens."""
        return step_floor(
            self.setup.model.transformer,
            segments,
            ceilings,
            fp8=self.version.quantization == "fp8",
            bytes_per_element=self.setup.bytes_per_element,
            steps=steps,
        )

    def execute(
        self,
        *,
        start: Sequence[Job] = (),
        denoise: Sequence[int] = (),
        decode: Sequence[int] = (),
        release: Sequence[int] = (),
    ) -> StepHandle:
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
                self.rank.recovery.check_decoder()
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
