"""Rotary position embedding, in the two forms the model has: interleaved pairs on three axes (DiT), half split (text).

Tables hold the rotations as complex numbers cos + i·sin: rotating the pair (x0, x1) is one complex product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.kernels.norm import rms_norm


def image_rotations(height: int, width: int, axes: Sequence[int], theta: float) -> torch.Tensor:
    """Rotations of a grid of image tokens: (height · width, sum(axes) / 2) complex64, on the CPU.

    Tokens sit at (0, row, column); `axes` are the head dims of those three axes. Angles are built in float64, as
    diffusers' `get_1d_rotary_pos_embed` does. On the first axis, and for text, which sits at (0, 0, 0), the rotation
    is the identity.
    """
    rows = torch.arange(height, dtype=torch.float64).repeat_interleave(width)
    columns = torch.arange(width, dtype=torch.float64).repeat(height)
    angles = torch.cat(
        [
            torch.outer(position, theta ** (-torch.arange(0, axis, 2, dtype=torch.float64) / axis))
            for position, axis in zip((torch.zeros_like(rows), rows, columns), axes, strict=True)
        ],
        dim=1,
    )
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def text_rotations(positions: torch.Tensor, head_dim: int, theta: float) -> torch.Tensor:
    """Rotations of text tokens: positions (tokens,) → (tokens, head_dim / 2) complex64, angles in float32.

    With text alone Qwen3-VL's three position axes are equal, so its interleaved mRoPE is this plain RoPE.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = torch.outer(positions.float(), 1.0 / theta**exponents)
    return torch.polar(torch.ones_like(angles), angles)


def norm_rotate_(
    heads: torch.Tensor, norm_weight: torch.Tensor, eps: float, rotations: torch.Tensor | None
) -> torch.Tensor:
    """RMSNorm each head, then rotate its interleaved pairs, in place; returns `heads`.

    heads: (tokens, heads, head_dim), a view into the packed q|k|v|gate matrix; norm_weight: (head_dim,) float32;
    rotations: (tokens, head_dim / 2) complex64, or None for no rotation (text fusion). Like the reference, the norm's
    output is rounded to the model's dtype before it is rotated in float32.
    """
    normed = rms_norm(heads, norm_weight, eps)
    if rotations is None:
        return heads.copy_(normed)
    pairs = torch.view_as_complex(normed.float().unflatten(-1, (-1, 2)))
    return heads.copy_(torch.view_as_real(pairs * rotations[:, None]).flatten(-2))


def norm_rotate_halves(
    heads: torch.Tensor, norm_weight: torch.Tensor, eps: float, rotations: torch.Tensor
) -> torch.Tensor:
    """RMSNorm each head, then rotate (x[i], x[i + head_dim / 2]) pairs: Qwen's form. Shapes as in `norm_rotate_`."""
    first, second = rms_norm(heads, norm_weight, eps).float().chunk(2, dim=-1)
    rotated = torch.complex(first, second) * rotations[:, None]
    return torch.cat([rotated.real, rotated.imag], dim=-1).to(heads.dtype)
