"""Carries a memory plan out: blocks that are copied to the device ahead of their use, and components that are on it
only while they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import nn

from engine.checkpoint.weight_format import Weights
from engine.config.components import VAE_ENCODER
from engine.config.engine_config import DIT, DIT_LAYERWISE, TEXT_ENCODER, VAE, EngineConfig
from engine.device.devices import decoding_dtype, free_bytes, multiplies_fp8, reserve_bytes
from engine.model.text_encoder import TextEncoder
from engine.model.transformer import Transformer
from engine.model.vae_encoder import VAEEncoder
from engine.offload.host_buffers import Copier, HostMemory, ParameterBucket, Wait, WeightLedger
from engine.planning.memory_plan import MemoryPlan, plan_checkpoint, slot_bytes
from engine.planning.weight_bytes import block_of, is_small

T = TypeVar("T")
# With what of --offload each component goes to host memory.
_OFFLOADED_BY = {"transformer": DIT, "text_encoder": TEXT_ENCODER, "vae": VAE, VAE_ENCODER: VAE}


def plan_for(
    config: EngineConfig,
    weights: Weights,
    sharing: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    whole_text_encoder: bool = False,
) -> MemoryPlan:
    """Plan for each of `sharing` ranks on one device. whole_text_encoder: it is not split over tensor parallel ranks.
    Raises `ArgumentError` if nothing fits into the config's budget."""
    budget = config.memory_budget
    return plan_checkpoint(
        weights,
        config,
        dtype.itemsize,
        decoding_bytes_per_element=decoding_dtype(device, dtype).itemsize,
        budget=None if budget is None else budget // sharing,
        fp8_products=multiplies_fp8(device, dtype),
        whole_text_encoder=whole_text_encoder,
        nccl=device.type == "cuda" and sharing == 1,
    )


def limit_allocations(plan: MemoryPlan, device: torch.device) -> None:
    """Let this process allocate no more of a GPU than its plan has for it."""
    if plan.allocatable is not None and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, plan.allocatable / total), device)


class BlockStream:
    """Blocks whose matrices lie in host memory and are copied to the device by turns, ahead of their use.

    The device has slots for `prefetch` + 1 of them. As soon as a block has been used, the next one that is needed and
    has no slot yet takes that of one that is needed later; after the last block comes the first, for the next pass.
    Blocks between them that stay on the device are passed through. What is in a slot is not copied again.
    """

    def __init__(self, buckets: dict[int, ParameterBucket], prefetch: int, ledger: WeightLedger) -> None:
        """buckets: the matrices of the blocks that come and go, by the block's index."""
        self._buckets, self._copier = buckets, Copier(ledger.device)
        sizes = [bucket.size for bucket in buckets.values()]
        count = min(prefetch + 1, len(sizes))
        self._slots = [ledger.allocate(slot_bytes(sizes, 0)) for _ in range(count)]
        # slots by the block that they hold, with the wait for its copy, which may be under way
        self._held: dict[int, tuple[torch.Tensor, Wait]] = {}
        self._first = range(max(buckets) + 1)  # what the next pass is thought to begin with
        self._copy_next(self._first)

    def visit(self, blocks: Sequence[T], part: range | None = None, ahead: int | None = None) -> Iterator[T]:
        """Give the blocks in order, each being on the device from when it is given until the next is asked for.
        part, ahead: as in `Visit`; a pass ends with a part that does. The next pass is thought to begin as this one
        has, with blocks up to the same `ahead`."""
        part = range(len(blocks)) if part is None else part
        needed = range(part.start, len(blocks) if ahead is None else ahead)
        if part.start == 0:
            self._first = needed
        then = self._first if needed.stop == len(blocks) else range(0)
        self._copy_next((*needed, *then))
        for index in part:
            if index not in self._buckets:
                yield blocks[index]
                continue
            slot, wait = self._held[index]
            wait()
            self._buckets[index].place_in(slot)
            yield blocks[index]
            self._buckets[index].withdraw()
            self._copy_next((*needed[index + 1 - part.start :], *then))

    def rewind(self) -> None:
        """Begin again with the first block, after a pass that was broken off."""
        for _, wait in self._held.values():
            wait()
        for bucket in self._buckets.values():
            bucket.withdraw()
        self._held.clear()
        self._copy_next(self._first)

    def close(self) -> None:
        """Return when nothing is copied any more."""
        self._copier.close()

    def _copy_next(self, needed: Iterable[int]) -> None:
        """Begin to copy those of the blocks needed next, in this order, that are in no slot, as far as slots go."""
        travelling = dict.fromkeys(index for index in needed if index in self._buckets)
        soon = list(travelling)[: len(self._slots)]
        for index in soon:
            if index in self._held:
                continue
            if len(self._held) < len(self._slots):
                slot = self._slots[len(self._held)]
            else:
                slot, _ = self._held.pop(next(held for held in self._held if held not in soon))
            bucket = self._buckets[index]
            self._held[index] = slot, self._copier.copy(slot[: bucket.size], bucket.host)


class SwappedComponent:
    """A component that is on the device from `bring` to `drop`, or within `with`; without buckets, one that stays."""

    def __init__(self, buckets: Sequence[ParameterBucket], ledger: WeightLedger) -> None:
        self._buckets, self._ledger = buckets, ledger
        self._copier = Copier(ledger.device if buckets else torch.device("cpu"))  # without buckets no stream is needed
        self._buffers: list[torch.Tensor] = []

    @property
    def absent(self) -> int:
        """The bytes that `bring` would take now."""
        return 0 if self._buffers else sum(bucket.size for bucket in self._buckets)

    def bring(self) -> None:
        """Copy it to the device before what the current thread or stream does next. Raises as an allocation does."""
        if self._buffers:
            return
        try:
            for bucket in self._buckets:
                self._buffers.append(self._ledger.allocate(bucket.size))
        except Exception:
            self._give_back()  # of the buckets that did find room
            raise
        places = list(zip(self._buffers, self._buckets, strict=True))
        for wait in [self._copier.copy(buffer, bucket.host) for buffer, bucket in places]:
            wait()
        for buffer, bucket in places:
            bucket.place_in(buffer)

    def drop(self) -> None:
        """Give its memory back, when what the current thread or stream has begun is done."""
        if not self._buffers:
            return
        self._copier.settle()
        for bucket in self._buckets:
            bucket.withdraw()
        self._give_back()

    def _give_back(self) -> None:
        self._ledger.count(-sum(buffer.numel() for buffer in self._buffers))
        self._buffers = []

    def __enter__(self) -> None:
        self.bring()

    def __exit__(self, *error: object) -> None:
        self.drop()

    def close(self) -> None:
        """Return when nothing is copied any more."""
        self._copier.close()


class Offload:
    """Where a rank's components are by its plan, and what is free beside them, in bytes.

    dit, vae, vae_encoder: components that come and go as a whole. streams: blocks that do, by component. host_bytes: of
    weights in host memory. encoding: what encoding prompts takes at most.
    """

    def __init__(self, plan: MemoryPlan, device: torch.device, sharing: int, encoding: int) -> None:
        """sharing: the number of ranks that share the device."""
        self.plan, self.encoding = plan, encoding
        self.ledger = WeightLedger(device)
        self.host_bytes = 0
        self.dit, self.vae, self.vae_encoder = (SwappedComponent([], self.ledger) for _ in range(3))
        self.streams: dict[str, BlockStream] = {}
        self._device, self._sharing, self._host = device, sharing, HostMemory(device)

    def on_host(self, component: str) -> Callable[[str], bool]:
        """Tell by a parameter's name whether it is to be loaded to host memory, for the parameters of a component."""
        offload = self.plan.offload
        if _OFFLOADED_BY[component] in offload:
            return lambda parameter: not is_small(parameter)
        if component == "transformer" and DIT_LAYERWISE in offload:
            return lambda parameter: block_of(component, parameter) in self.plan.streamed
        return lambda parameter: False

    def take(self, component: str, module: nn.Module) -> None:
        """Take charge of a component that was loaded as `on_host` says. Once for each, and before it is used."""
        on_host = self.on_host(component)
        travelling: dict[int | None, list[nn.Parameter]] = {}  # by block
        for name, parameter in module.named_parameters():
            size = parameter.nbytes
            # scales are not in the checkpoint's list, and are where their matrix is
            if on_host(name.removesuffix("_scale")):
                self.host_bytes += size
                travelling.setdefault(block_of(component, name), []).append(parameter)
            else:
                self.ledger.count(size)
        for buffer in module.buffers():
            buffer.data = buffer.data.to(self._device)
        if not travelling:
            return
        if isinstance(module, TextEncoder) or (isinstance(module, Transformer) and DIT_LAYERWISE in self.plan.offload):
            # the embedding is in no block: its rows, one for each token of a prompt, are read from host memory
            blocks = {at: ParameterBucket(parts, self._host) for at, parts in travelling.items() if at is not None}
            self.streams[component] = stream = BlockStream(blocks, self.plan.prefetch, self.ledger)
            module.visit = stream.visit
            return
        buckets = [ParameterBucket(parts, self._host) for parts in travelling.values()]
        swapped = SwappedComponent(buckets, self.ledger)
        if isinstance(module, Transformer):
            self.dit = swapped
        elif isinstance(module, VAEEncoder):
            self.vae_encoder = swapped
        else:
            self.vae = swapped

    def rewind(self) -> None:
        """Begin again after a forward that was broken off: the next one finds the blocks that it begins with."""
        for stream in self.streams.values():
            stream.rewind()

    def free_for_steps(self, *, encodes_beside: bool) -> int | None:
        """Return the bytes free for steps and decoding, None where that is not known. encodes_beside: prompts are
        encoded while steps run."""
        free = self._free()
        if free is None:
            return None
        return max(0, free - (self.encoding if encodes_beside else 0) - self.plan.sizes.dequantized)

    def room_beside(self) -> int | None:
        """Return the bytes that are left while an image of the default size is made and prompts are encoded, fewer than
        0 if there is no room for both; None where that is not known."""
        free = self._free()
        return None if free is None else free - self.plan.work - self.encoding

    def left(self) -> int | None:
        """Return the bytes that a rank alone on its device can still allocate, None where that is not known."""
        free = free_bytes(self._device)
        if free is not None and self.plan.allocatable is not None and self._device.type == "cuda":
            free = min(free, max(0, self.plan.allocatable - torch.cuda.memory_allocated(self._device)))
        return free

    def _free(self) -> int | None:
        """What is free for all that work takes, within the plan's budget if there is one; None where that is not known.
        Components that come to the device for their use have their place there."""
        plan, free = self.plan, free_bytes(self._device)
        if free is not None:
            free = max(0, free - reserve_bytes(self._device)) // self._sharing - self._absent
        if plan.usable is not None:
            held = max(plan.weights, torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else 0)
            free = plan.usable - held if free is None else min(free, plan.usable - held)
        return free

    @property
    def _absent(self) -> int:
        """What components that are not on the device take there when they are used."""
        return self.dit.absent + self.vae.absent + self.vae_encoder.absent

    def close(self) -> None:
        """Return when nothing is copied any more."""
        for component in (self.dit, self.vae, self.vae_encoder):
            component.close()
        for stream in self.streams.values():
            stream.close()
