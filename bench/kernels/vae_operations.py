"""The elementwise kernels as the VAE calls them, and its attention, beside the plain PyTorch that they replace."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.kernels import references
from bench.kernels.cases import Operation, Random, Shape, Tensors
from engine.kernels.attention.chunked import chunked_attention
from engine.kernels.fp8 import Fp8Rows
from engine.kernels.image_norm import add_image_norm_, add_residual_, image_norm
from engine.kernels.packing import Packing
from engine.kernels.upsample import upsample


def vae_operations() -> Iterator[Operation]:
    """All of the decoder."""
    yield Operation("VAE: norm, silu", _draw_picture, _image_norm, _image_norm_reference)
    yield Operation("VAE: bias, norm, silu", _draw_biased, _biased_norm, _biased_norm_reference)
    yield Operation("VAE: residual, norm, silu", _draw_pair, _residual_image, _residual_image_reference, ("x",))
    yield Operation("VAE: residual", _draw_pair, _residual_alone, _residual_alone_reference, ("x",))
    yield Operation("VAE: attention", _draw_pixels, _attend_to_pixels, _attend_to_pixels_reference)
    yield Operation("VAE: attention by torch", _draw_pixels, _attend_by_torch, _attend_to_pixels_reference)
    yield Operation("VAE: upsample", _draw_small_picture, _upsample, _upsample_reference)


def _draw_picture(shape: Shape, random: Random) -> Tensors:
    picture = random.normal(1, shape.side, shape.side, shape.channels).permute(0, 3, 1, 2)
    return {"x": picture, "weight": random.normal(shape.channels, mean=1.0)}


def _image_norm(_: Shape, at: Tensors) -> dict[str, torch.Tensor | Fp8Rows]:
    return {"y": image_norm(at["x"], at["weight"], silu=True)}


def _image_norm_reference(_: Shape, at: Tensors, dtype: torch.dtype) -> Tensors:
    return {"y": references.image_norm(at["x"], at["weight"], dtype, silu=True)}


def _draw_biased(shape: Shape, random: Random) -> Tensors:
    return {**_draw_picture(shape, random), "bias": random.normal(shape.channels)}


def _biased_norm(_: Shape, at: Tensors) -> dict[str, torch.Tensor | Fp8Rows]:
    return {"y": image_norm(at["x"], at["weight"], silu=True, bias=at["bias"])}


def _biased_norm_reference(_: Shape, at: Tensors, dtype: torch.dtype) -> Tensors:
    return {"y": references.image_norm(_biased(at, dtype), at["weight"], dtype, silu=True)}


def _draw_pair(shape: Shape, random: Random) -> Tensors:
    return {**_draw_biased(shape, random), "residual": _draw_picture(shape, random)["x"]}


def _residual_image(_: Shape, at: Tensors) -> dict[str, torch.Tensor | Fp8Rows]:
    y = add_image_norm_(at["x"], at["residual"], at["weight"], silu=True, bias=at["bias"])
    return {"x": at["x"], "y": y}


def _residual_image_reference(_: Shape, at: Tensors, dtype: torch.dtype) -> Tensors:
    x = _biased(at, dtype) + at["residual"].to(dtype)
    return {"x": x, "y": references.image_norm(x, at["weight"], dtype, silu=True)}


def _residual_alone(_: Shape, at: Tensors) -> dict[str, torch.Tensor | Fp8Rows]:
    return {"x": add_residual_(at["x"], at["residual"], bias=at["bias"])}


def _residual_alone_reference(_: Shape, at: Tensors, dtype: torch.dtype) -> Tensors:
    return {"x": _biased(at, dtype) + at["residual"].to(dtype)}


def _biased(at: Tensors, dtype: torch.dtype) -> torch.Tensor:
    return at["x"].to(dtype) + at["bias"].to(dtype).view(-1, 1, 1)


def _draw_pixels(shape: Shape, random: Random) -> Tensors:
    """q, k and v of the decoder's middle: one head of four times the last level's channels."""
    pixels, width = (shape.side // 8) ** 2, 4 * shape.channels
    query, key, value = random.normal(1, pixels, 3 * width).split(width, dim=-1)
    return {"query": query, "key": key, "value": value}


def _attend_to_pixels(shape: Shape, at: Tensors) -> dict[str, torch.Tensor | Fp8Rows]:
    room = shape.side**2 * shape.channels * 4  # as `VAEDecoder.score_bytes`
    return {"y": chunked_attention(at["query"], at["key"], at["value"], room)}


def _attend_by_torch(_: Shape, at: Tensors) -> dict[str, torch.Tensor | Fp8Rows]:
    """What the engine's own is to be faster than."""
    query, key, value = (at[name][:, None] for name in ("query", "key", "value"))
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        return {"y": F.scaled_dot_product_attention(query, key, value)[:, 0]}


def _attend_to_pixels_reference(_: Shape, at: Tensors, dtype: torch.dtype) -> Tensors:
    query, key, value = (part[0, :, None] for part in (at["query"], at["key"], at["value"]))
    return {"y": references.attention(query, key, value, Packing([len(query)], query.device), dtype)[None]}


def _draw_small_picture(shape: Shape, random: Random) -> Tensors:
    half = shape.side // 2
    return {"x": random.normal(1, half, half, 2 * shape.channels).permute(0, 3, 1, 2)}


def _upsample(_: Shape, at: Tensors) -> dict[str, torch.Tensor | Fp8Rows]:
    return {"y": upsample(at["x"])}


def _upsample_reference(_: Shape, at: Tensors, dtype: torch.dtype) -> Tensors:
    return {"y": references.upsample(at["x"], dtype)}
