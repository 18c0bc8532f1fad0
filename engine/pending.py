"""A step that runs on a device, and what comes of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from engine.step import StepTimes


@dataclass(frozen=True)
class Preview:
    """What a job's image may become, after `step` of its steps. pixels: (height, width, 3) uint8 in host memory."""

    job_id: int
    step: int
    pixels: torch.Tensor


class PendingStep:
    """A step that has been started, with marks before, between and after its two parts.

    `previews` of rank 0 have their pixels once `wait` has returned.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._times: list[float] = []
        self._events: list[torch.cuda.Event] = []
        self.previews: list[Preview] = []
        self.encoded_tokens = 0
        self.mark()

    def mark(self) -> None:
        """The device has got this far, now or, on a GPU, when its queue has been worked off."""
        if self._on_gpu:
            self._events.append(torch.cuda.Event(enable_timing=True))
            self._events[-1].record(torch.cuda.current_stream(self._device))
        else:
            self._times.append(time.perf_counter())

    def wait(self) -> StepTimes:
        """Return when the device has finished the step."""
        if self._on_gpu:
            began, encoded, done = self._events
            with torch.cuda.device(self._device):  # another thread's is GPU 0, of whose memory a context takes some
                done.synchronize()
            seconds = began.elapsed_time(encoded) / 1e3, encoded.elapsed_time(done) / 1e3
        else:
            began_s, encoded_s, done_s = self._times
            seconds = encoded_s - began_s, done_s - encoded_s
        return StepTimes(*seconds, self.encoded_tokens)
