"""How long the device itself takes for one kernel: the host's part of a launch left out, and no input in its caches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice

import torch

from bench.measure.timing import WARM_UP, Spread

REPEATS = 30
_CACHE_TIMES = 3  # as large as the L2 cache, at least, all inputs that take turns are together
_MOST_SETS = 16
_CLOCK_HZ = 2e9  # of a GPU, roughly: it turns seconds of pause into cycles


def input_sets(bytes_of_one: int, device: torch.device) -> int:
    """How many sets of inputs must take turns, so that none is still in the cache when its turn comes again."""
    if device.type != "cuda":
        return 2
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(_MOST_SETS, 1 + math.ceil(_CACHE_TIMES * cache / max(1, bytes_of_one)))


def time_kernel(calls: Sequence[Callable[[], object]], device: torch.device, repeats: int = REPEATS) -> Spread:
    """The calls take turns, each doing the same to other inputs; none may wait for the device.

    On a GPU all repeats are queued behind a pause that is long enough for the host to get ahead, and timed by events
    around each: short kernels are launched by Python more slowly than they run.
    """
    if device.type != "cuda":
        return Spread.of([_seconds(call) for call in islice(cycle(calls), 1 + repeats)][1:])
    for call in islice(cycle(calls), max(WARM_UP, len(calls))):
        call()
    torch.cuda.synchronize(device)
    host_s = max(_seconds(call) for call in islice(cycle(calls), WARM_UP))
    torch.cuda.synchronize(device)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * repeats)]
    torch.cuda._sleep(int((0.005 + 2 * host_s * repeats) * _CLOCK_HZ))
    for repeat, call in enumerate(islice(cycle(calls), repeats)):
        events[2 * repeat].record()
        call()
        events[2 * repeat + 1].record()
    events[-1].synchronize()
    return Spread.of([events[at].elapsed_time(events[at + 1]) / 1e3 for at in range(0, len(events), 2)])


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
