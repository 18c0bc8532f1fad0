"""FlashAttention 3 in fp8: what it is given, against numbers that were rounded and put back."""

from __future__ import annotations

import pytest
import torch

from engine.kernels.attention.backends import VARLEN, GatedAttentionKernel
from engine.kernels.attention.fa3_fp8 import Fp8Heads, quantize_heads, quantize_heads_triton
from engine.kernels.fp8 import FP8, Fp8Rows
from engine.kernels.packing import TILE_ROWS, CapturedPacking, Packing
from tests.engine.kernels.attention import flash_packages
from tests.engine.kernels.attention.test_flash_packages import Install, _draw, install  # noqa: F401  a fixture
from tests.engine.kernels.tolerances import FP8_ERROR, relative_error

CPU = torch.device("cpu")
LENGTHS = [(40,), (16, 16), (1, 77, 0, 150, 3), (128, 129)]


def _parts(lengths: tuple[int, ...]) -> list[torch.Tensor]:
    """query, key, value of which each segment and head has its own magnitude."""
    parts = _draw(sum(lengths), 8, 2, 32)[:3]
    rows = Packing(lengths, CPU).row_segments[:, None, None]
    return [part.float().mul((rows + 1) * torch.arange(1, part.shape[1] + 1)[:, None]).bfloat16() for part in parts]


def _strided(parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """As views of one matrix."""
    columns = torch.cat([part.flatten(1) for part in parts], dim=1).split([part[0].numel() for part in parts], dim=1)
    return [column.unflatten(1, part.shape[1:]) for column, part in zip(columns, parts, strict=True)]


def _dequantized(heads: Fp8Heads, packing: Packing) -> torch.Tensor:
    """(tokens, heads, head_dim) float32."""
    grouped = heads.values.float().unflatten(1, (heads.scales.shape[1], -1))
    return (grouped * heads.scales[packing.row_segments.long()][:, :, None, None]).flatten(1, 2)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_each_segments_heads_have_a_scale_of_their_own(lengths: tuple[int, ...]) -> None:
    parts, packing = _strided(_parts(lengths)), Packing(lengths, CPU)
    for part, rounded in zip(parts, quantize_heads.reference(*parts, packing), strict=True):
        assert rounded.values.dtype == FP8
        assert rounded.values.is_contiguous()
        grouped = part.float().unflatten(1, (2, -1)).split(lengths)
        largest = torch.stack([each.abs().amax((0, 2, 3)) if len(each) else torch.zeros(2) for each in grouped])
        torch.testing.assert_close(rounded.scales, largest.div(448).clamp(min=1e-12))
        exact = part.float()
        error = (_dequantized(rounded, packing) - exact).abs()
        # half of e4m3's last bit, or for small numbers of its smallest step
        steps = rounded.scales[packing.row_segments.long()].repeat_interleave(part.shape[1] // 2, 1)[..., None]
        assert (error <= exact.abs() / 16 + steps * 2**-10).all()


@pytest.mark.parametrize("lengths", [(1, 40, 0, 3), (TILE_ROWS + 2,)])
def test_the_kernels_find_the_same(lengths: tuple[int, ...], device: torch.device) -> None:
    pytest.importorskip("triton")
    parts, packing = _strided(_parts(lengths)), Packing(lengths, CPU)
    expected = quantize_heads.reference(*parts, packing)
    on_device = [part.to(device) for part in parts]
    captured = CapturedPacking(sum(lengths), len(lengths) + 2, device)
    captured.overwrite(Packing((*lengths, 0, 0), device))
    for of_device in (Packing(lengths, device), captured):
        for actual, part in zip(quantize_heads_triton(*on_device, of_device), expected, strict=True):
            torch.testing.assert_close(actual.scales[: len(lengths)].cpu(), part.scales)
            assert actual.values.dtype == FP8
            back = _dequantized(Fp8Heads(actual.values.cpu(), actual.scales[: len(lengths)].cpu()), packing)
            assert relative_error(back, _dequantized(part, packing)) < FP8_ERROR  # the interpreter truncates


@pytest.mark.parametrize("triton", [False, True])
def test_what_is_not_a_number_stays_so_in_its_segments_head(triton: bool, device: torch.device) -> None:
    if triton:
        pytest.importorskip("triton")
    parts = [part.to(device) for part in _parts((5, 6))]
    parts[1][7, 1] = torch.nan
    quantize = quantize_heads_triton if triton else quantize_heads.reference
    _, key, _ = quantize(*parts, Packing((5, 6), device))
    assert _dequantized(key, Packing((5, 6), device)).isfinite().all((0, 2)).tolist() == [True, False]
    assert key.scales.isfinite().tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_package_attends_to_the_rounded_numbers(install: Install, lengths: tuple[int, ...]) -> None:  # noqa: F811
    install("fa3")
    parts, packing = _parts(lengths), Packing(lengths, CPU)
    rounded = [_dequantized(part, packing) for part in quantize_heads.reference(*parts, packing)]
    expected = GatedAttentionKernel("torch").attend(*rounded, packing)
    flash_packages.calls.clear()
    actual = VARLEN["fa3-fp8"](*parts, packing)
    assert flash_packages.calls[0][0] == ("dense" if len(set(lengths)) == 1 else "varlen")
    assert actual.dtype == torch.bfloat16
    assert relative_error(actual, expected) < 4e-3  # the result's rounding to bfloat16


def test_a_recording_and_the_gate(install: Install) -> None:  # noqa: F811
    install("fa3")
    query, key, value, gate = _draw(40, 8, 2, 64)
    kernel = GatedAttentionKernel("fa3-fp8")
    captured = CapturedPacking(40, 4, CPU)
    for lengths in [(30, 10, 0, 0), (13, 13, 10, 4)]:
        packing = Packing(lengths, CPU)
        captured.overwrite(packing)
        rounded = [_dequantized(part, packing) for part in quantize_heads.reference(query, key, value, packing)]
        expected = GatedAttentionKernel("torch")(*rounded, gate.float(), packing)
        for each in (packing, captured):
            assert relative_error(kernel(query, key, value, gate, each), expected) < 8e-3  # type: ignore[arg-type]
            rows = kernel(query, key, value, gate, each, fp8=True)
            assert isinstance(rows, Fp8Rows)
            assert relative_error(rows.dequantize(), expected) < FP8_ERROR  # type: ignore[arg-type]
