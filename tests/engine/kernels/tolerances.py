"""How far a kernel may be from float64, and how its tests see that it wrote everything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engine.kernels.fp8 import FP8_MAX, Fp8Rows

# One rounding: half a unit in the last place, with some air. Triton's interpreter truncates to bfloat16 where a GPU
# rounds, which is up to a whole unit.
DTYPES = {torch.float32: 2e-6, torch.bfloat16: 2**-7}
# e4m3 keeps three bits after the leading one: 2.6 % of the norm of many normal numbers, 6 % of one at most. Triton's
# interpreter truncates subnormal ones, and halves some that would round up to a power of two.
FP8_ERROR = 0.04 if torch.cuda.is_available() else 0.2


def assert_fp8_close(actual: object, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """`actual` is rows of fp8 for `expected`, each over its largest magnitude: every number is rounded to e4m3."""
    assert isinstance(actual, Fp8Rows)
    assert actual.dtype == dtype
    expected = expected.cpu()
    largest = expected.abs().amax(dim=-1, keepdim=True)
    torch.testing.assert_close(actual.scales.cpu().double() * FP8_MAX, largest, atol=1e-9, rtol=1e-5)
    # half of the last bit, and the smallest step, 2⁻⁹ of 448, with some air
    allowed = expected.abs() / 16 + largest * 2**-16
    if not torch.cuda.is_available():
        mantissa, _ = (expected.abs() / largest.clamp(min=1e-30) * FP8_MAX).frexp()
        allowed += (mantissa >= 0.968) * expected.abs() / 2  # from 15.5 / 16 on numbers are rounded up
    assert ((actual.dequantize().cpu().double() - expected).abs() <= allowed).all()


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖; 0 for nothing at all, and NaN is an error."""
    difference = (actual.cpu().double() - expected.cpu().double()).norm()
    return float(difference / expected.double().norm().clamp(min=1e-30).cpu())


@contextmanager
def poisoned(device: torch.device) -> Iterator[None]:
    """Memory that is allocated without a value holds NaN in here, so what a kernel leaves out is seen."""
    before = torch.utils.deterministic.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)  # else cuBLAS and cuDNN's attention are refused
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = before[0]
        torch.use_deterministic_algorithms(before[1])
