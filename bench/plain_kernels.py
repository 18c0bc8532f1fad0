"""The engine with some of its kernels replaced by plain PyTorch, on whatever device."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from bench import references
from engine.kernels import gate, image_norm, norm, rope, upsample
from engine.kernels.fp8 import Fp8Rows, quantize_rows
from engine.kernels.packing import Packing


@contextmanager
def plain_kernels(names: Collection[str]) -> Iterator[None]:
    """While this is open, everything in the engine calls these of `PLAIN` in place of its own functions. One engine
    computes at a time."""
    with ExitStack() as stack:
        for name in names:
            for own, plain in PLAIN[name].items():
                for module_name, module in list(sys.modules.items()):
                    if module_name.startswith("engine.") and getattr(module, own.__name__, None) is own:
                        stack.enter_context(patch.object(module, own.__name__, plain))
        yield


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return references.rms_norm(x, weight, eps, torch.float32).to(x.dtype)


def _add_rms_norm(
    x: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    total = x + update
    return total, _rms_norm(total, weight, eps)


def _rms_norm_modulate(
    x: torch.Tensor, factor: torch.Tensor, shift: torch.Tensor, eps: float, packing: Packing, *, fp8: bool = False
) -> torch.Tensor | Fp8Rows:
    return _rounded(references.rms_norm_modulate(x, factor, shift, eps, packing, torch.float32), x.dtype, fp8)


def _add_rms_norm_modulate_(
    x: torch.Tensor,
    update: torch.Tensor,
    gate: torch.Tensor,
    factor: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    packing: Packing,
    *,
    fp8: bool = False,
) -> torch.Tensor | Fp8Rows:
    x.copy_(references.add_gated(x, update, gate, packing, torch.float32))
    return _rms_norm_modulate(x, factor, shift, eps, packing, fp8=fp8)


def _silu_mul(gate_up: torch.Tensor, *, fp8: bool = False) -> torch.Tensor | Fp8Rows:
    return _rounded(references.silu_mul(gate_up, torch.float32), gate_up.dtype, fp8)


def _sigmoid_mul(x: torch.Tensor, gate: torch.Tensor, *, fp8: bool = False) -> torch.Tensor | Fp8Rows:
    return _rounded(references.sigmoid_mul(x, gate, torch.float32), x.dtype, fp8)


def _norm_rotate_(
    query: torch.Tensor,
    key: torch.Tensor,
    query_norm: torch.Tensor,
    key_norm: torch.Tensor,
    eps: float,
    rotations: torch.Tensor | None,
    *,
    halves: bool = False,
) -> None:
    for heads, weight in ((query, query_norm), (key, key_norm)):
        heads.copy_(references.norm_rotate(heads, weight, eps, rotations, torch.float32, halves=halves))


def _image_norm(x: torch.Tensor, weight: torch.Tensor, *, silu: bool = False) -> torch.Tensor:
    return references.image_norm(x, weight, torch.float32, silu=silu).to(x.dtype)


def _upsample(x: torch.Tensor) -> torch.Tensor:
    return references.upsample(x, x.dtype)


def _rounded(result: torch.Tensor, dtype: torch.dtype, fp8: bool) -> torch.Tensor | Fp8Rows:
    return quantize_rows(result, dtype) if fp8 else result.to(dtype)


PLAIN: dict[str, dict[Callable[..., Any], Callable[..., Any]]] = {
    "norms": {
        norm.rms_norm: _rms_norm,
        norm.add_rms_norm: _add_rms_norm,
        norm.rms_norm_modulate: _rms_norm_modulate,
        norm.add_rms_norm_modulate_: _add_rms_norm_modulate_,
    },
    "gates": {gate.silu_mul: _silu_mul, gate.sigmoid_mul: _sigmoid_mul},
    "rotation": {rope.norm_rotate_: _norm_rotate_},
    "VAE": {image_norm.image_norm: _image_norm, upsample.upsample: _upsample},
}
