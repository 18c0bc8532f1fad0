"""What may differ between the engine and diffusers, and whether it does.

In float32 a stage is a few sums in another order. Sums of n terms differ by about √n · 2⁻²⁴ of their size, 8e-6 for the
16,384 terms of the longest, and mostly by a tenth of that. `STAGE` allows 2e-5 of the norm of what the stage makes, or
adds to its input; for the rounding of such a sum, whose input may be much larger, there is as much again as it is.
cuDNN may transform convolutions (Winograd's way), which costs a digit: `CONVOLUTION`. What passes through the whole
model has the design's tolerance, 1e-4 of the largest value: `WHOLE`.

In bfloat16 two right answers differ by more than most faults would. Both are compared with what float32 makes of the
same input and the same weights, and the engine's mean error may be `FACTOR` times diffusers' own, as the design says of
final latents over 16 images. Of a stage there is one sample, and kernels round in other places: `STAGE_FACTOR`, but
never less than one rounding of the result makes. `LOOSER` is the factor of what one sample has after many layers, where
chance has its say, and of ranks whose parts of a sum are rounded before they are added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

LATENTS, BETWEEN = "final latents", "between ranks"
STAGE, CONVOLUTION, WHOLE = 2e-5, 1e-4, 1e-4
BETWEEN_RANKS = 1e-6
FACTOR, STAGE_FACTOR, LOOSER = 1.1, 1.25, 1.5
ULP = 2.0**-23  # of 1 in float32: sigmas may differ by one
_ROUNDING = {"float32": 2.0**-24, "bfloat16": 2.0**-9}  # at most, of what is rounded
_PIXEL = 1.0


@dataclass(frozen=True)
class Check:
    """One comparison. error and allowed are what its tolerance is stated in (`measure`); error is infinite where there
    is no number, and detail says more."""

    name: str
    dtype: str
    mode: str
    error: float
    allowed: float
    measure: str
    detail: str = ""

    @property
    def holds(self) -> bool:
        return math.isfinite(self.error) and self.error <= self.allowed


def failed(name: str, dtype: str, mode: str, detail: str) -> Check:
    """Of what could not be computed."""
    return Check(name, dtype, mode, math.inf, 0.0, "not computed", detail)


def judge_stage(
    name: str,
    dtype: str,
    mode: str,
    ours: torch.Tensor,
    theirs: torch.Tensor,
    *,
    exact: torch.Tensor | None,
    added_to: torch.Tensor | None,
    tolerance: float = STAGE,
) -> Check:
    """A stage whose input was the same on both sides. exact: what float32 makes of it, in bfloat16. added_to: the input
    that the stage adds to; None if it makes something new."""
    if ours.shape != theirs.shape:
        return _misshapen(name, dtype, mode, ours, theirs)
    if exact is not None:
        return _against_float32(name, dtype, mode, ours, theirs, exact, STAGE_FACTOR if mode == "one" else LOOSER)
    a, b = ours.double(), theirs.double()
    made = b if added_to is None else b - added_to.double()
    size = max(made.norm().item(), 1e-30)
    rounding = 0.0 if added_to is None else 2 * _ROUNDING["float32"] * b.norm().item() / size
    return Check(name, dtype, mode, _number((a - b).norm().item() / size), tolerance + rounding, "of the norm")


def judge_whole(
    name: str,
    dtype: str,
    mode: str,
    ours: torch.Tensor,
    theirs: torch.Tensor,
    *,
    exact: torch.Tensor | None = None,
    detail: str = "",
) -> Check:
    """What has passed through many layers. exact: as in `judge_stage`, or None in float32."""
    if ours.shape != theirs.shape:
        return _misshapen(name, dtype, mode, ours, theirs)
    if exact is not None:
        return _against_float32(name, dtype, mode, ours, theirs, exact, LOOSER)
    return Check(name, dtype, mode, largest_error(ours, theirs), WHOLE, "of the largest value", detail)


def judge_equal(name: str, dtype: str, mode: str, ours: torch.Tensor, theirs: torch.Tensor, allowed: float) -> Check:
    """By the largest difference."""
    if ours.shape != theirs.shape:
        return _misshapen(name, dtype, mode, ours, theirs)
    return Check(name, dtype, mode, _number((ours.double() - theirs.double()).abs().max().item()), allowed, "largest")


def judge_mean(
    name: str, dtype: str, mode: str, errors: tuple[float, float], *, images: int, factor: float = FACTOR
) -> Check:
    """Mean errors over images, the engine's and diffusers', of final latents in bfloat16."""
    ours, theirs = errors
    detail = f"diffusers' own {theirs:.2e}, over {images} images"
    return Check(name, dtype, mode, _number(ours), factor * theirs, "mean, against float32", detail)


def judge_pixels(
    name: str, dtype: str, mode: str, ours: torch.Tensor, theirs: torch.Tensor, exact: torch.Tensor | None
) -> Check:
    """(height, width, 3) of 0 to 255. In float32 none by more than 1; in bfloat16 as all else, half a level being what
    rounding to whole ones may make."""
    if ours.shape != theirs.shape:
        return _misshapen(name, dtype, mode, ours, theirs)
    if exact is None:
        error = (ours.double() - theirs.double()).abs().max().item()
        return Check(name, dtype, mode, _number(error), _PIXEL, "levels of 255, largest")
    mine, other = mean_error(ours, exact), mean_error(theirs, exact)
    return Check(name, dtype, mode, mine, max(STAGE_FACTOR * other, 0.5), "levels of 255, mean, against float32")


def largest_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """max|a − b| / max(1, max|b|), in which the design states tolerances."""
    a, b = ours.double(), theirs.double()
    return _number((a - b).abs().max().item() / max(1.0, b.abs().max().item()))


def mean_error(one: torch.Tensor, exact: torch.Tensor) -> float:
    return _number((one.double() - exact.double()).abs().mean().item())


def _against_float32(
    name: str, dtype: str, mode: str, ours: torch.Tensor, theirs: torch.Tensor, exact: torch.Tensor, factor: float
) -> Check:
    size = max(exact.double().abs().mean().item(), 1e-30)
    mine, other = mean_error(ours, exact) / size, mean_error(theirs, exact) / size
    allowed = max(factor * other, _ROUNDING[dtype] / 2)
    return Check(name, dtype, mode, _number(mine), allowed, "mean, against float32", f"diffusers' own {other:.2e}")


def _misshapen(name: str, dtype: str, mode: str, ours: torch.Tensor, theirs: torch.Tensor) -> Check:
    return failed(name, dtype, mode, f"the engine's shape is {tuple(ours.shape)}, diffusers' {tuple(theirs.shape)}")


def _number(error: float) -> float:
    """What is no number is infinitely wrong: also infinities on both sides, whose difference is none."""
    return error if math.isfinite(error) else math.inf
