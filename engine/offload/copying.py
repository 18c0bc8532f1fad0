"""Copies from host memory to the device, beside what it computes: on a GPU in a stream, on a CPU in a thread."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from engine.device.timing import DeviceTime, record_time


class Copy(ABC):
    """A copy under way."""

    @abstractmethod
    def wait(self) -> None:
        """What the current thread or, on a GPU, its stream does from now on comes after the copy. Raises what the copy
        raised."""

    @abstractmethod
    def span(self) -> tuple[DeviceTime, DeviceTime]:
        """When it began and ended. Only once it has been waited for."""


class Copier(ABC):
    """Copies one after the other, in the order in which it is told."""

    @abstractmethod
    def copy(self, target: torch.Tensor, source: torch.Tensor) -> Copy:
        """Begin when what the current thread or stream has begun is done. Both of one size and dtype."""

    @abstractmethod
    def mark(self) -> DeviceTime:
        """Now, or on a GPU when the current stream gets here."""

    @abstractmethod
    def settle(self) -> None:
        """Return when what the current thread or stream has begun is done."""

    @abstractmethod
    def close(self) -> None:
        """Return when all is copied; nothing more may be."""


def make_copier(device: torch.device) -> Copier:
    return _StreamCopier(device) if device.type == "cuda" else _ThreadCopier()


def copy_bytes(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source, non_blocking=True)


@dataclass(frozen=True)
class _ThreadCopy(Copy):
    future: Future[tuple[float, float]]

    def wait(self) -> None:
        self.future.result()

    def span(self) -> tuple[DeviceTime, DeviceTime]:
        return self.future.result()


class _ThreadCopier(Copier):
    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="weights")

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> Copy:
        def run() -> tuple[float, float]:
            began = time.perf_counter()
            copy_bytes(target, source)
            return began, time.perf_counter()

        return _ThreadCopy(self._executor.submit(run))

    def mark(self) -> DeviceTime:
        return time.perf_counter()

    def settle(self) -> None:
        """A thread has done what it has begun."""

    def close(self) -> None:
        self._executor.shutdown(wait=True)


@dataclass(frozen=True)
class _StreamCopy(Copy):
    began: DeviceTime
    ended: DeviceTime

    def wait(self) -> None:
        assert isinstance(self.ended, torch.cuda.Event)
        torch.cuda.current_stream().wait_event(self.ended)

    def span(self) -> tuple[DeviceTime, DeviceTime]:
        return self.began, self.ended


class _StreamCopier(Copier):
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> Copy:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            began = self.mark()
            copy_bytes(target, source)
            ended = self.mark()
        return _StreamCopy(began, ended)

    def mark(self) -> DeviceTime:
        return record_time(self._device)

    def settle(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()

    def close(self) -> None:
        self._stream.synchronize()
