"""The gated residual: x += gate · update."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch


def add_gated_(x: torch.Tensor, update: torch.Tensor, gate: torch.Tensor, bounds: Sequence[int]) -> torch.Tensor:
    """Add gate · update to x in place, gate being that of a row's segment; returns x.

    x, update: (tokens, width); gate: (segments, width) float32.
    """
    for segment, (start, stop) in enumerate(pairwise(bounds)):
        rows = x[start:stop]
        rows.copy_(torch.addcmul(rows.float(), update[start:stop].float(), gate[segment]))
    return x
