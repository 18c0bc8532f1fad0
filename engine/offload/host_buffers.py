"""Weights that come and go: what is on the device is counted, and what is not there lies in host memory, ready to be
copied.

All of it is the same on a CPU, where "the device" is other host memory: so it is tested without a GPU.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from engine.planning.weight_bytes import aligned

_logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class _Place:
    """Where a parameter lies in a buffer: from byte `start` on."""

    parameter: nn.Parameter
    start: int
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        length = self.parameter.numel() * self.dtype.itemsize
        return buffer[self.start : self.start + length].view(self.dtype).as_strided(self.size, self.stride)


class ParameterBucket:
    """Parameters that travel together: one buffer of `size` bytes in `host` memory, and one of the same layout on the
    device while they are there."""

    def __init__(self, parameters: Iterable[nn.Parameter], host: HostMemory) -> None:
        """Move the parameters, which are in host memory, into a buffer there."""
        self._places: list[_Place] = []
        self.size = 0
        for parameter in parameters:
            self._places.append(_Place(parameter, self.size, parameter.shape, parameter.stride(), parameter.dtype))
            self.size = aligned(self.size + parameter.numel() * parameter.element_size())
        self.host = host.allocate(self.size)
        for place in self._places:
            place.view(self.host).copy_(place.parameter.data)
        self.withdraw()

    def place_in(self, buffer: torch.Tensor) -> None:
        """Read the parameters from a buffer on the device from now on: (at least `size`,) uint8."""
        for place in self._places:
            place.parameter.data = place.view(buffer)

    def withdraw(self) -> None:
        """Read the parameters from host memory again."""
        self.place_in(self.host)


class HostMemory:
    """Allocates buffers in host memory that a GPU can read by itself while the host does something else; where the
    system grants no such memory, ordinary ones, from which copies are slower and keep the host waiting."""

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
    """Allocate (size,) uint8. Raises `RuntimeError` where the system grants no such memory."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)
