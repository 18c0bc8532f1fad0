"""GGUF tensors as stored tensors: dequantised, and in the 8 bits that they are held in."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint.convert.writers import write_gguf
from engine.checkpoint.files.gguf_file import GgufFile
from engine.checkpoint.files.stored import PlainTensor, StoredTensor
from engine.checkpoint.layouts.encodings import stored_tensors
from engine.errors import CheckpointError
from engine.kernels.int8 import dequantize_groups

ROWS, COLUMNS = 24, 512
WHOLE = (slice(0, ROWS), slice(0, COLUMNS))
K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StoredTensor]:
    """A matrix of every type. The library writes no K-quants: theirs are random bytes with small scales."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer = GGUFWriter(path, "krea2")
    rng = np.random.default_rng(0)
    for name in K_QUANTS:
        dtype = GGMLQuantizationType[name]
        block, size = GGML_QUANT_SIZES[dtype]
        blocks = rng.integers(0, 256, (ROWS, COLUMNS // block, size), dtype=np.uint8)
        half = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
        # d and, after it, dmin begin a block in Q4_K and Q5_K, and end it in the others
        for start in {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}[name]:
            blocks[..., start : start + 2] = half
        writer.add_tensor(f"{name}.weight", blocks.reshape(ROWS, -1), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = stored_tensors(GgufFile(path))
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    for name in ("Q8_0", "Q5_0", "Q4_0"):
        one = path.with_name(f"{name}.gguf")
        write_gguf(one, {f"{name}.weight": (ROWS, COLUMNS)}, name, lambda _: weight)
        found |= stored_tensors(GgufFile(one))
    return found


TYPES = (*K_QUANTS, "Q8_0", "Q5_0", "Q4_0")


@pytest.mark.parametrize("qtype", TYPES)
def test_quantised_matrices_are_kept_as_int8(tensors: dict[str, StoredTensor], qtype: str) -> None:
    tensor = tensors[f"{qtype}.weight"]
    assert (tensor.format, tensor.weight_format, tensor.shape) == (qtype, "int8", (ROWS, COLUMNS))
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[qtype]]
    assert tensor.size(WHOLE) == ROWS * COLUMNS // block * size
    exact = tensor.read(WHOLE)
    values, scales = tensor.read_eight_bit(WHOLE)
    assert (values.dtype, scales.dtype, scales.shape) == (torch.int8, torch.float16, (ROWS, COLUMNS // 32))
    held = dequantize_groups(values, scales, torch.float32)
    if qtype == "Q8_0":
        assert torch.equal(held, exact)
    else:
        assert ((held - exact).abs() <= scales.float().repeat_interleave(32, dim=1) * 0.5001).all()


@pytest.mark.parametrize("qtype", TYPES)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_any_slice_is_the_slice_of_the_whole(tensors: dict[str, StoredTensor], qtype: str, data: st.DataObject) -> None:
    tensor = tensors[f"{qtype}.weight"]
    first, last = sorted((data.draw(st.integers(0, ROWS)), data.draw(st.integers(0, ROWS))))
    left, right = sorted((data.draw(st.integers(0, COLUMNS)), data.draw(st.integers(0, COLUMNS))))
    rows, columns = slice(first, last), slice(left, right)
    assert torch.equal(tensor.read((rows, columns)), tensor.read(WHOLE)[rows, columns])
    groups = slice(left // 32, right // 32)
    columns = slice(groups.start * 32, groups.stop * 32)
    values, scales = tensor.read_eight_bit((rows, columns))
    all_values, all_scales = tensor.read_eight_bit(WHOLE)
    assert torch.equal(values, all_values[rows, columns])
    assert torch.equal(scales, all_scales[rows, groups])


def test_what_is_not_a_quantised_matrix_is_not_kept_as_int8(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    plain = {"a.weight": torch.randn(24, 64), "a.bias": torch.randn(64), "mod.lin": torch.randn(2048)}
    write_gguf(file, {name: tuple(tensor.shape) for name, tensor in plain.items()}, "BF16", plain.__getitem__)
    found = stored_tensors(GgufFile(file))
    assert {name: tensor.format for name, tensor in found.items()} == {
        "a.weight": "BF16",
        "a.bias": "F32",
        "mod.lin": "F32",
    }
    for name, tensor in found.items():
        assert isinstance(tensor, PlainTensor)
        assert tensor.weight_format == "float"
        whole = tuple(slice(0, length) for length in tensor.shape)
        assert tensor.size(whole) == math.prod(tensor.shape) * (2 if name == "a.weight" else 4)
        assert torch.equal(
            tensor.read(whole).float(), plain[name].bfloat16().float() if name == "a.weight" else plain[name]
        )


def test_a_scale_that_is_no_number_is_found(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file, {"a.weight": (40, 64)}, "Q4_0", lambda _: torch.randn(40, 64))
    data = bytearray(file.read_bytes())
    data[-18:-16] = np.float16(np.inf).tobytes()  # of the last block
    file.write_bytes(data)
    tensor = stored_tensors(GgufFile(file))["a.weight"]
    with pytest.raises(CheckpointError, match=r"a\.weight: holds values that are not finite"):
        tensor.read_eight_bit((slice(0, 40), slice(0, 64)))
    tensor.read_eight_bit((slice(0, 39), slice(0, 64)))
