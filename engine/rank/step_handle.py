"""A step that runs on a device, and what comes of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from engine.device.timing import DeviceTime, record_time, seconds_between, wait_for
from engine.step import Reach, StepTimes


@dataclass(frozen=True)
class Preview:
    """What a job's image may become, after `step` of its steps. pixels: (height, width, 3) uint8 in host memory."""

    job_id: int
    step: int
    pixels: torch.Tensor


class StepHandle:
    """A step that has been started, timed before, between and after its two parts.

    `previews` of rank 0 have their pixels once `wait` has returned. pictures: when the encoding of the step's pictures
    began and ended, before it; None without. one_by_one and what else has a name of `StepTimes`: as there.
    """

    def __init__(self, device: torch.device, *, one_by_one: bool = False) -> None:
        self._device = device
        self._one_by_one = one_by_one
        self._times: list[DeviceTime] = []
        self.previews: list[Preview] = []
        self.encoded_tokens = 0
        self.pictures: tuple[DeviceTime, DeviceTime] | None = None
        self.encoded_pixels = 0
        self.graph = False
        self.blocks_run: tuple[tuple[int, tuple[int, ...]], ...] = ()
        self.reach: Reach | None = None
        self.reach_s = 0.0
        self.record()

    def record(self) -> None:
        """Record when the device has got this far: now or, on a GPU, when its queue has been worked off."""
        # Awaited beside the thread that queues the next step, which is there already: it does not wait for the answer.
        self._times.append(record_time(self._device, awaited=True))

    def wait(self) -> StepTimes:
        """Return when the device has finished the step. From any thread."""
        began, encoded, done = self._times
        wait_for(done)
        late_s = time.perf_counter() - done if isinstance(done, float) else 0.0
        return StepTimes(
            encode_s=seconds_between(began, encoded),
            denoise_s=seconds_between(encoded, done),
            encoded_tokens=self.encoded_tokens,
            one_by_one=self._one_by_one,
            graph=self.graph,
            reach=self.reach,
            reach_s=self.reach_s,
            late_s=late_s,
            picture_s=0.0 if self.pictures is None else seconds_between(*self.pictures),
            encoded_pixels=self.encoded_pixels,
            blocks_run=self.blocks_run,
        )
