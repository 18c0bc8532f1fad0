"""Weights that come and go: what is on the device is counted, and what is not there lies in host memory, ready to be
copied.

All of it is the same on a CPU, where "the device" is other host memory: so it is tested without a GPU.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from engine.planning.weight_bytes import aligned

_logger = logging.getLogger(__name__)


class WeightLedger:
    """The weight bytes on a device, now and at most, by component. Any thread may use it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._lock = threading.Lock()
        self._resident: Counter[str] = Counter()
        self._peaks: Counter[str] = Counter()
        self.peak = 0

    @property
    def resident(self) -> int:
        return self._resident.total()

    def resident_of(self, component: str) -> int:
        return self._resident[component]

    def peak_of(self, component: str) -> int:
        return self._peaks[component]

    def count(self, component: str, size: int) -> None:
        """So many bytes have come to the device or, if negative, left it."""
        with self._lock:
            self._resident[component] += size
            self._peaks[component] = max(self._peaks[component], self._resident[component])
            self.peak = max(self.peak, self.resident)

    def allocate(self, component: str, size: int) -> torch.Tensor:
        """A buffer of so many bytes on the device, counted: (size,) uint8."""
        with torch.inference_mode(False):  # a parameter cannot be a view of an inference tensor
            buffer = torch.empty(size, dtype=torch.uint8, device=self.device)
        self.count(component, size)
        return buffer


@dataclass(frozen=True)
class _Place:
    """Where a parameter lies in a buffer."""

    parameter: nn.Parameter
    start: int
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        length = self.parameter.numel() * self.dtype.itemsize
        return buffer[self.start : self.start + length].view(self.dtype).as_strided(self.size, self.stride)


class ParameterBucket:
    """Parameters that travel together: one buffer in host memory, and one of the same layout on the device while they
    are there."""

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
        """The parameters are read from a buffer on the device now, of at least `size` bytes."""
        for place in self._places:
            place.parameter.data = place.view(buffer)

    def withdraw(self) -> None:
        """The parameters are those in host memory again."""
        self.place_in(self.host)


class HostMemory:
    """Buffers in host memory, which a GPU can read by itself while the host does something else; where the system
    grants no such memory, ordinary ones, from which copies are slower and keep the host waiting."""

    def __init__(self, device: torch.device) -> None:
        self._pin = device.type == "cuda"
        self.size = 0

    def allocate(self, size: int) -> torch.Tensor:
        """(size,) uint8."""
        self.size += size
        if self._pin:
            try:
                return pinned(size)
            except RuntimeError as error:
                self._pin = False
                reason = str(error).partition("\n")[0]
                _logger.warning("no pinned host memory, so that copying weights takes longer: %s", reason)
        return torch.empty(size, dtype=torch.uint8)


def pinned(size: int) -> torch.Tensor:
    """(size,) uint8. Raises `RuntimeError` where the system grants no such memory."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)
