"""Builds cuDNN's attention plans, which are a thread's own, in the thread that executes steps, while it is idle."""

from __future__ import annotations

import logging
import mmap
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch

from engine.device.devices import is_out_of_memory, release_tensors
from engine.kernels.attention.backends import GatedAttentionKernel, PlanShape, build_plan
from engine.kernels.attention.plans import PlanSchedule
from engine.step import BuiltPlan

_logger = logging.getLogger(__name__)
Clock = Callable[[], float]  # seconds
_MOST_OF_A_PLAN = 64 << 20  # bytes; what is gone beyond them something else took


class PlanBuilder:
    """Builds what `schedule` asks for. Makes `kernel` run shapes that have a plan on cuDNN, and all others on flash."""

    def __init__(
        self, kernel: GatedAttentionKernel, device: torch.device, dtype: torch.dtype, *, clock: Clock = time.monotonic
    ) -> None:
        self.schedule = kernel.plans = PlanSchedule()
        self._device, self._dtype, self._clock = device, dtype, clock

    def worked(self, images: int) -> None:
        """Note that a step is about to begin, and a number of images with it."""
        self.schedule.worked(self._clock(), images)

    def wait_s(self) -> float | None:
        """Say in how many seconds `build_next` may be called if no step comes; None if there is nothing to build."""
        return self.schedule.wait_s(self._clock())

    def build_next(self, *, images_may_come: bool = True) -> BuiltPlan | None:
        """Build one plan, if there is one to build. What fails is logged, and its shape stays with flash. Raises the
        device's error if the device is lost.

        images_may_come: an image that begins right afterwards is counted as one that waited.
        """
        shape = cast("PlanShape | None", self.schedule.next())
        if shape is None:
            return None
        schedule, tokens = self.schedule, shape[0][0]
        began, before, reason = self._clock(), self._taken(), None
        try:
            with torch.inference_mode():
                build_plan(shape, self._device, self._dtype)
                self._settle()
        except Exception as error:
            schedule.failed(shape, self._clock() if images_may_come else None)
            release_tensors(error)
            _logger.warning("no attention plan for %d tokens, which stay with flash: %s", tokens, error)
            self._settle()  # raises if the device is lost
            if is_out_of_memory(error) and self._device.type == "cuda":
                torch.cuda.empty_cache()
            reason = str(error).partition("\n")[0]
        else:
            ended = self._clock()
            size = min(self._taken() - before, _MOST_OF_A_PLAN)
            schedule.built(shape, ended if images_may_come else None, size)
            _logger.info("attention plan for %d tokens in %.2f s: %s", tokens, ended - began, schedule.describe())
        seconds = self._clock() - began
        return BuiltPlan(tokens, seconds, reason, schedule.plans, schedule.bytes, schedule.waited, schedule.images)

    def build_all(self) -> int:
        """Build a plan for every shape met so far, when no image can be waiting. Returns the number of plans built."""
        before = self.schedule.plans
        while self.schedule.wait_s(self._clock()) is not None:
            self.build_next(images_may_come=False)
        return self.schedule.plans - before

    def _settle(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def _taken(self) -> int:
        """The bytes of the device beside torch's own, and of this process in host memory. Others' count too."""
        on_device = 0
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            on_device = total - free - torch.cuda.memory_reserved(self._device)
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
        except (OSError, ValueError, IndexError):  # not Linux
            pages = 0
        return on_device + pages * mmap.PAGESIZE
