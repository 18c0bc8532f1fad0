"""The two gates of Krea 2: SwiGLU's silu(gate) · up, and attention's output times sigmoid(gate)."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) · up of a stacked (tokens, 2 · width) → (tokens, width)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate.float()).mul_(up).to(gate_up.dtype)


def sigmoid_mul(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """x · sigmoid(gate), both (tokens, width)."""
    return torch.sigmoid(gate.float()).mul_(x).to(x.dtype)
