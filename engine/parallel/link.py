"""How fast ranks talk, measured."""

from __future__ import annotations

import time
from statistics import median

import torch

from engine.parallel.group import Group

_BYTES, _OPERATIONS, _REPEATS = 64 * 2**20, 10, 3


def measure_link(group: Group, device: torch.device, size: int = _BYTES) -> tuple[float, float]:
    """Time exchanges of `size` bytes with the other ranks. Returns the bytes that a rank sends a second, and the
    seconds of an operation that sends next to nothing. Every rank of the group must call it."""

    def seconds(rows: int) -> float:
        """Of one exchange of `rows` rows of 256 bytes with each rank."""
        sent = torch.zeros((rows * group.size, 256), dtype=torch.uint8, device=device)
        counts = [rows] * group.size
        group.all_to_all(sent, counts, counts)
        times = []
        for _ in range(_REPEATS):
            _finish(device)
            began = time.perf_counter()
            for _ in range(_OPERATIONS):
                group.all_to_all(sent, counts, counts)
            _finish(device)
            times.append((time.perf_counter() - began) / _OPERATIONS)
        return median(times)

    rows = max(1, size // 256 // group.size)
    latency_s, whole_s = seconds(1), seconds(rows)
    sent = rows * 256 * (group.size - 1)
    return sent / max(whole_s - latency_s, 0.1 * whole_s), latency_s


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
