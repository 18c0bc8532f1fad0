"""Keeps ranks from GPUs that fail: hears of errors, and says on which GPUs the next group of ranks may run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from engine.errors import Krea2Error, RankError
from launcher.messages.rank_messages import Ready
from launcher.ranks.gpu_health import Gpu, GpuError, GpuHealth
from launcher.ranks.nvml import NvmlWatch

_AROUND_S = 60.0  # between a GPU's error and the loss of ranks that do not hang
_LOOK_S = 3.0  # for NVML to read counters; with a GPU that fails it may hang


class GpuWatch:
    """Watches the GPUs that ranks use, from the first rank that says so.

    on_error: gets each error of a GPU in use. on_quarantine: gets a GPU that is not used any more, and why. fail: ends
    the group of ranks. Runs in the event loop that it is made in.
    """

    def __init__(
        self,
        step_timeout_s: float,
        *,
        on_error: Callable[[GpuError], None],
        on_quarantine: Callable[[Gpu, str], None],
        fail: Callable[[Krea2Error], None],
    ) -> None:
        self._on_error, self._on_quarantine, self._fail = on_error, on_quarantine, fail
        self._health = GpuHealth(_AROUND_S + step_timeout_s)  # ranks that hang are lost when a step has timed out
        self._loop = asyncio.get_running_loop()
        self._visible: tuple[str, ...] = ()  # to the first group
        self._in_use: dict[int, str] = {}  # by rank, of the newest group that has said so
        self._gpus: dict[str, Gpu] = {}  # by UUID, those that NVML knows
        self._nvml: NvmlWatch | None = None

    @property
    def quarantined(self) -> tuple[str, ...]:
        """Why GPUs are not used any more."""
        return tuple(self._health.quarantined.values())

    def uses(self, ready: Ready) -> None:
        """Hear which GPU a rank uses."""
        if not ready.gpu:
            return
        self._in_use[ready.rank] = ready.gpu
        if self._nvml is None:
            self._visible = ready.visible_gpus
            self._nvml = NvmlWatch(self._visible, self._in_loop(self._found), self._in_loop(self._hear))

    async def ranks_lost(self, lost: float) -> None:
        """Find out whether GPUs have failed, of ranks that were lost at the time `lost`."""
        if self._nvml is None:
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(self._nvml.look()), _LOOK_S)
        for gpu in self._health.ranks_lost(self._gpus_in_use(), lost):
            self._on_quarantine(gpu, self._health.quarantined[gpu.index])

    def environment(self, needed: int) -> dict[str, str]:
        """Return the variables by which the next ranks see the GPUs that may be used, of which they need `needed`.

        Raises `RankError` if too few are left.
        """
        if not self._health.quarantined:
            return {}
        visible = [self._gpus[uuid] for uuid in self._visible if uuid in self._gpus]
        usable = self._health.usable(visible, needed)
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpu.selector for gpu in usable)}

    def close(self) -> None:
        """Stop watching."""
        if self._nvml is not None:
            self._nvml.close()

    def _found(self, gpus: dict[str, Gpu]) -> None:
        self._gpus = gpus

    def _hear(self, error: GpuError) -> None:
        if error.gpu.index not in {gpu.index for gpu in self._gpus_in_use()}:
            return  # it is others' business
        self._health.hear(error, self._loop.time())
        self._on_error(error)
        if error.is_lost:  # ranks would wait for it until a step has timed out
            self._fail(RankError(f"{error.gpu} has failed: {error}"))

    def _gpus_in_use(self) -> list[Gpu]:
        known = [self._gpus[uuid] for uuid in self._in_use.values() if uuid in self._gpus]
        return [gpu for gpu in known if gpu.index not in self._health.quarantined]

    def _in_loop(self, heard: Callable[..., None]) -> Callable[..., None]:
        def hear(what: object) -> None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(heard, what)

        return hear
