"""Copies from host memory to the device, beside what it computes: on a GPU in a stream, on a CPU in a thread."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

# What the current thread or, on a GPU, its stream does after this call comes after a copy. Raises what the copy raised.
Wait = Callable[[], None]


class Copier(ABC):
    """Copies one after the other, in the order in which it is told."""

    @abstractmethod
    def copy(self, target: torch.Tensor, source: torch.Tensor) -> Wait:
        """Begin when what the current thread or stream has begun is done. Both are (bytes,) uint8."""

    @abstractmethod
    def settle(self) -> None:
        """Return when what the current thread or stream has begun is done."""

    @abstractmethod
    def close(self) -> None:
        """Return when all is copied; nothing more may be."""


def make_copier(device: torch.device) -> Copier:
    """Make a copier to this device."""
    return _StreamCopier(device) if device.type == "cuda" else _ThreadCopier()


def copy_bytes(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy (bytes,) uint8, on a GPU in its current stream."""
    target.copy_(source, non_blocking=True)


class _ThreadCopier(Copier):
    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="weights")

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> Wait:
        return self._executor.submit(copy_bytes, target, source).result

    def settle(self) -> None:
        """A thread has done what it has begun."""

    def close(self) -> None:
        self._executor.shutdown(wait=True)


class _StreamCopier(Copier):
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> Wait:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            copy_bytes(target, source)
            copied = torch.cuda.Event()
            copied.record(self._stream)
        return lambda: torch.cuda.current_stream(self._device).wait_event(copied)

    def settle(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()

    def close(self) -> None:
        self._stream.synchronize()
