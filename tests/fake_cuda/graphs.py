"""CUDA graphs: what is recorded does not run until it is replayed, and then again in the same memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_map

from tests.fake_cuda.clocks import Stream
from tests.fake_cuda.memory import Block, Memory, Place, tensors_of


class _Outside:
    """A tensor whose memory is not the graph's, which a graph knows by its address alone."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._storage = weakref.ref(tensor.untyped_storage())
        self._geometry = tensor.storage_offset(), tensor.size(), tensor.stride()
        self._dtype = tensor.dtype

    def get(self) -> torch.Tensor | None:
        storage = self._storage()
        return None if storage is None else torch.empty(0, dtype=self._dtype).set_(storage, *self._geometry)


class CUDAGraph:
    """As `torch.cuda.CUDAGraph`."""

    memory: Memory

    def __init__(self, keep_graph: bool = False) -> None:
        self.replays = 0
        self._log: list[tuple[Callable[..., Any], Any, Any, list[torch.Tensor]]] = []
        self._own: list[tuple[torch.Tensor, Block]] = []
        self._outside: dict[int, tuple[weakref.ref[Block], bool]] = {}  # by id; and whether it is written
        self._before: list[tuple[torch.Tensor, torch.Tensor]] = []  # what was overwritten while recording
        self._pool: Block | None = None
        self._stream: Stream | None = None

    def capture_begin(self, pool: Block | None = None, capture_error_mode: str = "global") -> None:
        timeline = self.memory.timeline
        self._stream = timeline.current()
        if self._stream is timeline.default:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream")
        self._pool = pool or graph_pool_handle()
        timeline.thread.graph = self

    def capture_end(self) -> None:
        self.memory.timeline.thread.graph = None
        with without_modes():
            for target, before in self._before:
                target.copy_(before)  # nothing has run
            for tensor, _ in self._own:
                if tensor.is_floating_point() or tensor.is_complex():
                    tensor.fill_(float("nan"))
        self._before.clear()

    def add(
        self,
        run: Callable[..., Any],
        args: Any,
        kwargs: Any,
        uses: Sequence[tuple[torch.Tensor, Block, bool]],
        created: Sequence[tuple[torch.Tensor, Block]],
    ) -> None:
        """An operation that has run once. uses: its tensors of the device, and whether it writes them."""
        timeline = self.memory.timeline
        if timeline.current() is not self._stream:
            timeline.violate("capture", f"an operation in {timeline.current()} while {self._stream} is recorded")
        for _, block, writes in uses:
            if block.graph is not self:
                written = self._outside.get(id(block), (None, False))[1]
                self._outside[id(block)] = weakref.ref(block), writes or written

        def keep(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            block = self.memory.find(value)
            return value if block is None or block.graph is self else _Outside(value)

        self._log.append((run, tree_map(keep, args), tree_map(keep, kwargs), [tensor for tensor, _ in created]))

    def allocated(self, tensor: torch.Tensor, block: Block) -> None:
        """Memory of the graph's own."""
        self._own.append((tensor, block))

    def will_overwrite(self, tensor: torch.Tensor, block: Block) -> None:
        if block.graph is not self:
            with without_modes():
                self._before.insert(0, (tensor, tensor.clone()))

    def replay(self) -> None:
        memory, timeline = self.memory, self.memory.timeline
        if timeline.thread.graph is not None:
            timeline.violate("capture", "a graph is replayed while another is recorded")
        stream, count = timeline.enqueue("graph replay")
        assert self._pool is not None
        memory.use(self._pool, stream, count, "a replay in the same pool", writes=True)
        for reference, writes in self._outside.values():
            block = reference()
            if block is None:
                timeline.violate("capture", "a replay uses memory that has been freed since it was recorded")
                return
            memory.use(block, stream, count, "graph replay", writes=writes)

        def give(value: Any) -> Any:
            return value.get() if isinstance(value, _Outside) else value

        with without_modes():
            for run, args, kwargs, created in self._log:
                results = tensors_of(run(*tree_map(give, args), **tree_map(give, kwargs)))
                fresh = [result for result in results if memory.find(result) is None]
                for target, result in zip(created, fresh, strict=True):
                    target.copy_(result)
        self.replays += 1
        for _, block in self._own:
            memory.use(block, stream, count, "graph replay", writes=True)

    def reset(self) -> None:
        self._log.clear()

    def pool(self) -> Block | None:
        return self._pool


def graph_pool_handle() -> Block:
    """A pool is one piece of memory, which every replay overwrites."""
    return Block(CUDAGraph.memory, Place(cuda=True), 0, CUDAGraph.memory.timeline.default)


@contextmanager
def graph(
    cuda_graph: CUDAGraph, pool: Block | None = None, stream: Stream | None = None, capture_error_mode: str = "global"
) -> Iterator[None]:
    """As `torch.cuda.graph`."""
    timeline = CUDAGraph.memory.timeline
    for other in [timeline.default, stream or timeline.current()]:
        other.synchronize()
    with timeline.on(stream or Stream()):
        cuda_graph.capture_begin(pool, capture_error_mode)
        try:
            yield
        finally:
            cuda_graph.capture_end()


@contextmanager
def without_modes() -> Iterator[None]:
    """Operations here are the CPU's, and nobody looks."""
    from torch.utils._python_dispatch import _disable_current_modes

    with torch._C.DisableTorchFunction(), _disable_current_modes():
        yield
