"""K-quants as the gguf library reads them back: where their bits lie, and how near they are to the weights."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint.convert.k_blocks import Parts
from engine.checkpoint.convert.k_quants import _TYPES, K_QUANTS, quantize_k

# ‖x − y‖² / ‖x‖² of numbers that are distributed normally, and as Student's t with 4 degrees of freedom, whose tails
# are heavy. ggml 0.15.3, without an importance matrix, makes 8.80e-2, 2.28e-2, 5.08e-3, 1.30e-3 and 3.15e-4 of the
# first, and 1.17e-1, 3.38e-2, 7.52e-3, 1.93e-3 and 5.22e-4 of the second.
ERRORS = {
    "Q2_K": (6.75e-2, 8.36e-2),
    "Q3_K": (2.07e-2, 3.08e-2),
    "Q4_K": (4.87e-3, 7.16e-3),
    "Q5_K": (1.21e-3, 1.79e-3),
    "Q6_K": (2.91e-4, 4.86e-4),
}
WORSE = 1.03  # by chance, of 131,072 numbers
BETTER_THAN_ROUNDING = 0.92  # of its squared errors


def read_back(matrix: torch.Tensor, qtype: str) -> np.ndarray:
    return dequantize(quantize_k(matrix, qtype), GGMLQuantizationType[qtype]).reshape(matrix.shape)


def squared_error(matrix: torch.Tensor, values: np.ndarray) -> float:
    return float(np.square(values - matrix.double().numpy()).sum())


class Format(NamedTuple):
    group: int
    least: int
    most: int
    multiples: int
    has_minimum: bool


FORMATS = {
    "Q2_K": Format(16, 0, 3, 15, True),
    "Q3_K": Format(16, -4, 3, -32, False),
    "Q4_K": Format(32, 0, 15, 63, True),
    "Q5_K": Format(32, 0, 31, 63, True),
    "Q6_K": Format(16, -32, 31, -128, False),
}


def rounded(matrix: torch.Tensor, qtype: str) -> np.ndarray:
    """What a quantiser makes of a matrix that looks at the smallest and the largest number of a group alone."""
    form = FORMATS[qtype]
    x = matrix.double().unflatten(1, (-1, 256 // form.group, form.group))
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True)
    if form.has_minimum:
        step, minimum = (high - low) / form.most, -low
    else:
        step, minimum = torch.where(-low > high, low, high) / form.least, torch.zeros_like(low)

    def multiple(values: torch.Tensor) -> torch.Tensor:
        farthest = values.gather(2, values.abs().argmax(2, keepdim=True))
        unit = (farthest / form.multiples).half().double()
        multiples = (values / unit).nan_to_num(0, 0, 0).round()
        return multiples.clamp(min(form.multiples, 0), max(form.multiples, -form.multiples - 1)) * unit

    step, minimum = multiple(step), multiple(minimum)
    codes = ((x + minimum) / step).nan_to_num(0, 0, 0).round().clamp(form.least, form.most)
    return (step * codes - minimum).reshape(matrix.shape).numpy()


def normal(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape, np.float32))


@pytest.mark.parametrize("qtype", K_QUANTS)
def test_the_error_is_what_is_said_and_less_than_that_of_rounding(qtype: str) -> None:
    heavy = torch.from_numpy(np.random.default_rng(0).standard_t(4, (128, 1024)).astype(np.float32))
    for matrix, stated in zip((normal(128, 1024), heavy), ERRORS[qtype], strict=True):
        error, weights = squared_error(matrix, read_back(matrix, qtype)), float(matrix.double().square().sum())
        assert stated / WORSE < error / weights < stated * WORSE
        assert error < squared_error(matrix, rounded(matrix, qtype)) * BETTER_THAN_ROUNDING


@pytest.mark.parametrize(
    ("older", "stated", "of_its_size"), [("Q4_0", 7.39e-3, "Q4_K"), ("Q5_0", 1.83e-3, "Q5_K"), ("Q8_0", 2.87e-5, None)]
)
def test_a_k_quant_is_nearer_than_the_older_type_of_its_size(
    older: str, stated: float, of_its_size: str | None
) -> None:
    matrix, qtype = normal(128, 1024), GGMLQuantizationType[older]
    values = dequantize(quantize(matrix.numpy(), qtype), qtype)
    error = squared_error(matrix, values) / float(matrix.double().square().sum())
    assert stated / WORSE < error < stated * WORSE
    if of_its_size is not None:
        (block, size), (k_block, k_size) = GGML_QUANT_SIZES[qtype], GGML_QUANT_SIZES[GGMLQuantizationType[of_its_size]]
        assert size / block == k_size / k_block
        assert ERRORS[of_its_size][0] < error * 0.67


@pytest.mark.parametrize("qtype", K_QUANTS)
def test_any_codes_are_read_back_as_they_were_packed(qtype: str) -> None:
    form, rng, groups = FORMATS[qtype], np.random.default_rng(0), 256 // FORMATS[qtype].group
    codes = rng.integers(0, form.most - form.least + 1, (500, 256), dtype=np.uint8)
    least = 0 if form.has_minimum else form.multiples
    most = form.multiples if form.has_minimum else -form.multiples - 1
    multiples = rng.integers(least, most + 1, (500, groups), dtype=np.int8)
    minima = rng.integers(0, form.multiples + 1 if form.has_minimum else 1, (500, groups), dtype=np.uint8)
    units = rng.standard_normal((2, 500)).astype(np.float16)
    packed = _TYPES[qtype].pack(Parts(codes, multiples, minima, *units))
    assert packed.shape == (500, GGML_QUANT_SIZES[GGMLQuantizationType[qtype]][1])
    step, minimum = (
        np.repeat(unit[:, None].astype(np.float32) * of_group, form.group, axis=1)
        for unit, of_group in zip(units, (multiples, minima), strict=True)
    )
    expected = step * (codes.astype(np.float32) + form.least) - minimum
    assert np.array_equal(dequantize(packed, GGMLQuantizationType[qtype]), expected)


@pytest.mark.parametrize("qtype", K_QUANTS)
def test_a_block_is_the_same_bytes_wherever_it_is_and_in_whatever_dtype(
    qtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = normal(5, 768).bfloat16()
    together = quantize_k(matrix, qtype)
    monkeypatch.setattr("engine.checkpoint.convert.k_quants._AT_ONCE", 2)
    assert np.array_equal(together, quantize_k(matrix.float(), qtype))
    assert np.array_equal(together, np.concatenate([quantize_k(row, qtype) for row in matrix.split(1)]))


def test_the_bytes_are_the_same_on_every_cpu() -> None:
    whole = np.random.default_rng(0).integers(-1000, 1001, (64, 256)).astype(np.float32)
    numbers = torch.from_numpy(whole * whole * whole / np.float32(2**30))
    packed = b"".join(quantize_k(numbers, qtype).tobytes() for qtype in K_QUANTS)
    assert hashlib.sha256(packed).hexdigest() == "1aba0346ff3422f98bd005ed4087ca48dd898d49dfa5cac5ccefd1d6eb70854f"


BLOCKS = {
    "zeros": torch.zeros(256),
    "one number": torch.full((256,), -0.0123),
    "negative": -normal(256).abs() - 1,
    "positive": normal(256).abs() + 1,
    "an outlier": torch.cat([torch.tensor([-1000.0]), normal(255)]),
    "two numbers": torch.tensor([-0.02, 0.03]).repeat(128),
    "sizes that differ": (normal(16, 16) * 2.0 ** torch.arange(-12, 4)[:, None]).flatten(),
    "float16's largest": torch.tensor([65504.0, -65504.0]).repeat(128) * torch.linspace(0, 1, 256),
    "below float16's steps": normal(256) * 1e-6,
    "denormal": normal(256) * 1e-40,
}


@pytest.mark.parametrize("qtype", K_QUANTS)
@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.filterwarnings("error")
def test_extreme_blocks_are_about_as_near_as_rounding_brings_them(kind: str, qtype: str) -> None:
    block = BLOCKS[kind][None]
    values = read_back(block, qtype)
    assert np.isfinite(values).all()
    least = 256 * (2.0**-25) ** 2  # half a step of float16 in each number, and that of rounding a scale to it
    rounding = float((block.double().abs().amax() * 2.0**-11).square()) * 256
    assert squared_error(block, values) <= squared_error(block, rounded(block, qtype)) + rounding + least


@given(st.lists(st.floats(-65504, 65504, width=32), min_size=1, max_size=40), st.sampled_from(K_QUANTS))
@settings(max_examples=60, deadline=None)
def test_any_finite_numbers_are_read_back_about_within_a_step(numbers: list[float], qtype: str) -> None:
    form, block = FORMATS[qtype], torch.tensor(numbers).repeat(256)[None, :256]
    largest = float(block.abs().max())
    values = read_back(block, qtype)
    step = 2 * largest / (form.most - form.least)
    assert np.abs(values - block.numpy()).max() <= 1.25 * step + 2.0**-24
