"""RMSNorm, and RMSNorm followed by the modulation of each segment."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension, in float32, returned in x's dtype."""
    return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)


def rms_norm_modulate(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    scale: torch.Tensor,
    shift: torch.Tensor,
    bounds: Sequence[int],
) -> torch.Tensor:
    """(1 + scale) · rms_norm(x) + shift, scale and shift being those of a row's segment.

    x: (tokens, width); weight: (width,) float32; scale, shift: (segments, width) float32.
    """
    normed = F.rms_norm(x.float(), weight.shape, weight, eps)
    factor = 1.0 + scale
    for segment, (start, stop) in enumerate(pairwise(bounds)):
        rows = normed[start:stop]
        torch.addcmul(shift[segment], rows, factor[segment], out=rows)
    return normed.to(x.dtype)
