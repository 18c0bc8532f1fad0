"""Weights that come and go: what is on the device is counted, and what is not there lies in host memory, ready to be
copied.

All of it is the same on a CPU, where "the device" is other host memory: so it is tested without a GPU.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from engine.planning.weight_bytes import aligned

_logger = logging.getLogger(__name__)
# Makes the current thread or, on a GPU, its current stream wait for a copy. Raises what the copy raised.
Wait = Callable[[], None]


class WeightLedger:
    """The weight bytes on a device: `resident` now, and at most (`peak`). Any thread may use it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.resident = self.peak = 0
        self._lock = threading.Lock()

    def count(self, size: int) -> None:
        """Count `size` bytes that have come to the device or, if negative, left it."""
        with self._lock:
            self.resident += size
            self.peak = max(self.peak, self.resident)

    def allocate(self, size: int) -> torch.Tensor:
        """Allocate and count a buffer on the device, (size,) uint8."""
        with torch.inference_mode(False):  # a parameter cannot be a view of an inference tensor
            buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
        self.count(size)
        return buffer


class ParameterBucket:
    """Parameters that are copied together: one buffer of `size` bytes in `host` memory, and one of the same layout
    on the device while they are there."""

    def __init__(self, parameters: Iterable[nn.Parameter], host: HostMemory) -> None:
        """Move the parameters, which are in host memory, into a buffer there."""
        self._starts: dict[nn.Parameter, int] = {}  # from which byte of the buffer on each lies
        self.size = 0
        for parameter in parameters:
            self._starts[parameter] = self.size
            self.size = aligned(self.size + parameter.nbytes)
        self.host = host.allocate(self.size)
        for parameter, start in self._starts.items():
            _view(self.host, start, parameter).copy_(parameter.data)
        self.withdraw()

    def place_in(self, buffer: torch.Tensor) -> None:
        """Read the parameters from a buffer on the device from now on: (at least `size`,) uint8."""
        for parameter, start in self._starts.items():
            parameter.data = _view(buffer, start, parameter)

    def withdraw(self) -> None:
        """Read the parameters from host memory again."""
        self.place_in(self.host)


def _view(buffer: torch.Tensor, start: int, like: torch.Tensor) -> torch.Tensor:
    """What lies in a buffer from byte `start` on, of the shape, strides and dtype of another tensor."""
    return buffer[start : start + like.nbytes].view(like.dtype).as_strided(like.shape, like.stride())


class HostMemory:
    """Allocates pinned buffers, which a GPU reads while the host goes on; where the system grants none, ordinary ones,
    from which copies are slower and make the host wait."""

    def __init__(self, device: torch.device) -> None:
        self._pin = device.type == "cuda"

    def allocate(self, size: int) -> torch.Tensor:
        """Allocate (size,) uint8."""
        if self._pin:
            try:
                return pinned(size)
            except RuntimeError as error:
                self._pin = False
                reason = str(error).partition("\n")[0]
                _logger.warning("no pinned host memory, so that copying weights takes longer: %s", reason)
        return torch.empty(size, dtype=torch.uint8)


def pinned(size: int) -> torch.Tensor:
    """Allocate (size,) uint8 in pinned memory. Raises `RuntimeError` where the system grants none."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


class Copier:
    """Copies from host memory to the device while that computes, on a GPU in a stream of its own, on a CPU in a thread:
    one copy at a time, in the order of the calls."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="weights")  # has no thread until it gets work

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> Wait:
        """Queue a copy to follow what the current thread or stream has begun. Both are (bytes,) uint8."""
        if self._stream is None:
            return self._executor.submit(copy_bytes, target, source).result
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            copy_bytes(target, source)
            copied = torch.cuda.Event()
            copied.record(self._stream)
        return lambda: torch.cuda.current_stream(self._device).wait_event(copied)

    def settle(self) -> None:
        """Return when what the current thread or stream has begun is done."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).synchronize()

    def close(self) -> None:
        """Return when all is copied. `copy` may not be called any more."""
        self._executor.shutdown(wait=True)
        if self._stream is not None:
            self._stream.synchronize()


def copy_bytes(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy (bytes,) uint8, on a GPU in its current stream."""
    target.copy_(source, non_blocking=True)
