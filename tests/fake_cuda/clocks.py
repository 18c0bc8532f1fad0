"""Who has waited for what: streams, events and the host's threads, each with a vector clock."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from tests.fake_cuda.graphs import CUDAGraph

Clock = dict[int, int]  # by stream: how many of its operations are known to be done before
DEVICE = torch.device("cuda", 0)
_HERE = str(Path(__file__).parent)


def join(clock: Clock, other: Clock) -> None:
    """Know what the other knows too."""
    for stream, count in list(other.items()):
        if clock.get(stream, 0) < count:
            clock[stream] = count


class _Thread(threading.local):
    """What a thread of the host knows and does."""

    def __init__(self) -> None:
        self.clock: Clock = {}
        self.stream: Stream | None = None  # None: the default one
        self.in_step = 0
        self.may_wait = 0
        self.graph: CUDAGraph | None = None  # that is being recorded


class Timeline:
    """The streams of the device, the threads that give it work, and the rules that were broken."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.thread = _Thread()
        self.violations: list[str] = []
        self.calls: list[tuple[str, str]] = []  # each operation's stream and name
        self.numbers = itertools.count()
        self.streams: list[Stream] = []
        self.default = Stream(timeline=self)

    def current(self) -> Stream:
        return self.thread.stream or self.default

    def violate(self, rule: str, what: str) -> None:
        said = f"{rule}: {what}, at {site()}"
        with self.lock:
            if said not in self.violations:
                self.violations.append(said)

    def host_waits(self, clock: Clock, what: str) -> None:
        """This thread goes on when what the clock says is done."""
        if self.thread.graph is not None:
            self.violate("capture", f"the host waits in {what} while a graph is recorded")
        elif self.thread.in_step and not self.thread.may_wait:
            self.violate("wait", f"the host waits in {what} inside of a step")
        with self.lock:
            join(self.thread.clock, clock)

    def enqueue(self, name: str) -> tuple[Stream, int]:
        """Give the current stream an operation: the stream and the operation's number in it."""
        stream = self.current()
        with self.lock:
            join(stream.clock, self.thread.clock)
            stream.clock[stream.number] = stream.clock.get(stream.number, 0) + 1
            self.calls.append((str(stream), name))
            return stream, stream.clock[stream.number]

    @contextmanager
    def on(self, stream: Stream | None) -> Iterator[None]:
        """As `torch.cuda.stream`: None changes nothing."""
        before = self.thread.stream
        self.thread.stream = stream or before
        try:
            yield
        finally:
            self.thread.stream = before


class Stream:
    """As `torch.cuda.Stream`."""

    timeline: Timeline

    def __init__(self, device: Any = None, priority: int = 0, *, timeline: Timeline | None = None) -> None:
        self.timeline = timeline or self.timeline
        self.number = next(self.timeline.numbers)
        self.device, self.device_index, self.priority = DEVICE, 0, priority
        self.cuda_stream = self.number
        self.clock: Clock = {}
        self.timeline.streams.append(self)

    def __str__(self) -> str:
        return f"stream {self.number}" if self.number else "the default stream"

    def wait_event(self, event: Event) -> None:
        thread = self.timeline.thread
        if thread.graph is not None and event.clock and event.graph is not thread.graph:
            self.timeline.violate("capture", "a stream that is recorded waits for an event from outside")
        with self.timeline.lock:
            join(self.clock, event.clock)

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.record_event())

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        self.timeline.host_waits(self.clock, f"{self}.synchronize")

    def query(self) -> bool:
        clock = self.timeline.thread.clock
        return all(clock.get(stream, 0) >= count for stream, count in self.clock.items())


class Event:
    """As `torch.cuda.Event`."""

    timeline: Timeline

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self._times = enable_timing
        self.device = DEVICE
        self.clock: Clock = {}
        self.graph: CUDAGraph | None = None
        self._at = 0.0

    def record(self, stream: Stream | None = None) -> None:
        timeline = self.timeline
        stream = stream or timeline.current()
        with timeline.lock:
            join(stream.clock, timeline.thread.clock)
            self.clock = dict(stream.clock)
        self.graph = timeline.thread.graph
        self._at = time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None:
        (stream or self.timeline.current()).wait_event(self)

    def synchronize(self) -> None:
        self.timeline.host_waits(self.clock, "event.synchronize")

    def query(self) -> bool:
        """A device is seldom ready when it is asked: never before somebody has waited."""
        clock = self.timeline.thread.clock
        return all(clock.get(stream, 0) >= count for stream, count in self.clock.items())

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds, which mean nothing."""
        if not self._times or not end._times:
            raise ValueError("both events should be created with enable_timing=True")
        for event in (self, end):
            if not event.query():
                self.timeline.violate("unordered", "the time of an event is asked for that nobody has waited for")
        return max(1e-3, (end._at - self._at) * 1e3)


def site() -> str:
    """Where the innermost caller is that is neither torch's nor of this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        path = frame.f_code.co_filename
        of_this = path.startswith(_HERE) and "test_" not in Path(path).name
        if not of_this and "site-packages" not in path and "/lib/python" not in path:
            return f"{Path(path).parent.name}/{Path(path).name}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return "nowhere"
