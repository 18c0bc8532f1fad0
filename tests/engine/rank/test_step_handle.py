"""Waiting for a step, with a GPU that is only said to be there."""

from __future__ import annotations

import contextlib

import pytest
import torch

from engine.device.timing import record_time
from engine.rank.step_handle import StepHandle

GPU = torch.device("cuda", 0)


class FakeEvent:
    """An event of a device that gets to it at once, 0.25 s after the one before."""

    now_ms = 0.0
    waited: tuple[FakeEvent, ...] = ()

    def __init__(self, *, enable_timing: bool, blocking: bool) -> None:
        assert enable_timing
        self.blocking, self.device = blocking, GPU

    def record(self, stream: object) -> None:
        FakeEvent.now_ms += 250.0
        self.at_ms = FakeEvent.now_ms

    def synchronize(self) -> None:
        FakeEvent.waited += (self,)

    def elapsed_time(self, other: FakeEvent) -> float:
        return other.at_ms - self.at_ms


@pytest.fixture(autouse=True)
def _events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEvent, "waited", ())
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())


def test_a_thread_that_waits_for_a_step_sleeps() -> None:
    handle = StepHandle(GPU)
    handle.record()
    handle.record()
    times = handle.wait()
    assert (times.encode_s, times.denoise_s) == (0.25, 0.25)
    assert [event.blocking for event in FakeEvent.waited] == [True]


def test_what_nobody_waits_for_wakes_nobody() -> None:
    event = record_time(GPU)
    assert isinstance(event, FakeEvent)
    assert not event.blocking
