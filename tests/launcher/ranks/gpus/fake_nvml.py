"""A `pynvml` with GPUs whose errors the tests say, and nothing behind it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any


class NVMLError(Exception):
    """As pynvml's own, whose kinds are attributes of the module, too."""


class NVMLError_Timeout(NVMLError): ...


class NVMLError_GpuIsLost(NVMLError): ...


class NVMLError_NotSupported(NVMLError): ...


class NVMLError_NotFound(NVMLError): ...


class NVMLError_LibraryNotFound(NVMLError): ...


class FakeNvml(ModuleType):
    """GPUs 0, 1, … with the UUIDs that are given. Each call that NVML is asked for is in `calls`.

    raising: by function: what it raises, if its arguments fit. counters: uncorrectable errors, by index.
    """

    NVMLError = NVMLError
    NVMLError_Timeout = NVMLError_Timeout
    NVMLError_GpuIsLost = NVMLError_GpuIsLost
    nvmlEventTypeXidCriticalError = 8
    nvmlEventTypeDoubleBitEccError = 2
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0

    def __init__(self, *uuids: str) -> None:
        super().__init__("pynvml")
        self._uuids = uuids
        self._events: queue.SimpleQueue[SimpleNamespace | Exception] = queue.SimpleQueue()
        self.calls: list[str] = []
        self.raising: dict[str, Callable[..., Exception | None]] = {}
        self.counters = dict.fromkeys(range(len(uuids)), 0)
        self.ended = threading.Event()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("nvml") or not callable(found):
            return found

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            if (error := self.raising.get(name, lambda *_: None)(*arguments)) is not None:
                raise error
            return found(*arguments)

        return call

    def happens(self, index: int, xid: int) -> None:
        """Report an Xid."""
        self._events.put(SimpleNamespace(device=index, eventType=8, eventData=xid))

    def wait_raises(self, error: Exception) -> None:
        """Raise an error out of the wait for events, once."""
        self._events.put(error)

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None:
        self.ended.set()

    def nvmlDeviceGetHandleByUUID(self, selector: str) -> int:
        for index, uuid in enumerate(self._uuids):
            if selector in (f"GPU-{uuid}", uuid):
                return index
        raise NVMLError_NotFound

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: int) -> int:
        return handle

    def nvmlDeviceGetIndex(self, handle: int) -> int:
        return handle

    def nvmlDeviceGetName(self, handle: int) -> str:
        return "Fake H200"

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return self._uuids[handle]

    def nvmlDeviceGetSupportedEventTypes(self, handle: int) -> int:
        return 8 | 2 | 1

    def nvmlDeviceRegisterEvents(self, handle: int, kinds: int, events: object) -> None:
        assert kinds == 8 | 2

    def nvmlEventSetCreate(self) -> object:
        return object()

    def nvmlEventSetFree(self, events: object) -> None: ...

    def nvmlEventSetWait_v2(self, events: object, timeout_ms: int) -> SimpleNamespace:
        try:
            event = self._events.get(timeout=timeout_ms / 1000)
        except queue.Empty:
            raise NVMLError_Timeout from None
        if isinstance(event, Exception):
            raise event
        return event

    def nvmlDeviceGetTotalEccErrors(self, handle: int, kind: int, counter: int) -> int:
        return self.counters[handle]

    def nvmlDeviceGetRemappedRows(self, handle: int) -> tuple[int, int, int, int]:
        raise NVMLError_NotSupported
