"""The operations of `engine.kernels` in plain PyTorch, computed in the dtype that they are told.

In float64 they are the truth that kernels are compared with; in float32, their result rounded to the model's dtype,
they are what eager PyTorch takes for the same. Shapes as in `engine.kernels`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F

from engine.kernels.packing import Packing

# Scores that the reference of attention holds at once; in float64 4 GB.
_SCORES_AT_ONCE = 1 << 29


def silu_mul(gate_up: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """silu(gate) · up."""
    gate, up = gate_up.to(dtype).chunk(2, dim=-1)
    return F.silu(gate) * up


def sigmoid_mul(x: torch.Tensor, gate: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x · sigmoid(gate)."""
    return x.to(dtype) * torch.sigmoid(gate.to(dtype))


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension."""
    x = x.to(dtype)
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight.to(dtype)


def rms_norm_modulate(
    x: torch.Tensor, factor: torch.Tensor, shift: torch.Tensor, eps: float, packing: Packing, dtype: torch.dtype
) -> torch.Tensor:
    """rms_norm(x) · factor + shift, each row with the vectors of its segment."""
    return rms_norm(x, _of_rows(factor, packing), eps, dtype) + _of_rows(shift, packing).to(dtype)


def add_gated(
    x: torch.Tensor, update: torch.Tensor, gate: torch.Tensor, packing: Packing, dtype: torch.dtype
) -> torch.Tensor:
    """x + gate · update."""
    return x.to(dtype) + _of_rows(gate, packing).to(dtype) * update.to(dtype)


def norm_rotate(
    heads: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    rotations: torch.Tensor | None,
    dtype: torch.dtype,
    packing: Packing | None = None,
    *,
    halves: bool = False,
) -> torch.Tensor:
    """rms_norm of each head, then its pairs rotated. packing: of the rows, where there is a weight for each segment."""
    if weight.dim() == 2:
        assert packing is not None
        weight = _of_rows(weight, packing)[:, None]
    normed = rms_norm(heads, weight, eps, dtype)
    if rotations is None:
        return normed
    cos, sin = rotations.real[:, None].to(dtype), rotations.imag[:, None].to(dtype)
    if halves:
        first, second = normed.chunk(2, dim=-1)
        return torch.cat([cos * first - sin * second, sin * first + cos * second], dim=-1)
    first, second = normed.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([cos * first - sin * second, sin * first + cos * second], dim=-1).flatten(-2)


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, dtype: torch.dtype
) -> torch.Tensor:
    """softmax(q kᵀ / sqrt(head_dim)) v inside each segment, written out: (tokens, heads · head_dim)."""
    group = query.shape[1] // key.shape[1]
    output = torch.empty_like(query, dtype=dtype, memory_format=torch.contiguous_format)
    for start, stop in pairwise(packing.bounds):
        rows = max(1, _SCORES_AT_ONCE // max(1, stop - start))
        for head in range(query.shape[1]):
            k, v = (tensor[start:stop, head // group].to(dtype) for tensor in (key, value))
            for first in range(start, stop, rows):
                q = query[first : min(stop, first + rows), head].to(dtype)
                scores = q @ k.T / query.shape[2] ** 0.5
                output[first : first + q.shape[0], head] = scores.softmax(dim=-1) @ v
    return output.flatten(1)


def dequantize_groups(values: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Every 32 values of a row times their scale."""
    return values.to(dtype) * scales.to(dtype).repeat_interleave(32, dim=1)


def image_norm(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype, *, silu: bool) -> torch.Tensor:
    """x / |x| · sqrt(channels) · weight over the channels of (images, channels, h, w), and silu of that."""
    normed = F.normalize(x.to(dtype), dim=1) * x.shape[1] ** 0.5 * weight.to(dtype).view(-1, 1, 1)
    return F.silu(normed) if silu else normed


def upsample(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Every pixel two by two."""
    return F.interpolate(x.to(dtype), scale_factor=2.0, mode="nearest-exact")


def _of_rows(vectors: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Each segment's vector (segments, width) for each of its rows; one that serves all rows is not copied."""
    return vectors if packing.segments == 1 else vectors[packing.row_segments]
