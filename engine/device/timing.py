"""How far a device has got, and when."""

from __future__ import annotations

import time

import torch

# When a device got somewhere: seconds of the host's clock, or on a GPU an event in a stream.
DeviceTime = float | torch.cuda.Event


def record_time(device: torch.device, *, awaited: bool = False) -> DeviceTime:
    """Record now, or on a GPU when its current stream gets here.

    awaited: a thread that waits for it sleeps and wakes a little later, where it would otherwise keep a core busy.
    """
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True, blocking=awaited)
    event.record(torch.cuda.current_stream(device))
    return event


def wait_for(it: DeviceTime) -> None:
    """Wait until the device has got to a recorded time."""
    if not isinstance(it, float):
        with torch.cuda.device(it.device):  # else a new thread's, GPU 0, on which a context takes memory
            it.synchronize()


def seconds_between(first: DeviceTime, second: DeviceTime) -> float:
    """Return the seconds between two times of one device, which must have got to both."""
    if isinstance(first, float):
        assert isinstance(second, float)
        return second - first
    assert isinstance(second, torch.cuda.Event)
    return float(first.elapsed_time(second)) / 1e3
