"""Copies from host memory to the device, beside what it computes: on a GPU in a stream, on a CPU in a thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

# What the current thread or, on a GPU, its stream does after this call comes after a copy. Raises what the copy raised.
Wait = Callable[[], None]


class Copier:
    """Copies one after the other, in the order in which it is told."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="weights")  # has no thread until it gets work

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> Wait:
        """Begin when what the current thread or stream has begun is done. Both are (bytes,) uint8."""
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
        """Return when all is copied; nothing more may be."""
        self._executor.shutdown(wait=True)
        if self._stream is not None:
            self._stream.synchronize()


def copy_bytes(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy (bytes,) uint8, on a GPU in its current stream."""
    target.copy_(source, non_blocking=True)
