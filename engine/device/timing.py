"""When a device has got how far."""

from __future__ import annotations

import time

import torch

# Of the host's clock in seconds, or on a GPU an event in a stream.
DeviceTime = float | torch.cuda.Event


def record_time(device: torch.device, *, awaited: bool = False) -> DeviceTime:
    """Now, or on a GPU when its current stream gets here.

    awaited: by a thread that is to sleep meanwhile, where it otherwise keeps a core busy: it wakes a little later.
    """
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True, blocking=awaited)
    event.record(torch.cuda.current_stream(device))
    return event


def wait_for(it: DeviceTime) -> None:
    """Return when it is there."""
    if not isinstance(it, float):
        with torch.cuda.device(it.device):  # another thread's is GPU 0, of whose memory a context takes some
            it.synchronize()


def seconds_between(first: DeviceTime, second: DeviceTime) -> float:
    """Of two of one device, both of which must have come."""
    if isinstance(first, float):
        assert isinstance(second, float)
        return second - first
    assert isinstance(second, torch.cuda.Event)
    return float(first.elapsed_time(second)) / 1e3
