"""All elementwise kernels: times them, and plain PyTorch on the same inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from bench.kernels.block_operations import block_operations
from bench.kernels.cases import Operation, Random, Shape, Tensors, bytes_moved
from bench.kernels.rates import DTYPE
from bench.kernels.timing import input_sets, time_kernel
from bench.kernels.vae_operations import vae_operations
from engine.kernels.fp8 import quantize_rows
from engine.planning.floor import Ceilings


def elementwise_operations() -> Iterator[Operation]:
    """All of a block, then those of the VAE."""
    yield from block_operations()
    yield from vae_operations()


@dataclass(frozen=True)
class Timed:
    """One elementwise kernel at one shape, in seconds. moved: bytes; share: of a copy's bandwidth; eager_s: plain
    PyTorch's median."""

    kernel: str
    tokens: int
    side: int
    tp: int
    median_s: float
    p10_s: float
    p90_s: float
    repeats: int
    moved: int
    bytes_per_s: float
    share: float
    eager_s: float


def time_elementwise(operation: Operation, shape: Shape, device: torch.device, tp: int, ceilings: Ceilings) -> Timed:
    """The engine's function and plain PyTorch on the same inputs."""
    random = Random.fresh(device, DTYPE)
    sets = [operation.draw(shape, random)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in sets[0].values())
    sets += [operation.draw(shape, random) for _ in range(input_sets(size, device) - 1)]
    spread = time_kernel([partial(operation.run, shape, inputs) for inputs in sets], device)
    eager = time_kernel([partial(_eager, operation, shape, inputs) for inputs in sets], device)
    moved = bytes_moved(operation, sets[0], operation.run(shape, sets[0]))
    rate = moved / spread.median
    return Timed(
        operation.name, shape.packing.tokens, shape.side, tp,
        spread.median, spread.p10, spread.p90, spread.count, moved, rate, rate / ceilings.copy_bytes, eager.median,
    )  # fmt: skip


def _eager(operation: Operation, shape: Shape, inputs: Tensors) -> None:
    """Plain PyTorch: computed in float32, rounded to the model's dtype or to fp8."""
    for output in operation.reference(shape, inputs, torch.float32).values():
        _ = quantize_rows(output, DTYPE) if operation.fp8 and output.ndim == 2 else output.to(DTYPE)
