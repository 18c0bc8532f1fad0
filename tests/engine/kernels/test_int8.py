"""int8 weights: what their groups lose, and that they become the same numbers on every device."""

from __future__ import annotations

import pytest
import torch

from engine.kernels.int8 import GROUP, dequantize_groups, dequantize_groups_triton, quantize_groups
from tests.engine.kernels.tolerances import poisoned


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 1e4])
def test_numbers_are_within_half_a_step_of_what_they_stand_for(size: float) -> None:
    x = torch.randn(7, 96) * size
    values, scales = quantize_groups(x)
    assert values.dtype == torch.int8
    assert scales.shape == (7, 96 // GROUP)
    # half a step, and float16's rounding of the scale (or its smallest number) on 127 steps
    step = scales.float().repeat_interleave(GROUP, dim=1)
    allowed = step * (0.5 + 127 * 2**-11) * 1.001
    assert ((dequantize_groups(values, scales, torch.float32) - x).abs() <= allowed).all()


def test_zeros_and_huge_numbers_do_not_disturb_other_groups() -> None:
    x = torch.randn(3, 2 * GROUP)
    x[0] = 0
    x[1, :GROUP] *= 1e9
    restored = dequantize_groups(*quantize_groups(x), torch.float32)
    assert torch.equal(restored[0], x[0])
    assert restored.isfinite().all()
    assert torch.equal(restored[1:, GROUP:], dequantize_groups(*quantize_groups(x[1:, GROUP:]), torch.float32))


@pytest.mark.parametrize("triton", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 32), (3, 96), (129, 64), (5, 4096)])
def test_every_number_is_its_value_times_its_groups_scale(
    shape: tuple[int, int], dtype: torch.dtype, triton: bool, device: torch.device
) -> None:
    values, scales = quantize_groups(torch.randn(shape))
    expected = values.double() * scales.double().repeat_interleave(GROUP, dim=1)
    with poisoned(device):
        restore = dequantize_groups_triton if triton else dequantize_groups
        where = device if triton else torch.device("cpu")
        actual = restore(values.to(where), scales.to(where), dtype).cpu()
    assert actual.dtype == dtype
    # one rounding; Triton's interpreter truncates to bfloat16
    rounding = 2**-23 if dtype == torch.float32 else 2**-7
    assert ((actual.double() - expected).abs() <= expected.abs() * rounding).all()
