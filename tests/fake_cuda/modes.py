"""What torch does with tensors of the fake device: on the CPU, in one of the device's streams, written down."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.fake_cuda.clocks import DEVICE
from tests.fake_cuda.memory import Block, Memory, Place, tensors_of

CPU, HOST, PINNED, CUDA = torch.device("cpu"), Place(cuda=False), Place(cuda=False, pinned=True), Place(cuda=True)
_Tensor = torch.Tensor
_FROM_DATA = {torch.tensor, torch.as_tensor, _Tensor.new_tensor}
_HOST_READS = {_Tensor.numpy, _Tensor.tolist, _Tensor.__array__}
_TO, _TO_CPU, _TO_CUDA = _Tensor.to, _Tensor.cpu, _Tensor.cuda
# What the host computes from a tensor's shape, not from its numbers.
_GEOMETRY = (
    "size", "stride", "numel", "dim", "is_contiguous", "storage_offset", "is_pinned", "is_same_size", "device",
    "result_type", "_has_compatible_shallow_copy_type",
)  # fmt: skip
_COPY = torch.ops.aten.copy_.default
# Composite operations that are whole here, and wait on a GPU to learn how large their result is.
_DYNAMIC = {"aten::masked_select", "aten::nonzero", "aten::argwhere", "aten::unique"}


class _Request(threading.local):
    place: Place | None = None  # where the function in hand was told to put its result


_request = _Request()


@contextmanager
def _placing(place: Place) -> Iterator[None]:
    before, _request.place = _request.place, place
    try:
        yield
    finally:
        _request.place = before


class Functions(TorchFunctionMode):
    """Tensors say that they are on the device, and go there where a `device` or a method of theirs says so."""

    def __init__(self, memory: Memory, references: Sequence[str]) -> None:
        """references: beginnings of the names of modules for which tensors are the CPU's when they ask `is_cuda`."""
        super().__init__()
        self._memory, self._references = memory, tuple(references)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func is torch.device:
            return func(*args, **kwargs)
        if name == "__get__":
            return self._property(func, args)
        if func in (_TO, _TO_CPU, _TO_CUDA):
            return self._move(func, args, kwargs)
        if func is _Tensor.pin_memory:
            with _placing(PINNED):
                return torch.empty_like(args[0]).copy_(args[0])
        if func is _Tensor.is_pinned:
            block = self._memory.find(args[0])
            return block is not None and block.pinned
        if func in _HOST_READS:
            self._read(args[0], name)
        place = self._place(kwargs)
        if place is None:
            if func is torch.tensor or func is torch.as_tensor:
                place = HOST
            else:
                return func(*args, **kwargs)
        kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"} | {"device": CPU}
        if func in _FROM_DATA:
            tensor = func(*args, **kwargs)
            return tensor if place is HOST else _copied(tensor, place, tensor.dtype)
        with _placing(place):
            return func(*args, **kwargs)

    def _place(self, kwargs: dict[str, Any]) -> Place | None:
        device = kwargs.get("device")
        if device is not None and not isinstance(device, int):
            device = torch.device(device)
        if isinstance(device, int) or (device is not None and device.type == "cuda"):
            return CUDA
        if kwargs.get("pin_memory"):
            return PINNED
        return HOST if device == CPU else None

    def _property(self, func: Any, args: Any) -> Any:
        what = getattr(func, "__self__", None)
        if what is _Tensor.is_cuda:
            caller = sys._getframe(2).f_globals.get("__name__", "")
            return self._memory.is_cuda(args[0]) and not caller.startswith(self._references)
        if what is _Tensor.device and self._memory.is_cuda(args[0]):
            # what multiplies fp8 asks so
            return CPU if sys._getframe(2).f_globals.get("__name__") == "engine.kernels.fp8" else DEVICE
        return func(*args)

    def _move(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        tensor, *rest = args
        if tensor.device.type == "meta":
            return func(*args, **kwargs)
        if func is not _TO:
            rest = [CPU if func is _TO_CPU else DEVICE, *rest]
        if rest and isinstance(rest[0], torch.Tensor):
            rest = [DEVICE if self._memory.is_cuda(rest[0]) else rest[0].device, rest[0].dtype, *rest[1:]]
        copy = kwargs.pop("copy", False)
        device, dtype, non_blocking, layout = torch._C._nn._parse_to(*rest, **kwargs)
        options = {} if layout is None else {"memory_format": layout}
        here = self._memory.is_cuda(tensor)
        if device is None or device.type == "meta" or (device.type == "cuda") == here:
            device = device if device is not None and device.type == "meta" else None
            return tensor.to(device=device, dtype=dtype or tensor.dtype, copy=copy, **options)
        place = CUDA if device.type == "cuda" else PINNED if non_blocking else HOST
        return _copied(tensor, place, dtype or tensor.dtype, non_blocking=non_blocking, **options)

    def _read(self, tensor: torch.Tensor, name: str) -> None:
        block = self._memory.find(tensor)
        if block is None:
            return
        if not block.cuda:
            self._memory.host_use(block, name, writes=False)
        elif name == "tolist":
            self._memory.timeline.host_waits(self._memory.timeline.current().clock, name)
        else:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")


def _copied(
    tensor: torch.Tensor, place: Place, dtype: torch.dtype, *, non_blocking: bool = False, **options: Any
) -> Any:
    with _placing(place):
        empty = torch.empty_like(tensor, dtype=dtype, **options)
    return empty.copy_(tensor, non_blocking=non_blocking)


class Operations(TorchDispatchMode):
    """Every operation on tensors of the device is one of the current stream."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self._memory, self._timeline = memory, memory.timeline

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and importing the compiler takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, memory, timeline = kwargs or {}, self._memory, self._timeline
        tensors = tensors_of((args, kwargs))
        uses = [(tensor, block) for tensor in tensors if (block := memory.find(tensor)) is not None]
        place, name = _request.place, func._schema.name.removeprefix("aten::")
        on_device = any(block.cuda for _, block in uses)
        written = _written(func, args, kwargs)
        graph = timeline.thread.graph
        if on_device and graph is not None:
            for tensor, block in uses:
                if block.cuda and any(tensor is other for other in written):
                    graph.will_overwrite(tensor, block)
        result = func(*args, **kwargs)
        known = {tensor.untyped_storage()._cdata for tensor in tensors}
        outputs = tensors_of(result)
        fresh = {
            tensor.untyped_storage()._cdata: tensor
            for tensor in outputs
            if tensor.untyped_storage()._cdata not in known and tensor.device != torch.device("meta")
        }
        if place is None or func is _COPY:
            place = CUDA if on_device else HOST
        created = [(tensor, memory.allocate(tensor, place)) for tensor in fresh.values() if place is not HOST]
        if "empty" in name or (outputs and not fresh and not written):
            return result  # memory that is not touched yet, or looked at in another way
        if not on_device and not place.cuda:
            for tensor, block in uses:
                memory.host_use(block, name, writes=any(tensor is other for other in written))
            return result
        self._on_device(func, args, kwargs, name, tensors, written, created)
        if on_device and _tells_the_host(func, args, name, outputs):
            timeline.host_waits(timeline.current().clock, name)
        return result

    def _on_device(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        name: str,
        tensors: Sequence[torch.Tensor],
        written: Sequence[torch.Tensor],
        created: Sequence[tuple[torch.Tensor, Block]],
    ) -> None:
        memory, timeline = self._memory, self._timeline
        uses = []
        for tensor in tensors:
            block = memory.find(tensor)
            if block is not None:
                uses.append((tensor, block, any(tensor is other for other in written)))
            elif func is not _COPY and tensor.dim() and tensor.numel():
                self._copies(name, tensor, None)  # as an index of the host's does
        copies = func is _COPY and not (memory.is_cuda(args[0]) and memory.is_cuda(args[1]))
        if copies:
            source, target = memory.find(args[1]), memory.find(args[0])
            blocking = not kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
            name = "copy to the device" if memory.is_cuda(args[0]) else "copy to the host"
            if memory.is_cuda(args[0]):
                if args[0].dtype != args[1].dtype or not args[1].is_contiguous():
                    source = None  # torch makes a copy first, which nobody pins
                self._copies(name, args[1], source)
            else:
                blocking = blocking or target is None or not target.pinned
        if timeline.thread.graph is not None:
            self._record(func, args, kwargs, name, uses, created, moves=copies)
            return
        stream, count = timeline.enqueue(name)
        for _, block, writes in uses:
            if block.graph is not None and not block.graph.replays:
                timeline.violate("capture", f"{name} uses memory of a graph that was never replayed")
            memory.use(block, stream, count, name, writes=writes)
        for _, block in created:
            memory.use(block, stream, count, name, writes=True)
        if copies and blocking:
            timeline.host_waits(stream.clock, name)
            block = memory.find(args[0])
            if block is not None:
                memory.settle(block)

    def _copies(self, name: str, tensor: torch.Tensor, block: Block | None) -> None:
        """From the host to the device."""
        thread = self._timeline.thread
        if thread.in_step and not thread.may_wait and (block is None or not block.pinned):
            self._timeline.violate("unpinned", f"{name} reads {tuple(tensor.shape)} of memory that is not pinned")

    def _record(self, func: Any, args: Any, kwargs: Any, name: str, uses: Any, created: Any, *, moves: bool) -> None:
        timeline = self._timeline
        graph = timeline.thread.graph
        assert graph is not None
        if moves:
            timeline.violate("capture", f"{name} while a graph is recorded")
        for _, block, _ in uses:
            if block.graph not in (None, graph) and not block.graph.replays:
                timeline.violate("capture", f"{name} uses memory of another graph that was never replayed")
        graph.add(func, args, kwargs, [use for use in uses if use[1].cuda], created)


def _written(func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    if not func._schema.is_mutable:
        return []
    found: list[torch.Tensor] = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name, args[index] if index < len(args) else None)
            found += tensors_of(value)
    return found


def _tells_the_host(func: Any, args: Any, name: str, outputs: Sequence[torch.Tensor]) -> bool:
    """Whether the host must know numbers of the device to go on."""
    if name in ("index", "index_put", "index_put_"):
        return any(index.dtype in (torch.bool, torch.uint8) for index in tensors_of(args[1]))
    if torch.Tag.dynamic_output_shape in func.tags or func._schema.name in _DYNAMIC:
        return True
    if name == "repeat_interleave":
        return any(isinstance(value, torch.Tensor) for value in args[1:]) or len(args) == 1
    return not outputs and not name.startswith(("sym_", *_GEOMETRY)) and bool(func._schema.returns)


def modes(memory: Memory, references: Sequence[str]) -> Callable[[], Any]:
    """Gives a context for a thread to be in."""

    @contextmanager
    def entered() -> Iterator[None]:
        with Functions(memory, references), Operations(memory):
            yield

    return entered
