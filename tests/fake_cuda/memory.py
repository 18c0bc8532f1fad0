"""Memory of the device and of the host: what lies where, and which operations have touched it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tests.fake_cuda.clocks import Clock, Stream, Timeline

if TYPE_CHECKING:
    from tests.fake_cuda.graphs import CUDAGraph


@dataclass(frozen=True)
class Place:
    """Where new memory is to lie."""

    cuda: bool
    pinned: bool = False


@dataclass(frozen=True)
class _Write:
    stream: Stream
    count: int
    name: str


class Block:
    """A storage's memory, of the device or of the host where the device uses it. Dies with the storage."""

    def __init__(self, memory: Memory, place: Place, size: int, stream: Stream, graph: CUDAGraph | None = None) -> None:
        self.memory = memory
        self.cuda, self.pinned, self.size, self.stream, self.graph = place.cuda, place.pinned, size, stream, graph
        self.written: _Write | None = None  # last, and not known to all
        self.reads: Clock = {}  # since then
        self.uses: Clock = {}  # by other streams than the allocating one
        self.users: dict[int, Clock] = {}  # what the threads know that gave these their work, by its id
        self.recorded: set[int] = set()

    def __del__(self) -> None:
        if self.cuda:
            self.memory.take_back(self)


class Memory:
    """The blocks of one device, by storage."""

    def __init__(self, timeline: Timeline, total: int) -> None:
        self.timeline, self.total = timeline, total
        self.allocated = 0
        self.refuses: Callable[[int], bool] | None = None  # whether an allocation of this many bytes finds no memory

    def find(self, tensor: torch.Tensor) -> Block | None:
        """None for ordinary memory of the host."""
        return getattr(tensor.untyped_storage(), "fake_block", None)

    def is_cuda(self, tensor: torch.Tensor) -> bool:
        block = self.find(tensor)
        return block is not None and block.cuda

    def allocate(self, tensor: torch.Tensor, place: Place) -> Block:
        """Say where a new tensor's storage lies. Raises `torch.OutOfMemoryError` if there is none left."""
        storage, timeline = tensor.untyped_storage(), self.timeline
        size = storage.nbytes()
        graph = timeline.thread.graph if place.cuda else None
        if place.pinned and timeline.thread.graph is not None:
            timeline.violate("capture", "host memory is pinned while a graph is recorded")
        if place.cuda:
            if self.allocated + size > self.total or (self.refuses is not None and self.refuses(size)):
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes")
            with timeline.lock:
                self.allocated += size
        block = Block(self, place, size, timeline.current(), graph)
        storage.fake_block = block  # type: ignore[attr-defined]
        if graph is not None:
            graph.allocated(tensor, block)
        return block

    def take_back(self, block: Block) -> None:
        """The block's last tensor is gone."""
        timeline, stream = self.timeline, block.stream
        with timeline.lock:
            self.allocated -= block.size
            if block.graph is not None:
                return  # it is the pool's
            # a thread that used it has let go of it before, whichever was the last to do so
            clocks = [stream.clock, timeline.thread.clock, *block.users.values()]
            for other, count in block.uses.items():
                known = max(clock.get(other, 0) for clock in clocks)
                if other not in block.recorded and known < count:
                    what = f"memory of {stream} is given back while stream {other} may use it, without record_stream"
                    timeline.violate("freed", what)

    def use(self, block: Block, stream: Stream, count: int, name: str, *, writes: bool) -> None:
        """An operation of a stream reads a block, or writes it."""
        timeline = self.timeline
        with timeline.lock:
            self._check(block, stream.clock, f"{name} in {stream}", writes=writes)
            if stream is not block.stream:
                block.uses[stream.number] = count
                block.users[id(timeline.thread.clock)] = timeline.thread.clock
            if writes:
                block.written, block.reads = _Write(stream, count, name), {}
            else:
                block.reads[stream.number] = count

    def host_use(self, block: Block, name: str, *, writes: bool) -> None:
        """The host reads or writes memory of its own, now."""
        with self.timeline.lock:
            self._check(block, self.timeline.thread.clock, f"{name} by the host", writes=writes)

    def record_stream(self, tensor: torch.Tensor, stream: Stream) -> None:
        block = self.find(tensor)
        assert block is not None
        assert block.cuda, "record_stream of a tensor that is not on the device"
        block.recorded.add(stream.number)

    def settle(self, block: Block) -> None:
        """What was written last is there, whoever asks: the host has waited for it."""
        block.written = None

    def _check(self, block: Block, clock: Clock, what: str, *, writes: bool) -> None:
        last = block.written
        if last is not None and clock.get(last.stream.number, 0) < last.count:
            self.timeline.violate(
                "unordered", f"{what} does not wait for what {last.name} has written in {last.stream}"
            )
        late = [stream for stream, count in block.reads.items() if clock.get(stream, 0) < count]
        if writes and late:
            self.timeline.violate("unordered", f"{what} overwrites what stream {late[0]} may still read")


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Those in an operation's arguments or result."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for part in value for tensor in tensors_of(part)]
