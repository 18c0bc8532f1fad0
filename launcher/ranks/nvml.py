"""Hears of GPUs' errors from NVML, NVIDIA's library of its driver, in a thread: NVML may hang when a GPU fails."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from launcher.ranks.gpu_health import ECC, LOST, REMAPPING, Gpu, GpuError

_WAIT_MS = 500  # for an event, before the thread looks whether it is to read counters, or to end


class NvmlWatch:
    """Watches GPUs until `close`. Where there is no NVML it does nothing.

    on_found: gets, in the thread, the GPUs by the UUIDs that CUDA has for them, those that NVML knows. on_error: gets,
    in the thread, each error that NVML reports of them.
    """

    def __init__(
        self,
        uuids: Sequence[str],
        on_found: Callable[[dict[str, Gpu]], None],
        on_error: Callable[[GpuError], None],
    ) -> None:
        self._uuids, self._on_found, self._on_error = uuids, on_found, on_error
        self._questions: queue.SimpleQueue[Future[None]] = queue.SimpleQueue()
        self._closed, self._ended = threading.Event(), threading.Event()
        self._devices: list[_Device] = []
        self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)
        self._thread.start()

    def look(self) -> Future[None]:
        """Read the counters of errors. What has grown is reported before the future is done; it may never be."""
        asked: Future[None] = Future()
        asked.set_running_or_notify_cancel()  # so that nobody who stops waiting can cancel it
        self._questions.put(asked)
        if self._ended.is_set():
            self._answer()
        return asked

    def close(self) -> None:
        """Let the thread end, within half a second unless NVML hangs."""
        self._closed.set()

    def _run(self) -> None:
        # Whatever its binding raises, which differs from version to version: that errors of GPUs are not heard is no
        # reason to end a server.
        with suppress(Exception):
            import pynvml

            pynvml.nvmlInit()
            try:
                self._watch(pynvml)
            finally:
                pynvml.nvmlShutdown()
        self._ended.set()
        self._answer()

    def _watch(self, nvml: Any) -> None:
        found = {uuid: device for uuid in self._uuids if (device := _find(nvml, uuid)) is not None}
        self._devices = list({device.gpu.index: device for device in found.values()}.values())
        self._on_found({uuid: device.gpu for uuid, device in found.items()})
        events = self._register(nvml)
        while self._devices and not self._closed.is_set():
            if events is None:
                self._closed.wait(_WAIT_MS / 1000)
            else:
                try:
                    self._report(nvml, nvml.nvmlEventSetWait_v2(events, _WAIT_MS))
                except nvml.NVMLError_Timeout:
                    pass
                except nvml.NVMLError:
                    if self._has_lost_one(nvml):
                        events = self._register(nvml)  # of those that are left
                    self._closed.wait(_WAIT_MS / 1000)  # or it might raise all the time
            self._answer(nvml)
        if events is not None:
            nvml.nvmlEventSetFree(events)

    def _register(self, nvml: Any) -> Any:
        """Ask for the events of all devices. None where no device has any."""
        events, any_is_supported = None, False
        with suppress(nvml.NVMLError):
            events = nvml.nvmlEventSetCreate()
        for device in self._devices:
            with suppress(nvml.NVMLError):
                wanted = nvml.nvmlEventTypeXidCriticalError | nvml.nvmlEventTypeDoubleBitEccError
                supported = wanted & nvml.nvmlDeviceGetSupportedEventTypes(device.handle)
                nvml.nvmlDeviceRegisterEvents(device.handle, supported, events)
                any_is_supported = True
        return events if any_is_supported else None

    def _report(self, nvml: Any, event: Any) -> None:
        index = nvml.nvmlDeviceGetIndex(event.device)
        for device in self._devices:
            if device.gpu.index == index:
                is_xid = event.eventType == nvml.nvmlEventTypeXidCriticalError
                self._on_error(GpuError(device.gpu, str(event.eventData) if is_xid else ECC))

    def _has_lost_one(self, nvml: Any) -> bool:
        """Report devices that cannot be reached any more, and forget them. Returns whether there were any."""
        lost = []
        for device in self._devices:
            try:
                nvml.nvmlDeviceGetUUID(device.handle)
            except nvml.NVMLError_GpuIsLost:
                lost.append(device)
                self._on_error(GpuError(device.gpu, LOST))
            except nvml.NVMLError:
                pass
        self._devices = [device for device in self._devices if device not in lost]
        return bool(lost)

    def _answer(self, nvml: Any = None) -> None:
        """Read counters, if somebody waits for that."""
        with suppress(queue.Empty):
            while True:
                asked = self._questions.get_nowait()
                if nvml is not None:
                    self._has_lost_one(nvml)
                    for device in self._devices:
                        for code in device.grown(nvml):
                            self._on_error(GpuError(device.gpu, code))
                asked.set_result(None)


class _Device:
    """A GPU that NVML knows, and what its counters said last."""

    def __init__(self, nvml: Any, handle: Any, gpu: Gpu) -> None:
        self.handle, self.gpu = handle, gpu
        self._counts: dict[str, int] = {}
        list(self.grown(nvml))

    def grown(self, nvml: Any) -> Iterator[str]:
        """Read all counters, and yield the codes of those that are larger than before."""
        reads = {
            ECC: lambda: nvml.nvmlDeviceGetTotalEccErrors(
                self.handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
            ),
            REMAPPING: lambda: nvml.nvmlDeviceGetRemappedRows(self.handle)[3],
        }
        for code, read in reads.items():
            with suppress(nvml.NVMLError):  # most GPUs for desktops count nothing
                count = int(read())
                if count > self._counts.setdefault(code, count):
                    yield code
                self._counts[code] = count


def _find(nvml: Any, uuid: str) -> _Device | None:
    """Find the GPU that CUDA has this UUID for, which may be the one that a MIG instance is on."""
    for selector in (f"GPU-{uuid}", f"MIG-{uuid}"):  # CUDA has them without the prefix
        with suppress(nvml.NVMLError):
            handle = nvml.nvmlDeviceGetHandleByUUID(selector)
            if selector.startswith("MIG"):
                handle = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
            gpu = Gpu(nvml.nvmlDeviceGetIndex(handle), nvml.nvmlDeviceGetName(handle), selector)
            return _Device(nvml, handle, gpu)
    return None
