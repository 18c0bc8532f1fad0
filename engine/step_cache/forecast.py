"""Forecasts of a value from those before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def forecast(known: Sequence[tuple[float, torch.Tensor]], place: float) -> torch.Tensor:
    """Continue the curve through all known values, each with its place: a line through two, a parabola through three
    (Lagrange's form). One alone stays as it is. Of equal places, as a shift makes of noise levels that lie too close
    for float32, the last counts."""
    known = [*dict(known).items()]
    result: torch.Tensor | None = None
    for own, value in known:
        weight = 1.0
        for other, _ in known:
            if other != own:
                weight *= (place - other) / (own - other)
        if len(known) == 1:
            return value
        result = value * weight if result is None else result.add_(value, alpha=weight)
    if result is None:
        raise ValueError("there is nothing to forecast from")
    return result
