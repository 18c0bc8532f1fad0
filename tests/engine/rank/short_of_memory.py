"""A rank of the demo that can be made to run out of memory."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.config.demo_checkpoints import DEMO_CHECKPOINT, DEMO_LORAS
from engine.errors import OutOfMemoryError
from engine.parallel.mesh import Mesh
from engine.rank.image_decoder import DecodedImage
from engine.rank.rank import Rank
from engine.step import Adapter, Job, Picture, Step, StepTimes
from tests.engine_runs import DEADLINE_S, config_of, jobs_of
from tests.oracle import Request
from tests.step_scripts import pixels_of

CPU = torch.device("cpu")
REQUESTS = [
    Request("a red circle on a blue background", seeds=(0, 1), steps=3, width=64, height=48),
    Request("a green star", guidance=2.0, negative_prompt="rain", width=48, height=64, seeds=(2,), steps=2),
]
LORA = Adapter(0, str(next(iter(DEMO_LORAS.values()))))


class OutOfMemory(TorchDispatchMode):
    """Raises torch's error at some operations of this thread, counted from 0."""

    def __init__(self, fails: Sequence[int] = ()) -> None:
        super().__init__()
        self.operations, self._fails = 0, set(fails)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        if self.operations - 1 in self._fails:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return func(*args, **(kwargs or {}))


class Ranked:
    """A rank of the demo, its images, and the jobs that it has given up."""

    def __init__(self, **options: Any) -> None:
        self.images: queue.Queue[DecodedImage] = queue.Queue()
        self.failures: dict[int, OutOfMemoryError] = {}
        config = config_of(DEMO_CHECKPOINT, **options)
        self.rank = Rank(config, Mesh(), CPU, self.images.put, on_failed=self.failures.__setitem__)
        self.number = 0

    def execute(self, mode: Any = None, **parts: Any) -> StepTimes:
        step = Step(self.number, **parts)
        pixels = {picture.picture_id: pixels_of(picture) for picture in step.encode}
        with mode or nullcontext():
            handle = self.rank.execute(step, pixels)
        self.number += 1
        return handle.wait()

    def run(self, jobs: Sequence[Job], modes: Sequence[Any] = ()) -> dict[int, torch.Tensor]:
        """All jobs to their end in shared steps, `modes` being in force in the first ones. Final latents by job."""
        self.execute(load=(LORA,))
        left = {job.job_id: job.steps for job in jobs}
        latents: dict[int, torch.Tensor] = {}
        waiting = list(modes)
        start = tuple(jobs)
        encode = tuple(dict.fromkeys(job.picture for job in jobs if job.picture is not None))
        forget = tuple(picture.picture_id for picture in encode)
        while left:
            mode = waiting.pop(0) if waiting else None
            self.execute(mode, start=start, denoise=tuple(left), encode=encode, forget=forget)
            start, encode, forget = (), (), ()
            done = [job_id for job_id in left if left[job_id] == 1]
            left = {job_id: steps - 1 for job_id, steps in left.items() if steps > 1}
            latents |= {job_id: self.rank.jobs[job_id].latents.clone() for job_id in done}
            self.execute(decode=tuple(done))
        self.execute(unload=(LORA.adapter_id,))
        return latents

    def image(self) -> DecodedImage:
        return self.images.get(timeout=DEADLINE_S)


def make_jobs() -> list[Job]:
    """Guided and not, one with a LoRA, all with previews."""
    jobs = jobs_of(DEMO_CHECKPOINT, REQUESTS)
    return [replace(job, preview_every=1, loras=((0, 0.7),) if job.job_id == 1 else ()) for job in jobs]


def begun(job: Job, picture_id: int, *, masked: bool = False) -> Job:
    """The job, beginning from a picture, of which a part may stay."""
    return replace(job, picture=Picture(picture_id, job.width, job.height, masked), skipped_steps=1)


@contextmanager
def decoding_fails(rank: Rank, monkeypatch: pytest.MonkeyPatch, times: int) -> Iterator[list[int | None]]:
    """Gives the tiles of each attempt, of which the first `times` find no memory."""
    assert rank.model.vae is not None
    decode, tiles = rank.model.vae.decode_pixels, list[int | None]()

    def attempt(latents: torch.Tensor, *, tile: int | None = None) -> torch.Tensor:
        tiles.append(tile)
        if len(tiles) <= times:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return decode(latents, tile=tile)

    with monkeypatch.context() as patch:
        patch.setattr(rank.model.vae, "decode_pixels", attempt)
        yield tiles
