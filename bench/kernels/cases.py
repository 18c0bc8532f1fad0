"""What a kernel is measured on: an operation, the shapes that it sees, and random tensors.

An operation draws its inputs, runs the engine's function, and knows the reference in any dtype. What a call moves is
counted from its tensors: every input once, every output once, a tensor that is changed in place both ways.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.config.degrees import PARALLEL_DEGREES
from engine.config.model_config import ModelConfig
from engine.kernels.fp8 import Fp8Rows
from engine.kernels.packing import Packing

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """What kernels see of a batch: its rows in segments, one rank's share of a block's heads and of its SwiGLU, and
    the largest picture in the VAE, `side` pixels wide and high."""

    packing: Packing
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    eps: float
    side: int
    channels: int

    @classmethod
    def of(cls, config: ModelConfig, packing: Packing, side: int, tp: int = 1) -> Shape:
        dit = config.transformer
        return cls(
            packing,
            dit.hidden_size,
            dit.num_heads // tp,
            dit.num_kv_heads // tp,
            dit.head_dim,
            dit.intermediate_size // tp,
            dit.norm_eps,
            side,
            config.vae.base_dim,
        )

    @property
    def qkvg_columns(self) -> list[int]:
        heads = (self.heads, self.kv_heads, self.kv_heads, self.heads)
        return [count * self.head_dim for count in heads]

    @property
    def ranks(self) -> int:
        """As many as may share the heads in sequence parallelism."""
        return max(degree for degree in PARALLEL_DEGREES if not (self.heads % degree or self.kv_heads % degree))


@dataclass(frozen=True)
class Operation:
    """One kernel.

    draw: random inputs by name, for a `Random`. run: the engine's function on them; returns the outputs by name, in
    which the inputs that it changed must be. reference: the same from unchanged inputs, in the dtype that it is told.
    """

    name: str
    draw: Callable[[Shape, Random], Tensors]
    run: Callable[[Shape, Tensors], dict[str, torch.Tensor | Fp8Rows]]
    reference: Callable[[Shape, Tensors, torch.dtype], Tensors]
    changes: tuple[str, ...] = ()
    fp8: bool = False


@dataclass(frozen=True)
class Random:
    """Random tensors on a device, other ones in every run."""

    generator: torch.Generator
    dtype: torch.dtype

    @classmethod
    def fresh(cls, device: torch.device, dtype: torch.dtype) -> Random:
        generator = torch.Generator(device)
        generator.seed()
        return cls(generator, dtype)

    def normal(self, *shape: int, dtype: torch.dtype | None = None, mean: float = 0.0) -> torch.Tensor:
        values = torch.randn(shape, generator=self.generator, device=self.generator.device, dtype=dtype or self.dtype)
        return values.add_(mean) if mean else values


def bytes_moved(operation: Operation, inputs: Tensors, outputs: dict[str, torch.Tensor | Fp8Rows]) -> int:
    """Every input read once and every output written once."""
    tensors = list(inputs.values())
    for output in outputs.values():
        tensors += [output.values, output.scales] if isinstance(output, Fp8Rows) else [output]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
