"""Says, before a byte is loaded, that a model is larger than the memory there is, and what would fit. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.checkpoint.weight_format import Weights
from engine.config.degrees import PARALLEL_DEGREES
from engine.config.engine_config import EngineConfig
from engine.errors import ArgumentError, CheckpointError, LaunchError
from engine.planning.memory_plan import MemoryPlan, plan_checkpoint, shown

GB = 10**9
# Of all host memory, what Linux may find beside what it calls available.
_LEEWAY_PART = 32
_GPU_SIZES = (8, 12, 16, 24, 32, 48, 80, 141, 192, 288)  # GB, as they are sold
_MOST_REMEDIES = 3  # of options; what else would do is said in any case


@dataclass(frozen=True)
class Room:
    """What a rank finds, all in bytes.

    device: free on its GPU for it alone, None on a CPU. host: available in host memory, None where that is not known;
    swap: besides. total: of host memory. ranks: of this machine. gpus: of this machine. multiplies_fp8: whether these
    do. is_split: the checkpoint was split for a tp, so that its tp and its formats are what they are.
    """

    device: int | None
    host: int | None
    swap: int = 0
    total: int = 0
    ranks: int = 1
    gpus: int = 0
    multiplies_fp8: bool = False
    is_split: bool = False

    @property
    def device_type(self) -> str:
        return "cpu" if self.device is None else "cuda"

    def shortage(self, plan: MemoryPlan, engine: EngineConfig) -> tuple[int, int] | None:
        """Return what the weights of a plan take, and what there is, where that is certainly less."""
        if self.device is not None and plan.weights > self.device:
            return plan.weights, self.device
        needed = self.on_host(plan, engine)
        if self.host is not None and needed > self.host + self.swap + self.total // _LEEWAY_PART:
            return needed, self.host + self.swap
        return None

    def on_host(self, plan: MemoryPlan, engine: EngineConfig) -> int:
        """Add up what the weights of all ranks of this machine take of host memory. On a CPU that is all of them."""
        if self.device is not None:
            return self.ranks * plan.host
        without_vae = 0 if engine.decodes_together else self.ranks - 1
        return self.ranks * (plan.weights + plan.host) - without_vae * plan.sizes.both_vae_halves

    def holds(self, plan: MemoryPlan, engine: EngineConfig) -> bool:
        """Whether there is memory for the weights and for work, as far as that is known, without swap."""
        needed = self.on_host(plan, engine)
        if self.device is None:
            return self.host is None or needed + self.ranks * plan.work <= self.host
        return plan.needed <= self.device and (self.host is None or needed <= self.host)


def refuse(
    shortage: tuple[int, int], plan: MemoryPlan, weights: Weights, engine: EngineConfig, room: Room
) -> LaunchError:
    """Make the error of a model that is larger than the memory there is: what is short, and what would fit."""
    what = describe_shortage(*shortage, plan, engine, room)
    return LaunchError(f"{what}: nothing was loaded. What would fit: {'; '.join(find_remedies(weights, engine, room))}")


def describe_shortage(needed: int, available: int, plan: MemoryPlan, engine: EngineConfig, room: Room) -> str:
    """Tell what the weights take, and what there is of it."""
    dtype = engine.dtype_on(room.device_type)
    if room.device is not None and plan.weights > room.device:
        return (
            f"the model needs {shown(needed)} of a rank's GPU for its weights in {dtype}, and {shown(available)} are "
            "free there"
        )
    ranks = "" if room.ranks == 1 else f" of its {room.ranks} ranks"
    kept = f" in {dtype}" if room.device is None else " that do not stay on the GPU"
    swap = f", {shown(room.swap)} of it swap" if room.swap else ""
    return (
        f"the model needs {shown(needed)} of this machine's memory for the weights{ranks}{kept}, and "
        f"{shown(available)} are available{swap}"
    )


def find_remedies(weights: Weights, engine: EngineConfig, room: Room) -> list[str]:
    """List what would fit, what changes pictures and speed the least first: options, then hardware, then a demo."""
    remedies: list[str] = []
    enough: list[Mapping[str, Any]] = []  # by themselves, to which nothing need be added
    for changes in _changes(engine, room):
        if any(each.items() <= changes.items() for each in enough):
            continue
        plan, changed = _plan(weights, engine, room, changes), _changed(engine, changes)
        if plan is None or changed is None or not room.holds(plan, changed):
            continue
        if "memory_budget" not in changes:  # which has copies to wait for
            enough.append(changes)
        size = plan.weights if room.device is not None else room.on_host(plan, changed)
        remedies.append(f"{_flags(changes)} ({shown(size)})")
        if len(remedies) == _MOST_REMEDIES:
            break
    demo = [] if engine.demo is not None else ["--model demo, a small model to try things with"]
    return [*remedies, *_gpus(weights, engine, room), *demo]


def _changes(engine: EngineConfig, room: Room) -> Iterator[dict[str, Any]]:
    """Options to try, alone and then together."""
    narrower: list[dict[str, Any]] = [{"dtype": "bfloat16"}] if engine.dtype_on(room.device_type) == "float32" else []
    formats = ["fp8", "int8"] if room.multiplies_fp8 else ["int8"]
    eight_bit = [{"quantization": each} for each in formats if not room.is_split and engine.quantization == "auto"]
    split = [{"tp": tp} for tp in PARALLEL_DEGREES if tp > engine.tp and tp * engine.ranks // engine.tp <= room.gpus]
    if room.device is None or room.is_split:
        split = []
    budget: list[dict[str, Any]] = []
    if room.device is not None and room.device >= GB:
        budget = [{"memory_budget": room.device // GB * GB}]
    copies: list[dict[str, Any]] = []
    if room.device is None and engine.ranks > engine.tp:  # each of sp's ranks has all weights of its own
        copies = [{"sp": 1, "cfg_parallel": False}]
    alone = [*narrower, *copies, *split, *eight_bit, *budget]
    yield from alone
    for index, first in enumerate(alone):
        yield from (first | second for second in alone[index + 1 :] if not first.keys() & second.keys())
    for first in narrower:
        yield from (first | second | third for second in eight_bit for third in (*copies, *budget))


def _changed(engine: EngineConfig, changes: Mapping[str, Any]) -> EngineConfig | None:
    try:
        return replace(engine, **changes)
    except ArgumentError:  # more ranks than there may be
        return None


def _plan(weights: Weights, engine: EngineConfig, room: Room, changes: Mapping[str, Any]) -> MemoryPlan | None:
    """The plan with other options on this room's device; None where they cannot be."""
    changed = _changed(engine, changes)
    if changed is None:
        return None
    on_gpu = room.device is not None
    size = 2 if changed.dtype_on(room.device_type) == "bfloat16" else 4
    try:
        weights.config.check_parallel(changed.tp, changed.sp)
        return plan_checkpoint(
            weights,
            changed,
            size,
            budget=changed.memory_budget,
            fp8_products=room.multiplies_fp8 and size == 2,
            decoding_bytes_per_element=size if on_gpu else 4,
            nccl=on_gpu,
        )
    except (ArgumentError, CheckpointError):
        return None


def _gpus(weights: Weights, engine: EngineConfig, room: Room) -> list[str]:
    """The smallest GPU that would hold all, and the smallest of all with what host memory it wants besides."""
    alone = replace(engine, dtype="auto", memory_budget=None, lora_memory=None, offload=(), prefetch=None)
    if not room.is_split:
        alone = replace(alone, tp=1, sp=1, cfg_parallel=False)
    on_gpu = replace(room, device=0, ranks=alone.ranks)
    whole = _plan(weights, alone, on_gpu, {})
    size = None if whole is None else next((each for each in _GPU_SIZES if whole.needed <= each * GB), None)
    found = [] if size is None else [f"a GPU of {size} GB" if alone.ranks == 1 else f"{alone.ranks} GPUs of {size} GB"]
    for smaller in _GPU_SIZES:
        plan = (
            None if size is None or smaller >= size else _plan(weights, alone, on_gpu, {"memory_budget": smaller * GB})
        )
        if plan is not None:
            host = shown(on_gpu.on_host(plan, alone))
            found.append(f"of {smaller} GB with --memory-budget {smaller}GB, beside {host} of host memory")
            break
    return [" or ".join(found)] if found else []


def _flags(changes: Mapping[str, Any]) -> str:
    """Options as they are typed."""
    typed = []
    for name, value in changes.items():
        flag = name.replace("_", "-")
        if name == "memory_budget":
            value = f"{value // GB}GB"
        typed.append(f"without --{flag}" if value is False else f"--{flag} {value}")
    return " ".join(typed)
