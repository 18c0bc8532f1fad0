"""What is heard of NVML, and that nothing that it raises ends anything."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator

import pytest

from launcher.ranks import nvml
from launcher.ranks.gpu_health import ECC, LOST, Gpu, GpuError
from launcher.ranks.nvml import NvmlWatch
from tests.launcher.processes import PATIENCE_S
from tests.launcher.ranks.gpus import fake_nvml
from tests.launcher.ranks.gpus.fake_nvml import FakeNvml


class Watched:
    """An NVML with two GPUs and a MIG instance, and what a watch of the last two hears of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nvml = FakeNvml("a", "b", "MIG-c")
        self.found: queue.SimpleQueue[dict[str, Gpu]] = queue.SimpleQueue()
        self.errors: queue.SimpleQueue[GpuError] = queue.SimpleQueue()
        monkeypatch.setitem(sys.modules, "pynvml", self.nvml)

    def watch(self) -> NvmlWatch:
        self.watching = NvmlWatch(("b", "c", "unknown"), self.found.put, self.errors.put)
        return self.watching

    def next_error(self) -> tuple[int, str]:
        error = self.errors.get(timeout=PATIENCE_S)
        return error.gpu.index, error.code


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr(nvml, "_WAIT_MS", 20)
    watched = Watched(monkeypatch)
    yield watched
    watched.watching.close()
    watched.watching._thread.join(PATIENCE_S)
    assert not watched.watching._thread.is_alive()
    calls = watched.nvml.calls
    assert ("nvmlShutdown" in calls) == ("nvmlDeviceGetHandleByUUID" in calls)


def test_gpus_are_found_by_their_uuids_and_their_errors_are_heard(watched: Watched) -> None:
    watched.watch()
    second, third = Gpu(1, "Fake H200", "GPU-b"), Gpu(2, "Fake H200", "MIG-c")
    assert watched.found.get(timeout=PATIENCE_S) == {"b": second, "c": third}
    for index, xid in ((1, 79), (0, 79), (2, 31)):  # the first is nobody's here
        watched.nvml.happens(index, xid)
    assert [watched.next_error() for _ in range(2)] == [(1, "79"), (2, "31")]


def test_counters_that_have_grown_are_reported_once(watched: Watched) -> None:
    watched.nvml.counters[1] = 5
    watch = watched.watch()
    watch.look().result(PATIENCE_S)
    watched.nvml.counters[1] = 6
    watch.look().result(PATIENCE_S)
    watch.look().result(PATIENCE_S)
    assert watched.next_error() == (1, ECC)
    assert watched.errors.empty()


def test_a_lost_gpu_is_reported_once_and_the_others_are_watched_on(watched: Watched) -> None:
    lost = fake_nvml.NVMLError_GpuIsLost()
    watched.nvml.raising["nvmlDeviceGetUUID"] = lambda handle: lost if handle == 1 else None
    watched.watch()
    for _ in range(2):
        watched.nvml.wait_raises(lost)
    watched.nvml.happens(2, 95)
    assert [watched.next_error() for _ in range(2)] == [(1, LOST), (2, "95")]


@pytest.mark.parametrize(
    "function",
    [
        *("nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetName", "nvmlEventSetCreate", "nvmlEventSetFree"),
        *("nvmlDeviceRegisterEvents", "nvmlDeviceGetSupportedEventTypes", "nvmlDeviceGetTotalEccErrors"),
        *("nvmlEventSetWait_v2", "nvmlShutdown"),
    ],
)
@pytest.mark.parametrize("error", ["NVMLError_NotSupported", "NVMLError_LibraryNotFound", "NVMLError_GpuIsLost"])
def test_whatever_nvml_raises_questions_are_answered(watched: Watched, function: str, error: str) -> None:
    watched.nvml.raising[function] = lambda *_: getattr(fake_nvml, error)()
    watch = watched.watch()
    for _ in range(2):
        watch.look().result(PATIENCE_S)


def test_without_nvml_nothing_is_asked(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # so that importing it fails
    watched.watch().look().result(PATIENCE_S)
    assert watched.found.empty()
    assert watched.nvml.calls == []


def test_what_is_asked_of_one_that_hangs_is_never_answered_and_harms_nobody(watched: Watched) -> None:
    released = threading.Event()
    watched.nvml.raising["nvmlEventSetWait_v2"] = lambda *_: released.wait() and None
    asked = watched.watch().look()
    with pytest.raises(TimeoutError):
        asked.result(0.2)
    released.set()
