"""How much memory this machine, or the container that we are in, can still give. Reads what Linux says; no torch."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# What a group of processes may take and has taken, and which of that are copies of files, in cgroups of version 2 and
# 1: the kernel drops them before it kills.
_GROUP_FILES = (
    ("memory.max", "memory.current", ("inactive_file", "active_file", "slab_reclaimable")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)


_UNLIMITED = 1 << 60  # and more is what version 1 says of a group without a limit


@dataclass(frozen=True)
class HostMemory:
    """Bytes of host memory. total: all that there is for us, or a group's limit; available: what can be had of it, and
    swap: of the disk besides."""

    total: int
    available: int
    swap: int = 0

    @classmethod
    def read(cls, root: Path = Path("/")) -> HostMemory | None:
        """Read what there is now; None where that is not known, as on macOS. root: where /proc and /sys are."""
        try:
            fields = _numbers(root / "proc/meminfo")
            total, available = fields["MemTotal:"] * 1024, fields["MemAvailable:"] * 1024
            swap = fields.get("SwapFree:", 0) * 1024
        except (OSError, ValueError, KeyError):
            return None
        for group in _groups(root):
            for limit_file, usage_file, reclaimable in _GROUP_FILES:
                try:
                    limit = int((group / limit_file).read_text())  # "max" where there is none
                    used, statistics = int((group / usage_file).read_text()), _numbers(group / "memory.stat")
                except (OSError, ValueError):
                    continue
                held = max(0, used - sum(statistics.get(name, 0) for name in reclaimable))
                total, available = min(total, limit), min(available, max(0, limit - held))
                swap = int(min(swap, _swap(group, limit)))
        return cls(total, available, swap)


def who_kills(peak: int, host: HostMemory | None) -> str:
    """Tell who may have sent SIGKILL to a process that had taken up to `peak` bytes of what host memory there is."""
    kernel = "by the kernel because memory ran out"
    blame = f"by somebody, or {kernel}" if host is not None and peak < host.total / 4 else f"most likely {kernel}"
    there = f", and there are {host.total / 1e9:.2f} GB" if host is not None else ""
    return f"{blame} (it had up to {peak / 1e9:.2f} GB{there})"


def taken_by_children() -> int:
    """How many bytes of host memory the largest child of this process that has ended had taken."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << (0 if sys.platform == "darwin" else 10)


def _groups(root: Path) -> Iterator[Path]:
    """The folders of the cgroups that this process is in, with all that they lie in: each has a limit of its own. In a
    container they may be called otherwise than they are found, and then the outermost is the container's."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(",") or not controllers:
            base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
            own = Path(path.strip("/"))
            yield from (base / each for each in (own, *own.parents) if ".." not in each.parts)


def _swap(group: Path, limit: int) -> float:
    """What a group with this limit may still have of swap, infinite where nothing limits it."""
    for limit_file, used in (
        ("memory.swap.max", lambda: int((group / "memory.swap.current").read_text())),
        ("memory.memsw.limit_in_bytes", lambda: limit),  # of memory and swap together
    ):
        try:
            most = int((group / limit_file).read_text())
            return math.inf if most >= _UNLIMITED else max(0, most - used())
        except (OSError, ValueError):
            continue
    return math.inf


def _numbers(file: Path) -> Mapping[str, int]:
    """The first number of each line, by what stands before it."""
    words = (line.split() for line in file.read_text().splitlines())
    return {name: int(number) for name, number, *_ in words}
