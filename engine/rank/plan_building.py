"""Builds cuDNN's attention plans in the thread that executes steps, whose plans nobody else's are, while it is idle."""

from __future__ import annotations

import logging
import mmap
import time
from collections.abc import Callable

import torch

from engine.device.out_of_memory import is_out_of_memory, release_tensors
from engine.kernels.attention.backends import GatedAttentionKernel, PlanShape, build_plan
from engine.kernels.attention.plans import PlanSchedule
from engine.step import BuiltPlan

_logger = logging.getLogger(__name__)
_MOST_OF_A_PLAN = 64 << 20  # bytes; where more is gone somebody else took it


class PlanBuilder:
    """From now on cuDNN serves what `schedule` has a plan for in `kernel`, and flash all else."""

    def __init__(
        self,
        kernel: GatedAttentionKernel,
        device: torch.device,
        dtype: torch.dtype,
        schedule: PlanSchedule | None = None,
        *,
        build: Callable[[PlanShape, torch.device, torch.dtype], None] = build_plan,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.schedule = kernel.plans = schedule or PlanSchedule()
        self._device, self._dtype = device, dtype
        self._build, self._clock = build, clock

    def worked(self, images: int) -> None:
        """A step is about to begin, and so many images with it."""
        self.schedule.worked(self._clock(), images)

    def wait_s(self) -> float | None:
        """Seconds until `build_next` may be called if no step comes; None if there is nothing to build."""
        return self.schedule.wait_s(self._clock())

    def build_next(self, *, images_may_come: bool = True) -> BuiltPlan | None:
        """Build one plan, if there is one to build. What fails is logged, and its shape stays with flash. Raises what a
        lost device says.

        images_may_come: one that begins right afterwards has waited.
        """
        shape = self.schedule.next()
        if shape is None:
            return None
        tokens: int = shape[0][0]  # type: ignore[index]
        began, before = self._clock(), self._taken()
        try:
            with torch.inference_mode():
                self._build(shape, self._device, self._dtype)  # type: ignore[arg-type]
                self._settle()
        except Exception as error:
            self.schedule.failed(shape, self._clock() if images_may_come else None)
            release_tensors(error)
            _logger.warning("no attention plan for %d tokens, which stay with flash: %s", tokens, error)
            self._settle()  # raises if the device is lost
            if is_out_of_memory(error) and self._device.type == "cuda":
                torch.cuda.empty_cache()
            return self._report(tokens, began, str(error).partition("\n")[0])
        ended = self._clock()
        size = min(self._taken() - before, _MOST_OF_A_PLAN)
        self.schedule.built(shape, ended if images_may_come else None, size)
        _logger.info("attention plan for %d tokens in %.2f s: %s", tokens, ended - began, self.schedule.describe())
        return self._report(tokens, began)

    def _report(self, tokens: int, began: float, error: str | None = None) -> BuiltPlan:
        schedule = self.schedule
        seconds = self._clock() - began
        return BuiltPlan(tokens, seconds, error, schedule.plans, schedule.bytes, schedule.waited, schedule.images)

    def build_all(self) -> int:
        """Build a plan for every shape met so far, as while nobody waits for an image. Returns how many."""
        before = self.schedule.plans
        while self.schedule.wait_s(self._clock()) is not None:
            self.build_next(images_may_come=False)
        return self.schedule.plans - before

    def _settle(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def _taken(self) -> int:
        """Bytes of the device beside torch's own, and of this process in host memory. Others' count too."""
        return _host_bytes() + _device_bytes(self._device)


def _device_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


def _host_bytes() -> int:
    try:
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
    except (OSError, ValueError, IndexError):  # not Linux
        return 0
    return pages * mmap.PAGESIZE
