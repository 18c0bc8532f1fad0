"""Puts the fake device in the place of `torch.cuda`, and into every thread that starts meanwhile."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from engine.kernels.attention.backends import VARLEN
from engine.kernels.jit import Kernel
from engine.rank.rank import Rank
from tests.fake_cuda.clocks import Clock, Event, Stream, Timeline, join
from tests.fake_cuda.graphs import CUDAGraph, graph, graph_pool_handle, without_modes
from tests.fake_cuda.memory import Memory
from tests.fake_cuda.modes import modes
from tests.fake_cuda.references import REPLACED, attend

_CAPABILITY = (9, 0)
# Who asks a tensor whether it is on a GPU to choose between a kernel and its reference.
_REFERENCES = ("engine.kernels.", "engine.model.")


class _Generator:
    """Random numbers of any device are the CPU's."""

    _real = torch.Generator

    def __new__(cls, device: Any = None) -> Any:
        return cls._real()


class FakeCuda(AbstractContextManager["FakeCuda"]):
    """One device. See the package."""

    def __init__(self, total_memory: int = 80 * 10**9, references: Sequence[str] = _REFERENCES) -> None:
        """references: beginnings of the names of modules that compute by their references, not by kernels."""
        self.timeline = Timeline()
        self.memory = Memory(self.timeline, total_memory)
        self.device = torch.device("cuda", 0)
        self._modes = modes(self.memory, references)
        self._stack = ExitStack()

    @property
    def violations(self) -> list[str]:
        """What was broken until now, each once: "rule: …"."""
        return self.timeline.violations

    def check(self) -> None:
        """Raise `AssertionError` if a rule was broken."""
        assert not self.violations, "\n".join(["the runtime relies on what a GPU does not promise:", *self.violations])

    @contextmanager
    def step(self) -> Iterator[None]:
        """This thread queues a step."""
        thread = self.timeline.thread
        thread.in_step += 1
        try:
            yield
        finally:
            thread.in_step -= 1

    @contextmanager
    def waits_allowed(self) -> Iterator[None]:
        """This thread may wait although it queues a step."""
        thread = self.timeline.thread
        thread.may_wait += 1
        try:
            yield
        finally:
            thread.may_wait -= 1

    def allow_waits(self, owner: Any, name: str) -> None:
        """A method in which the host may wait inside of a step, as long as this device is there."""
        self._wrap(owner, name, self.waits_allowed)

    def __enter__(self) -> FakeCuda:
        if gc.isenabled():
            gc.disable()  # else what one thread lets go of may be freed by another
            self._stack.callback(gc.enable)
        Stream.timeline = Event.timeline = self.timeline
        CUDAGraph.memory = self.memory
        for name, value in self._functions().items():
            self._stack.enter_context(patch.object(torch.cuda, name, value))
        self._stack.enter_context(patch.object(torch, "Generator", _Generator))
        record_stream = self.memory.record_stream
        self._stack.enter_context(
            patch.object(torch.Tensor, "record_stream", lambda tensor, stream: record_stream(tensor, stream))
        )
        for replaced in REPLACED:
            self._stack.enter_context(patch.object(*replaced))
        self._stack.enter_context(patch.dict(VARLEN, triton=attend))
        self._follow_threads()
        self._wrap(Rank, "execute", self.step)
        self._stack.enter_context(patch.object(Kernel, "__getitem__", self._launching(Kernel.__getitem__)))
        self._stack.enter_context(self._modes())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _functions(self) -> dict[str, Any]:
        timeline, memory = self.timeline, self.memory
        thread = timeline.thread

        def synchronize(device: Any = None) -> None:
            timeline.host_waits(self._everything(), "torch.cuda.synchronize")

        def empty_cache() -> None:
            timeline.host_waits(self._everything(), "torch.cuda.empty_cache")  # as freeing memory does

        def used(device: Any = None) -> int:
            return memory.allocated

        return {
            "Stream": Stream,
            "Event": Event,
            "CUDAGraph": CUDAGraph,
            "graph": graph,
            "graph_pool_handle": graph_pool_handle,
            "stream": timeline.on,
            "set_stream": lambda stream: setattr(thread, "stream", stream),
            "current_stream": lambda device=None: timeline.current(),
            "default_stream": lambda device=None: timeline.default,
            "is_current_stream_capturing": lambda: thread.graph is not None,
            "synchronize": synchronize,
            "empty_cache": empty_cache,
            "mem_get_info": lambda device=None: (memory.total - memory.allocated, memory.total),
            **dict.fromkeys(("memory_allocated", "memory_reserved", "max_memory_allocated"), used),
            "reset_peak_memory_stats": lambda device=None: None,
            "set_per_process_memory_fraction": lambda fraction, device=None: None,
            "device": lambda device: nullcontext(),
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "set_device": lambda device: None,
            "get_device_name": lambda device=None: "a fake",
            "get_device_capability": lambda device=None: _CAPABILITY,
            "get_device_properties": lambda device=None: SimpleNamespace(
                name="a fake", total_memory=memory.total, major=_CAPABILITY[0], minor=_CAPABILITY[1]
            ),
        }

    def _everything(self) -> Clock:
        with self.timeline.lock:
            return {stream.number: stream.clock.get(stream.number, 0) for stream in self.timeline.streams}

    def _wrap(self, owner: Any, name: str, context: Callable[[], Any]) -> None:
        original = getattr(owner, name)

        def within(*args: Any, **kwargs: Any) -> Any:
            with context():
                return original(*args, **kwargs)

        self._stack.enter_context(patch.object(owner, name, within))

    def _follow_threads(self) -> None:
        """Threads see this device, and know what those know that gave them work or a result."""
        thread = self.timeline.thread
        run, submit, result = threading.Thread.run, ThreadPoolExecutor.submit, Future.result
        exception, done = Future.exception, Future.done
        entered = self._modes

        def run_on_device(self: threading.Thread) -> None:
            with entered():
                run(self)

        def submit_knowing(self: ThreadPoolExecutor, work: Any, /, *args: Any, **kwargs: Any) -> Any:
            before, after = dict(thread.clock), Clock()

            def knowing(*args: Any, **kwargs: Any) -> Any:
                join(thread.clock, before)
                try:
                    return work(*args, **kwargs)
                finally:
                    join(after, thread.clock)

            future: Any = submit(self, knowing, *args, **kwargs)
            future.fake_clock = after
            return future

        def learn(future: Any) -> None:
            join(thread.clock, getattr(future, "fake_clock", {}))

        def result_known(self: Any, timeout: float | None = None) -> Any:
            try:
                return result(self, timeout)
            finally:
                learn(self)

        def exception_known(self: Any, timeout: float | None = None) -> Any:
            error = exception(self, timeout)
            learn(self)
            return error

        def done_known(self: Any) -> bool:
            if is_done := done(self):
                learn(self)
            return is_done

        for owner, name, value in (
            (threading.Thread, "run", run_on_device),
            (ThreadPoolExecutor, "submit", submit_knowing),
            (Future, "result", result_known),
            (Future, "exception", exception_known),
            (Future, "done", done_known),
        ):
            self._stack.enter_context(patch.object(owner, name, value))

    def _launching(self, launcher: Callable[..., Any]) -> Callable[..., Any]:
        """A Triton kernel's launch, in the interpreter: all its tensors count as read and written."""
        memory, timeline = self.memory, self.timeline

        def getitem(kernel: Kernel, grid: Any) -> Callable[..., None]:
            def launch(*args: Any, **kwargs: Any) -> None:
                name = kernel.function.__name__
                uses = [
                    (value, block, True)
                    for value in [*args, *kwargs.values()]
                    if isinstance(value, torch.Tensor) and (block := memory.find(value)) is not None
                ]

                def run(*args: Any, **kwargs: Any) -> None:
                    with without_modes():
                        launcher(kernel, grid)(*args, **kwargs)

                if timeline.thread.graph is not None:
                    for tensor, block, _ in uses:
                        timeline.thread.graph.will_overwrite(tensor, block)
                    run(*args, **kwargs)
                    timeline.thread.graph.add(run, args, kwargs, uses, [])
                    return
                stream, count = timeline.enqueue(name)
                for _, block, _ in uses:
                    memory.use(block, stream, count, name, writes=True)
                run(*args, **kwargs)

            return launch

        return getitem
