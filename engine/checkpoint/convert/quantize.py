"""Quantises a weight to each format that `scaled` reads, with the metadata that says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from engine.checkpoint.quantized.metadata import FLOAT8_E4M3, HEADER_KEY, INT8, MXFP8, NVFP4
from engine.checkpoint.quantized.number_formats import E2M1, rotate_groups, tile_scales
from engine.errors import ArgumentError
from engine.kernels.fp8 import FP8, FP8_MAX, SMALLEST_SCALE

_E2M1_MAX = 6.0


class Encoded(NamedTuple):
    """A weight and its scales by name, and the layer's options for `header_metadata`."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any]


def encode(format: str, layer: str, weight: torch.Tensor, *, group: int = 256, full_precision: bool = False) -> Encoded:
    """Quantise a (rows, columns) weight of finite numbers, as `layer`.weight with its scales.

    format: "float8_e4m3fn" with one scale, "int8_tensorwise" with a scale a row, "mxfp8" or "nvfp4". group: columns
    that int8_tensorwise rotates together, a power of 4, or 1 for none. full_precision: ask for products with it in the
    model's dtype. Raises `ArgumentError` if the columns are not a multiple of what the format needs.
    """
    columns, multiple = weight.shape[1], {FLOAT8_E4M3: 1, MXFP8: 32, NVFP4: 16}.get(format, group)
    if columns % multiple:
        allowed = f"one that can have {columns} columns ({layer}): they are no multiple of {multiple}"
        raise ArgumentError.of("format", allowed, format)
    wide = weight.float()
    metadata: dict[str, Any] = {"format": format}
    if format == INT8 and group > 1:
        wide = rotate_groups(wide, group)
        metadata |= {"convrot": True, "convrot_groupsize": group}
    if full_precision:
        metadata["full_precision_matrix_mult"] = True
    kinds = {FLOAT8_E4M3: _fp8, INT8: _int8, MXFP8: _mxfp8, NVFP4: _nvfp4}[format](wide)
    return Encoded({f"{layer}.{kind}": tensor for kind, tensor in kinds.items()}, metadata)


def header_metadata(layers: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """Return the entry of a safetensors file's metadata that says how its layers are quantised: options by layer."""
    return {HEADER_KEY: json.dumps({"format_version": "1.0", "layers": layers})}


def _fp8(x: torch.Tensor) -> dict[str, torch.Tensor]:
    scale = _scales(x.abs().amax(), FP8_MAX)
    return {"weight": (x / scale).clamp_(-FP8_MAX, FP8_MAX).to(FP8), "weight_scale": scale}


def _int8(x: torch.Tensor) -> dict[str, torch.Tensor]:
    scales = _scales(x.abs().amax(dim=1, keepdim=True), 127)
    return {"weight": (x / scales).round_().clamp_(-127, 127).to(torch.int8), "weight_scale": scales}


def _mxfp8(x: torch.Tensor) -> dict[str, torch.Tensor]:
    blocks = x.unflatten(1, (-1, 32))
    fractions, exponents = torch.frexp(blocks.abs().amax(dim=2) / FP8_MAX)
    exponents = exponents - (fractions == 0.5).int()  # the smallest power of two that lets the largest number fit
    codes = (exponents + 127).clamp_(0, 254).to(torch.uint8)
    scales = codes.view(torch.float8_e8m0fnu).float().unsqueeze(2)
    values = (blocks / scales).clamp_(-FP8_MAX, FP8_MAX).to(FP8)
    return {"weight": values.flatten(1), "weight_scale": tile_scales(codes)}


def _nvfp4(x: torch.Tensor) -> dict[str, torch.Tensor]:
    blocks = x.unflatten(1, (-1, 16))
    whole = _scales(x.abs().amax(), FP8_MAX * _E2M1_MAX)
    scales = (blocks.abs().amax(dim=2) / _E2M1_MAX / whole).clamp_(max=FP8_MAX).to(FP8)
    steps = (scales.float() * whole).unsqueeze(2)
    # a block that is too small for a scale stays zeros
    ratios = (blocks / steps.masked_fill(steps == 0, torch.inf)).flatten(1)
    magnitudes = torch.tensor(E2M1[:8])
    codes = torch.bucketize(ratios.abs(), (magnitudes[1:] + magnitudes[:-1]) / 2) + 8 * (ratios < 0)
    even, odd = codes.byte().unflatten(1, (-1, 2)).unbind(2)
    return {
        "weight": even * 16 + odd,
        "weight_scale": tile_scales(scales.view(torch.uint8)).view(FP8),
        "weight_scale_2": whole,
    }


def _scales(largest: torch.Tensor, limit: float) -> torch.Tensor:
    return (largest / limit).clamp_(min=SMALLEST_SCALE)
