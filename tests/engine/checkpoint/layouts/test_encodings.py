"""Quantised tensors: decoded as the formats' formulas say, element by element."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from engine.checkpoint.convert.quantize import header_metadata
from engine.checkpoint.files.stored import StoredTensor
from engine.checkpoint.layouts.encodings import stored_tensors
from engine.errors import ArgumentError
from tests.engine.checkpoint.files.memory_file import MemoryFile
from tests.engine.checkpoint.layouts.encoded import FORMATS, encode, metadata_tensor, random_bytes, stored, whole

E4M3_NANS = (0x7F, 0xFF)
E2M1_MAGNITUDES = (0, 0.5, 1, 1.5, 2, 3, 4, 6)


# ---- against the formulas


def e4m3(byte: int) -> float:
    sign, exponent, mantissa = byte >> 7, byte >> 3 & 15, byte & 7
    magnitude = (1 + mantissa / 8) * 2 ** (exponent - 7) if exponent else mantissa / 8 * 2**-6
    return -magnitude if sign else magnitude


def e5m2(byte: int) -> float:
    sign, exponent, mantissa = byte >> 7, byte >> 2 & 31, byte & 3
    magnitude = (1 + mantissa / 4) * 2 ** (exponent - 15) if exponent else mantissa / 4 * 2**-14
    return -magnitude if sign else magnitude


def tiled_position(row: int, column: int, columns: int) -> int:
    tile = (row // 128) * math.ceil(columns / 4) + column // 4
    return tile * 512 + (row % 32) * 16 + (row % 128) // 32 * 4 + column % 4


def hadamard(size: int) -> np.ndarray:
    four = np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]) / 2
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.kron(matrix, four)
    return matrix


def rotated_back(values: np.ndarray, group: int) -> np.ndarray:
    matrix = hadamard(group)
    return np.concatenate([part @ matrix for part in np.split(values, values.shape[1] // group, axis=1)], axis=1)


def assert_equal(tensor: StoredTensor, expected: Any) -> None:
    """Up to the rounding of float32."""
    values = whole(tensor)
    assert values.dtype == torch.float32
    np.testing.assert_allclose(values.numpy(), np.array(expected), rtol=1e-6, atol=0)


def test_float8_e4m3() -> None:
    codes = random_bytes(9, 33, avoid=E4M3_NANS)
    scale = torch.tensor(0.037)
    tensor = stored({"a.weight": codes.view(torch.float8_e4m3fn), "a.weight_scale": scale}, {"format": "float8_e4m3fn"})
    assert (tensor.format, tensor.weight_format, tensor.shape) == ("float8_e4m3fn", "fp8", (9, 33))
    assert_equal(tensor, [[e4m3(code) * scale.item() for code in row] for row in codes.tolist()])
    values, scales = tensor.read_eight_bit((slice(2, 5), slice(1, 8)))
    assert values.dtype == torch.float8_e4m3fn
    assert torch.equal(values.view(torch.uint8), codes[2:5, 1:8])
    assert torch.equal(scales, torch.full((3, 1), 0.037))
    assert scales.is_contiguous()


def test_float8_e5m2_is_dequantised() -> None:
    codes = random_bytes(5, 20, avoid=(*range(0x7C, 0x80), *range(0xFC, 0x100)))
    tensors = {"a.weight": codes.view(torch.float8_e5m2), "a.weight_scale": torch.tensor([0.5])}
    tensor = stored(tensors, {"format": "float8_e5m2"})
    assert tensor.weight_format == "float"
    assert_equal(tensor, [[e5m2(code) * 0.5 for code in row] for row in codes.tolist()])


@pytest.mark.parametrize("shape", [(), (1,), (7,), (7, 1)])
def test_int8_with_one_scale_or_a_scale_a_row(shape: tuple[int, ...]) -> None:
    codes = random_bytes(7, 20).view(torch.int8)
    scales = torch.rand(shape)
    tensor = stored({"a.weight": codes, "a.weight_scale": scales}, {"format": "int8_tensorwise"})
    by_row = scales.reshape(-1).expand(7).tolist() if scales.numel() == 1 else scales.reshape(-1).tolist()
    rows = zip(codes.tolist(), by_row, strict=True)
    assert_equal(tensor, [[code * scale for code in row] for row, scale in rows])


@pytest.mark.parametrize("group", [4, 16, 64, 256])
def test_int8_is_rotated_back(group: int) -> None:
    codes, scales = random_bytes(6, 512).view(torch.int8), torch.rand(6, 1)
    metadata = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": group}
    tensor = stored({"a.weight": codes, "a.weight_scale": scales}, metadata)
    expected = rotated_back(codes.double().numpy() * scales.double().numpy(), group)
    np.testing.assert_allclose(whole(tensor).numpy(), expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_a_group_is_256_columns_unless_the_metadata_says_otherwise() -> None:
    codes, scales = random_bytes(3, 512).view(torch.int8), torch.tensor(1.0)
    tensors = {"a.weight": codes, "a.weight_scale": scales}
    implied = stored(tensors, {"format": "int8_tensorwise", "convrot": True})
    said = stored(tensors, {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256})
    assert torch.equal(whole(implied), whole(said))


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_convrot_w4a4(shape: tuple[int, ...]) -> None:
    codes, scales = random_bytes(5, 32), torch.rand(shape)
    tensors = {"a.weight": codes.view(torch.int8), "a.weight_scale": scales}
    tensor = stored(tensors, {"format": "convrot_w4a4", "convrot_groupsize": 16})
    assert tensor.shape == (5, 64)
    values = np.zeros((5, 64))
    for row, column in np.ndindex(5, 64):
        byte = int(codes[row, column // 2])
        code = byte & 15 if column % 2 == 0 else byte >> 4
        values[row, column] = (code - 16 if code >= 8 else code) * scales.reshape(-1)[row].item()
    expected = rotated_back(values, 16)
    np.testing.assert_allclose(whole(tensor).numpy(), expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("scale_dtype", [torch.uint8, torch.float8_e8m0fnu])
def test_mxfp8(scale_dtype: torch.dtype) -> None:
    rows, columns = 160, 160
    codes = random_bytes(rows, columns, avoid=E4M3_NANS)
    scales = random_bytes(256, 8, seed=1, avoid=(*range(100), *range(150, 256)))
    tensors = {"a.weight": codes.view(torch.float8_e4m3fn), "a.weight_scale": scales.view(scale_dtype)}
    flat = scales.flatten().tolist()
    expected = [
        [e4m3(code) * 2.0 ** (flat[tiled_position(row, column // 32, 5)] - 127) for column, code in enumerate(line)]
        for row, line in enumerate(codes.tolist())
    ]
    assert_equal(stored(tensors, {"format": "mxfp8"}), expected)


def test_mxfp8s_smallest_and_largest_scales() -> None:
    codes = torch.full((1, 64), 0x38, dtype=torch.uint8)  # ones
    scales = torch.zeros(128, 4, dtype=torch.uint8)
    scales[0, :2] = torch.tensor([0, 254])
    tensors = {"a.weight": codes.view(torch.float8_e4m3fn), "a.weight_scale": scales}
    values = whole(stored(tensors, {"format": "mxfp8"}))
    assert values[0, 0].item() == 2.0**-127
    assert values[0, 32].item() == 2.0**127


@pytest.mark.parametrize("scaled_columns", [False, True])
def test_nvfp4(scaled_columns: bool) -> None:
    rows, columns = 144, 176
    codes = random_bytes(rows, columns // 2)
    scales = random_bytes(256, 12, seed=1, avoid=tuple(range(127, 256)))
    whole_scale, factors = torch.tensor(0.0021), torch.rand(columns)
    tensors = {
        "a.weight": codes,
        "a.weight_scale": scales.view(torch.float8_e4m3fn),
        "a.weight_scale_2": whole_scale,
    }
    if scaled_columns:
        tensors["a.pre_quant_scale"] = factors
    expected = np.zeros((rows, columns))
    flat = scales.flatten().tolist()
    for row, column in np.ndindex(rows, columns):
        byte = int(codes[row, column // 2])
        code = byte >> 4 if column % 2 == 0 else byte & 15
        value = E2M1_MAGNITUDES[code & 7] * (-1 if code & 8 else 1)
        scale = e4m3(flat[tiled_position(row, column // 16, 11)]) * whole_scale.item()
        expected[row, column] = value * scale * (factors[column].item() if scaled_columns else 1)
    tensor = stored(tensors, {"format": "nvfp4"})
    assert tensor.shape == (rows, columns)
    assert_equal(tensor, expected)


# ---- there and back


def error_bound(format: str, weight: torch.Tensor, rotated: torch.Tensor) -> torch.Tensor:
    """What each number may be off, from how the format divides its range."""
    rows, columns = weight.shape
    if format == "float8_e4m3fn":  # half a step of three bits; steps stop shrinking at 2^-6
        return torch.maximum(weight.abs(), weight.abs().amax() / 448 * 2**-6) * 2**-4
    if format == "mxfp8":  # the same, with a scale at most twice as large as needed
        largest = weight.unflatten(1, (-1, 32)).abs().amax(dim=2, keepdim=True).expand(-1, -1, 32)
        return torch.maximum(weight.abs(), largest.flatten(1) * 2 / 448 * 2**-6) * 2**-4
    if format == "nvfp4":  # half of the step from 4 to 6; the block's scale is itself rounded by 2^-4
        largest = weight.unflatten(1, (-1, 16)).abs().amax(dim=2, keepdim=True).expand(-1, -1, 16)
        return largest.flatten(1) / 6 * (1 + 2**-4)
    steps = {"int8_tensorwise": 127, "convrot_w4a4": 7}[format]
    scales = rotated.abs().amax(dim=1, keepdim=True) / steps
    # a rotation of errors of half a scale each, whose squares it keeps the sum of
    return (scales / 2 * (1 if rotated is weight else math.sqrt(256))).expand(rows, columns)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [1e-3, 1.0, 50.0])
def test_a_weight_comes_back_within_the_formats_rounding(format: str, size: float) -> None:
    weight = torch.randn(130, 512) * size
    weight[7] = 0
    tensors, metadata = encode(format, "a", weight)
    rotated = torch.from_numpy(rotated_back(weight.numpy(), 256))
    values = whole(stored(tensors, metadata))
    bound = error_bound(format, weight, rotated if metadata.get("convrot") else weight)
    assert ((values - weight).abs() <= bound * 1.001).all()
    assert torch.allclose(values[7], weight[7], atol=1e-6 * size)
    relative = ((values - weight).norm() / weight.norm()).item()
    assert relative < {"float8_e4m3fn": 0.03, "mxfp8": 0.03, "int8_tensorwise": 0.012}.get(format, 0.2)


def test_int8_that_is_not_rotated_is_within_half_a_scale() -> None:
    weight = torch.randn(9, 50)
    tensors, metadata = encode("int8_tensorwise", "a", weight, group=1)
    assert metadata == {"format": "int8_tensorwise"}
    bound = weight.abs().amax(dim=1, keepdim=True) / 127 / 2
    assert ((whole(stored(tensors, metadata)) - weight).abs() <= bound * 1.001).all()


def test_a_forgotten_rotation_gives_noise() -> None:
    weight = torch.randn(64, 512)
    tensors, metadata = encode("int8_tensorwise", "a", weight)
    right = whole(stored(tensors, metadata))
    wrong = whole(stored(tensors, {"format": "int8_tensorwise"}))
    assert (right - weight).norm() / weight.norm() < 0.012
    assert (wrong - weight).norm() / weight.norm() > 1  # worse than no weight at all
    assert torch.corrcoef(torch.stack((wrong.flatten(), weight.flatten())))[0, 1].abs() < 0.1


@pytest.mark.parametrize(("format", "columns"), [("mxfp8", 48), ("nvfp4", 40), ("int8_tensorwise", 320)])
def test_columns_that_a_format_cannot_have_are_refused(format: str, columns: int) -> None:
    with pytest.raises(ArgumentError, match=rf"{columns} columns \(a\)"):
        encode(format, "a", torch.zeros(4, columns))


@pytest.mark.parametrize("blob", [False, True])
def test_metadata_is_written_as_it_is_read(blob: bool) -> None:
    tensors, metadata = encode("float8_e4m3fn", "a", torch.randn(4, 8), full_precision=True)
    file = (
        MemoryFile(tensors | metadata_tensor("a", metadata))
        if blob
        else MemoryFile(tensors, header_metadata({"a": metadata}))
    )
    found = stored_tensors(file)
    assert list(found) == ["a.weight"]
    assert found["a.weight"].full_precision
