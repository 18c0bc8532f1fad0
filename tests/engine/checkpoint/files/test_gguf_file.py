"""Reading GGUF files: the same values as the gguf library."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES

from engine.checkpoint.files.gguf_file import GgufFile
from engine.checkpoint.files.stored import Header
from engine.errors import CheckpointError
from tests.engine.checkpoint.files.gguf_files import random_blocks, same_bits, whole, write

PLAIN = {Type.F64: "<f8", Type.F32: "<f4", Type.F16: "<f2", Type.I8: "i1", Type.I16: "<i2", Type.I32: "<i4"}
WITHOUT_REFERENCE = {Type.Q8_1, Type.Q8_K, Type.Q1_0}  # the library cannot dequantise them
QUANTISED = sorted(set(GGML_QUANT_SIZES) - set(PLAIN) - {Type.I64, Type.BF16} - WITHOUT_REFERENCE)
WRITTEN = (Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.MXFP4)


@pytest.mark.parametrize("dtype", [*PLAIN, Type.BF16], ids=lambda dtype: dtype.name)
def test_plain_numbers_keep_their_dtype(tmp_path: Path, dtype: Type) -> None:
    values = np.random.default_rng(0).normal(0, 50, (6, 10)).astype(np.float32)
    stored = gguf.quants.quantize(values, dtype) if dtype == Type.BF16 else values.astype(PLAIN[dtype])
    file = GgufFile(write(tmp_path / "a.gguf", {"a": (stored, dtype)}))
    assert file.headers == {"a": Header((6, 10), dtype.name)}
    expected = torch.from_numpy(values).bfloat16() if dtype == Type.BF16 else torch.from_numpy(stored)
    assert file.read("a", whole((6, 10))).equal(expected)
    assert file.read("a", (slice(1, 4), slice(3, 9))).equal(expected[1:4, 3:9])
    assert file.bytes_of("a", (slice(1, 4), slice(3, 9))) == 18 * expected.itemsize


@pytest.mark.parametrize("dtype", QUANTISED, ids=lambda dtype: dtype.name)
def test_slices_are_those_of_what_the_library_dequantises(tmp_path: Path, dtype: Type) -> None:
    elements, octets = GGML_QUANT_SIZES[dtype]
    stored = random_blocks(dtype, 33, 4)
    path = write(tmp_path / "a.gguf", {"first": (random_blocks(dtype, 2, 1), dtype), "a": (stored, dtype)})
    (tensor,) = [tensor for tensor in GGUFReader(path).tensors if tensor.name == "a"]
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(gguf.quants.dequantize(tensor.data, dtype))
    file = GgufFile(path)
    width = 4 * elements
    assert file.headers["a"] == Header((33, width), dtype.name)
    assert same_bits(file.read("a", whole((33, width))), expected)
    for rows, columns in (
        (slice(5, 31), slice(0, width)),
        (slice(0, 33), slice(elements, 3 * elements)),
        (slice(2, 3), slice(elements - 1, elements + 1)),
        (slice(32, 33), slice(7, width - 7)),
        (slice(4, 4), slice(3, 3)),
    ):
        assert same_bits(file.read("a", (rows, columns)), expected[rows, columns])
    assert file.bytes_of("a", (slice(2, 5), slice(elements - 1, elements + 1))) == 3 * 2 * octets


@pytest.mark.parametrize("dtype", WRITTEN, ids=lambda dtype: dtype.name)
def test_what_the_library_quantises_comes_back(tmp_path: Path, dtype: Type) -> None:
    values = np.random.default_rng(0).normal(size=(8, 512)).astype(np.float32)
    stored = gguf.quants.quantize(values, dtype)
    file = GgufFile(write(tmp_path / "a.gguf", {"a": (stored, dtype)}))
    read = file.read("a", (slice(0, 8), slice(256, 512)))
    assert read.equal(torch.from_numpy(gguf.quants.dequantize(stored, dtype))[:, 256:])
    assert (read - torch.from_numpy(values)[:, 256:]).abs().mean() < 0.15


def test_q8_0_is_read_as_it_is_stored(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(6, 128)).astype(np.float32)
    file = GgufFile(write(tmp_path / "a.gguf", {"a": (gguf.quants.quantize(values, Type.Q8_0), Type.Q8_0)}))
    bounds = (slice(1, 5), slice(32, 128))
    quantised, scales = file.read_q8_0("a", bounds)
    assert (quantised.dtype, quantised.shape) == (torch.int8, (4, 96))
    assert (scales.dtype, scales.shape) == (torch.float16, (4, 3))
    product = quantised.float().view(4, 3, 32) * scales.float()[..., None]
    assert product.view(4, 96).equal(file.read("a", bounds))


def test_one_dimension_and_none(tmp_path: Path) -> None:
    tensors = {
        "vector": (random_blocks(Type.Q4_0, 1, 6)[0], Type.Q4_0),
        "one": (np.array([2.5], np.float32), Type.F32),
    }
    file = GgufFile(write(tmp_path / "a.gguf", tensors))
    assert file.headers["vector"].shape == (192,)
    all_of_it = file.read("vector", whole((192,)))
    assert file.read("vector", (slice(30, 70),)).equal(all_of_it[30:70])
    assert file.bytes_of("vector", (slice(30, 70),)) == 3 * 18
    assert file.read("one", whole((1,))).tolist() == [2.5]


def test_the_true_shape_of_a_tensor_is_restored(tmp_path: Path) -> None:
    values = np.arange(3 * 256, dtype=np.float32).reshape(3, 256)
    stored = gguf.quants.quantize(values, Type.Q8_0)
    tensors = dict.fromkeys(("four", "odd", "wide"), (stored, Type.Q8_0)) | {"plain": (values, Type.F32)}
    shapes = {"four": [4, 6, 16, 2], "odd": [12, 64], "wide": [64, 12], "plain": [64, 12]}
    file = GgufFile(write(tmp_path / "a.gguf", tensors, **shapes))
    expected = torch.from_numpy(gguf.quants.dequantize(stored, Type.Q8_0))
    for name, shape in shapes.items():
        values = torch.from_numpy(tensors["plain"][0]) if name == "plain" else expected
        assert file.headers[name].shape == tuple(shape)
        assert file.read(name, whole(tuple(shape))).equal(values.view(shape))
        bounds = tuple(slice(1, length - 1 if length > 2 else length) for length in shape)
        assert file.read(name, bounds).equal(values.view(shape)[bounds])


def test_metadata(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "a.gguf", "krea2")
    writer.add_string("name", "ü")
    writer.add_uint64("count", 2**60)
    writer.add_float32("number", 0.5)
    writer.add_bool("yes", True)
    writer.add_array("strings", ["a", "bc"])
    writer.add_array("floats", [1.5, 2.5])
    writer.add_custom_alignment(128)
    writer.add_tensor("a", np.ones((3, 5), np.float32))
    writer.add_tensor("b", np.ones((3, 5), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "a.gguf")
    assert {"name": "ü", "count": str(2**60), "number": "0.5", "yes": "True"}.items() <= file.metadata.items()
    assert file.metadata["general.architecture"] == "krea2"
    assert not {"strings", "floats"} & file.metadata.keys()
    assert file.read("b", whole((3, 5))).tolist() == [[1] * 5] * 3


def test_several_threads_dequantise(tmp_path: Path) -> None:
    stored = random_blocks(Type.IQ2_S, 16, 2)  # whose table is made when it is first needed
    file = GgufFile(write(tmp_path / "a.gguf", {"a": (stored, Type.IQ2_S)}))
    with ThreadPoolExecutor(8) as executor:
        read = list(executor.map(lambda _: file.read("a", whole((16, 512))), range(16)))
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(gguf.quants.dequantize(stored, Type.IQ2_S))
    assert all(same_bits(tensor, expected) for tensor in read)


def test_a_closed_file_says_so(tmp_path: Path) -> None:
    file = GgufFile(write(tmp_path / "a.gguf", {"a": (random_blocks(Type.Q8_0, 2, 2), Type.Q8_0)}))
    file.close()
    with pytest.raises(CheckpointError, match="it was closed"):
        file.read("a", whole((2, 64)))
