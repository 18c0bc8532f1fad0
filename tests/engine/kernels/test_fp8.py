"""fp8 rows and their product."""

from __future__ import annotations

import pytest
import torch

from engine.kernels.fp8 import FP8_MAX, Fp8Rows, fp8_linear, quantize_rows, scaled_mm
from tests.engine.kernels.tolerances import relative_error

ROUNDING = 2**-4  # of e4m3, for numbers that are not subnormal


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_rows_are_within_a_rounding_of_what_they_stand_for(dtype: torch.dtype, size: float) -> None:
    x = torch.randn(7, 64).mul(size).to(dtype)
    rows = quantize_rows(x)
    assert rows.dtype == dtype
    assert rows.values.float().abs().amax() == FP8_MAX
    smallest = rows.scales * 2**-6  # normal numbers; below it the step no longer shrinks
    allowed = torch.maximum(x.float().abs(), smallest) * ROUNDING * 1.001
    assert ((rows.dequantize() - x.float()).abs() <= allowed).all()


def test_rows_of_zeros_and_one_huge_row_do_not_disturb_the_others() -> None:
    x = torch.randn(3, 32)
    x[0] = 0
    x[1] *= 1e6
    rows = quantize_rows(x)
    assert torch.equal(rows.dequantize()[0], x[0])
    assert torch.equal(rows.dequantize()[2], quantize_rows(x[2:]).dequantize()[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_of_rows(dtype: torch.dtype, device: torch.device) -> None:
    x, weight = quantize_rows(torch.randn(33, 64).to(device, dtype)), quantize_rows(torch.randn(48, 64, device=device))
    if device.type == "cuda" and dtype == torch.float32:
        pytest.skip("tensor cores write bfloat16 with row-wise scales")
    product = fp8_linear(x, weight)
    assert product.dtype == dtype
    expected = x.dequantize().double() @ weight.dequantize().double().T
    assert relative_error(product, expected) <= (1e-6 if dtype == torch.float32 else 2**-8)


def test_the_cpu_computes_what_torchs_scaled_product_does() -> None:
    x, weight = quantize_rows(torch.randn(33, 64)), quantize_rows(torch.randn(48, 64))
    row_wise = torch.nn.functional.ScalingType.RowWise
    try:
        theirs = torch.nn.functional.scaled_mm(
            x.values, weight.values.t(), x.scales, row_wise, weight.scales.t(), row_wise, output_dtype=torch.float32
        )
    except NotImplementedError:
        pytest.skip("this torch has no scaled product on the CPU")
    assert relative_error(fp8_linear(Fp8Rows(x.values, x.scales, torch.float32), weight), theirs) <= 1e-6
    assert torch.equal(scaled_mm(Fp8Rows(x.values, x.scales, torch.float32), weight), theirs)
    into = torch.full((40, 48), 7.0)
    written = scaled_mm(Fp8Rows(x.values, x.scales, torch.float32), weight, into[:33])
    assert written.data_ptr() == into.data_ptr()
    assert relative_error(into[:33], theirs) <= 1e-6
    assert (into[33:] == 7).all()
