"""Decides which GPUs ranks may use, by the errors that NVIDIA's driver reports of them. Pure: times come in.

Errors of the driver have numbers, Xids, which NVIDIA's catalogue explains for each generation of GPUs:
https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html. Most are a program's fault, or follow from other
errors (13, 31, 43, 45, 68, 69, 109: they say nothing of the GPU); those in `_HARDWARE` are the GPU's, or its link's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from engine.errors import RankError

_FAILURES = 2  # of a GPU, each of which has cost a group of ranks, after which it is not used any more
_HARDWARE = {
    48: "a memory error that cannot be corrected",
    62: "its microcontroller has halted",
    63: "a row of memory was retired",
    64: "a row of memory could not be retired",
    74: "its NVLink fails",
    79: "it has fallen off the bus",
    92: "many memory errors, which were corrected",
    94: "a memory error that cannot be corrected, in one program",
    95: "a memory error that cannot be corrected, in any program",
    119: "its system processor does not answer",
    120: "its system processor has failed",
    121: "its link to the CPU fails",
    140: "a memory error that was not recovered from",
    143: "it could not be initialised",
}
_OTHER = {
    13: "a program's exception",
    31: "a program's page fault",
    43: "a program's work was stopped",
    45: "a program's work was removed after another error",
    109: "a program was too slow to be switched",
    154: "what it needs to recover has changed",
}
_LOST = 79
ECC, REMAPPING, LOST = "ecc", "row remapping", "lost"  # what NVML says without an Xid
_WITHOUT_XID = {
    ECC: "memory errors that cannot be corrected were counted",
    REMAPPING: "a row of memory could not be remapped",
    LOST: "the driver has lost it",
}


@dataclass(frozen=True)
class Gpu:
    """A GPU, or the MIG instance of one. index: as nvidia-smi counts. selector: its name in CUDA_VISIBLE_DEVICES."""

    index: int
    name: str
    selector: str

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name}, {self.selector})"


@dataclass(frozen=True)
class GpuError:
    """An error of a GPU: an Xid's number, or one of `ECC`, `REMAPPING` and `LOST`, as text."""

    gpu: Gpu
    code: str

    @property
    def _xid(self) -> int:
        return int(self.code) if self.code.isdigit() else 0

    @property
    def is_hardware(self) -> bool:
        """Whether the GPU or its link is at fault, and no program."""
        return self._xid in _HARDWARE or self.code in _WITHOUT_XID

    @property
    def is_lost(self) -> bool:
        """Whether the GPU cannot be reached any more."""
        return self._xid == _LOST or self.code == LOST

    @property
    def meaning(self) -> str:
        """What it is, in a few words."""
        known = _HARDWARE | _OTHER
        return known.get(self._xid) or _WITHOUT_XID.get(self.code) or "see NVIDIA's catalogue of Xids"

    def __str__(self) -> str:
        return f"Xid {self.code}: {self.meaning}" if self._xid else self.meaning


class GpuHealth:
    """Keeps which GPUs have failed. quarantined: by index, why each is not used any more, for people."""

    def __init__(self, around_s: float) -> None:
        """around_s: seconds between an error of a GPU and the loss of ranks that it may be the reason of."""
        self._around_s = around_s
        self._last: dict[int, tuple[float, GpuError]] = {}  # error of the hardware, by GPU, until ranks are lost
        self._failures: Counter[int] = Counter()
        self.quarantined: dict[int, str] = {}

    def hear(self, error: GpuError, now: float) -> None:
        """Take note of an error."""
        index = error.gpu.index
        if error.is_hardware and not (index in self._last and self._last[index][1].is_lost):
            self._last[index] = now, error

    def ranks_lost(self, in_use: Collection[Gpu], lost: float) -> list[Gpu]:
        """Count a failure of each of the GPUs in use that had an error when ranks were lost, at the time `lost`.

        Returns those that are quarantined from now on: at the second failure, or the first if the GPU is lost.
        """
        last, self._last = self._last, {}
        newly = []
        for index, gpu in {gpu.index: gpu for gpu in in_use}.items():
            heard, error = last.get(index, (-float("inf"), None))
            if error is None or heard < lost - self._around_s:
                continue
            self._failures[index] += 1
            if self._failures[index] >= _FAILURES or error.is_lost:
                times = "" if error.is_lost else f" {self._failures[index]} times, the last time"
                self.quarantined[index] = f"{gpu} has failed{times} with {error}"
                newly.append(gpu)
        return newly

    def usable(self, visible: Sequence[Gpu], needed: int) -> list[Gpu]:
        """Return the visible GPUs that may be used. Raises `RankError` naming the others if these are too few."""
        usable = [gpu for gpu in visible if gpu.index not in self.quarantined]
        if len(usable) >= needed:
            return usable
        why, indices = "; ".join(self.quarantined.values()), ",".join(map(str, self.quarantined))
        raise RankError(
            f"{why}: not used any more, and {len(usable)} of the {needed} GPUs that are needed are left. Look at "
            f"`nvidia-smi -q -i {indices}`, reset or replace what has failed, then start the server again"
        )
