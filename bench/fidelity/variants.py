"""The ways of computing that are compared, and a model that is made to compute in one of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from bench.fidelity.plain import PLAIN
from bench.kernels.rates import attention_backends
from engine.checkpoint.weight_format import BLOCK_MATRICES, in_blocks
from engine.kernels.fp8 import quantize_rows
from engine.model.transformer import Transformer
from engine.parallel.linear import ParallelMatrix


@dataclass(frozen=True)
class Variant:
    """A way of computing. fp8: matrices that are quantised; plain: kernels that plain PyTorch replaces; file: layout
    and weights, as `krea2 convert` calls them, of the file that the demo's transformer is read from."""

    name: str
    dtype: str = "bfloat16"
    fp8: tuple[str, ...] = ()
    attention: str = "torch"
    plain: tuple[str, ...] = ()
    rounds_timesteps: bool = False
    file: tuple[str, str] | None = None


REFERENCE = Variant("reference", "float32", plain=tuple(PLAIN))


def available_variants(device: torch.device, head_dim: int) -> tuple[list[Variant], dict[str, str]]:
    """What can be compared here, most important first, and why the rest cannot."""
    bfloat16 = Variant("bfloat16")
    variants = [bfloat16, Variant("fp8", fp8=BLOCK_MATRICES)]
    variants += [Variant(f"fp8 of {matrix} alone", fp8=(matrix,)) for matrix in BLOCK_MATRICES]
    reasons = {}
    for backend, reason in attention_backends(head_dim, device).items():
        if reason is not None:
            reasons[f"attention {backend}"] = reason
        elif backend != bfloat16.attention:
            variants.append(replace(bfloat16, name=f"attention {backend}", attention=backend))
    if device.type == "cuda":
        variants += [replace(bfloat16, name=f"plain {kernel}", plain=(kernel,)) for kernel in PLAIN]
        variants.append(Variant("float32", "float32"))
    else:
        reasons["plain kernels"] = "on a CPU all kernels are plain PyTorch"
    return variants, reasons


def quantize(transformer: nn.Module, matrix: str) -> None:
    """What the loader does to one of `BLOCK_MATRICES`, in every block of a model that is loaded already."""
    for name, module in transformer.named_modules():
        if isinstance(module, ParallelMatrix) and in_blocks(f"{name}.weight") and name.endswith(f".{matrix}"):
            rows = quantize_rows(module.weight)
            module.weight = nn.Parameter(rows.values, requires_grad=False)
            module.expect_eight_bit(rows.scales, fp8_product=True)


def round_timesteps(transformer: Transformer) -> None:
    """As a model in bfloat16 has them."""
    encode = transformer.encode_timesteps
    transformer.encode_timesteps = lambda timesteps: encode(timesteps.bfloat16().float())  # type: ignore[method-assign]


def print_reasons(reasons: dict[str, str]) -> None:
    for name, reason in reasons.items():
        print(f"{name}: left out, {reason}")
