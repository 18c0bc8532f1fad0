"""Reading GGUF files: the same values as the gguf library, and refusals of what is none."""

from __future__ import annotations

import contextlib
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.checkpoint.files.gguf_file import GgufFile
from engine.checkpoint.files.gguf_header import _LARGEST_HEADER as LARGEST_HEADER
from engine.checkpoint.files.open import open_tensor_file
from engine.checkpoint.files.stored import Bounds, Header
from engine.errors import CheckpointError
from tests.damage import bounded_memory

FUZZ = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)
PLAIN = {Type.F64: "<f8", Type.F32: "<f4", Type.F16: "<f2", Type.I8: "i1", Type.I16: "<i2", Type.I32: "<i4"}
WITHOUT_REFERENCE = {Type.Q8_1, Type.Q8_K, Type.Q1_0}  # the library cannot dequantise them
QUANTISED = sorted(set(GGML_QUANT_SIZES) - set(PLAIN) - {Type.I64, Type.BF16} - WITHOUT_REFERENCE)
WRITTEN = (Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.MXFP4)


def whole(shape: tuple[int, ...]) -> Bounds:
    return tuple(slice(0, length) for length in shape)


def write(path: Path, tensors: dict[str, tuple[np.ndarray, Type]], **shapes: list[int]) -> Path:
    """A file by the library's writer. tensors: the bytes of rows of quantised ones; shapes: `orig_shape`s."""
    writer = GGUFWriter(path, "krea2")
    for name, shape in shapes.items():
        writer.add_array(f"comfy.gguf.orig_shape.{name}", shape)
    for name, (values, dtype) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_blocks(dtype: Type, rows: int, blocks: int) -> np.ndarray:
    octets = np.random.default_rng(0).integers(0, 256, (rows, blocks * GGML_QUANT_SIZES[dtype][1]), dtype=np.uint8)
    return octets


def same_bits(one: torch.Tensor, two: torch.Tensor) -> bool:
    octets = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, two)]
    return one.dtype == two.dtype and one.shape == two.shape and bool(octets[0].equal(octets[1]))


def refusal(path: Path) -> str:
    """The one line that opening the file gives, after the file's name, in bounded memory."""
    with pytest.raises(CheckpointError) as error, bounded_memory():
        open_tensor_file(path)
    message = error.value.message
    assert message.isprintable()
    assert len(message) < 1000
    return message.removeprefix(f"{path}: ")


# ---- what is read


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


# ---- what is refused


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def key(name: str | bytes, kind: GGUFValueType | int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def array(kind: GGUFValueType | int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def info(name: str | bytes = "a", lengths: tuple[int, ...] = (8,), dtype: int = Type.F32, start: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(lengths)}Q", len(lengths), *lengths)
    return string(name) + dimensions + struct.pack("<IQ", dtype, start)


def raw(
    path: Path,
    keys: tuple[bytes, ...] = (),
    infos: tuple[bytes, ...] = (),
    *,
    data: bytes = bytes(32),
    version: int = 3,
    tensors: int | None = None,
    entries: int | None = None,
    align: int = 32,
) -> Path:
    """A file put together by hand, its counts true if not given."""
    tensors, entries = len(infos) if tensors is None else tensors, len(keys) if entries is None else entries
    header = b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + b"".join((*keys, *infos))
    path.write_bytes(header + bytes(-len(header) % align) + data)
    return path


def test_files_made_by_hand_are_read(tmp_path: Path) -> None:
    for version in (2, 3):
        file = GgufFile(raw(tmp_path / "a", (), (info(),), data=np.arange(8, dtype="<f4").tobytes(), version=version))
        assert file.read("a", (slice(2, 4),)).tolist() == [2, 3]


@pytest.mark.parametrize("version", [0, 1, 4, 2**32 - 1, 3 << 24])
def test_another_version_is_refused(tmp_path: Path, version: int) -> None:
    message = refusal(raw(tmp_path / "a", version=version))
    assert message.startswith("has a version of GGUF that cannot be read")
    assert ("big-endian" in message) == (version in (0, 3 << 24))


@pytest.mark.parametrize("count", [2, 1000, 2**16 + 1, 2**60, 2**64 - 1])
def test_counts_beyond_the_file_are_refused(tmp_path: Path, count: int) -> None:
    for message in (refusal(raw(tmp_path / "a", tensors=count)), refusal(raw(tmp_path / "a", entries=count))):
        # zeros that follow read as empty keys, equal ones
        assert "has too many" in message or "its header goes beyond its end" in message or "is there twice" in message


@pytest.mark.parametrize("count", [100, 2**31, 2**60, 2**64 - 1])
@pytest.mark.parametrize("kind", [GGUFValueType.STRING, GGUFValueType.UINT8, GGUFValueType.FLOAT64])
@pytest.mark.parametrize("name", ["tokens", "comfy.gguf.orig_shape.a"])
def test_arrays_beyond_the_file_are_refused(tmp_path: Path, name: str, kind: GGUFValueType, count: int) -> None:
    path = raw(tmp_path / "a", (key(name, GGUFValueType.ARRAY, array(kind, count)),))
    assert "its header goes beyond its end" in refusal(path)


def test_of_an_array_no_more_is_read_than_the_largest_header(tmp_path: Path) -> None:
    path = raw(tmp_path / "a", (key("a", GGUFValueType.ARRAY, array(GGUFValueType.STRING, 2**60)),), data=b"")
    with path.open("ab") as file:
        file.truncate(1 << 30)  # zeros: millions of empty strings
    message = refusal(path)
    assert "its header goes beyond its end" in message
    assert int(message.rpartition("found ")[2]) <= LARGEST_HEADER + 8


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ((struct.pack("<Q", 2**60),), "its header goes beyond its end"),
        ((key("a", GGUFValueType.STRING, struct.pack("<Q", 2**64 - 1)),), "its header goes beyond its end"),
        ((key("a", 13, b""),), "a: has a type that there is none of"),
        ((key("a", 2**32 - 1, b""),), "a: has a type that there is none of"),
        ((key("a", GGUFValueType.ARRAY, array(GGUFValueType.ARRAY, 2**40)),), "a: has a type that there is none of"),
        ((key(b"\xff", GGUFValueType.UINT8, b"\0"),), "has a metadata key that is not UTF-8"),
        ((key("a", GGUFValueType.STRING, string(b"\xff")),), "has a metadata value that is not UTF-8"),
        ((key("a", GGUFValueType.UINT8, b"\0"), key("a", GGUFValueType.UINT8, b"\0")), "a: is there twice"),
        *(
            ((key("general.alignment", GGUFValueType.UINT32, struct.pack("<I", value)),), "a power of two")
            for value in (0, 3, 2**31)
        ),
        ((key("general.alignment", GGUFValueType.STRING, string("²")),), "a power of two"),
        ((key("general.alignment", GGUFValueType.STRING, string("9" * 5000)),), "a power of two"),
    ],
)
def test_bad_metadata_is_refused(tmp_path: Path, keys: tuple[bytes, ...], reason: str) -> None:
    assert reason in refusal(raw(tmp_path / "a", keys, (info(),)))


@pytest.mark.parametrize(
    ("infos", "reason"),
    [
        ((info(b"\xff"),), "has a tensor's name that is not UTF-8"),
        ((info(), info(start=32)), "a: tensor is there twice"),
        ((info(lengths=(1,) * 5),), "a: has too many dimensions"),
        ((string("a") + struct.pack("<I", 2**32 - 1),), "a: has too many dimensions"),
        ((info(lengths=(2**60,)),), "a: has a shape that no tensor has"),
        ((info(lengths=(2**62, 2**62, 2**62, 4)),), "a: has a shape that no tensor has"),
        ((info(lengths=(2**63, 0)),), "a: has a shape that no tensor has"),
        ((info(lengths=(2**40,)),), "a: is not a whole GGUF file"),
        ((info(lengths=(9,)),), "a: is not a whole GGUF file"),
        ((info(start=32),), "a: is not a whole GGUF file"),
        ((info(start=2**63),), "a: is not a whole GGUF file"),
        ((info(start=8),), "a: begins where no tensor may"),
        ((info(), info("b")), "b: its data overlaps another tensor's"),
        ((info(dtype=4),), "a: tensor has a dtype that cannot be read"),
        ((info(dtype=2**32 - 1),), "a: tensor has a dtype that cannot be read"),
        ((info(lengths=(33,), dtype=Type.Q8_0),), "a: has rows of parts of blocks"),
        ((info(lengths=(), dtype=Type.Q8_0),), "a: has rows of parts of blocks"),
        ((info("n" * 10**6, dtype=2**31),), "cannot be read"),
    ],
)
def test_bad_tensors_are_refused(tmp_path: Path, infos: tuple[bytes, ...], reason: str) -> None:
    assert reason in refusal(raw(tmp_path / "a", (), infos))


@pytest.mark.parametrize("shape", [(), (7,), (2, 5), (-8, -1), (1,) * 9, (2**31 - 1,) * 8])
def test_a_shape_to_restore_that_does_not_fit_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = array(GGUFValueType.INT32, len(shape), struct.pack(f"<{len(shape)}i", *shape))
    keys = (key("comfy.gguf.orig_shape.a", GGUFValueType.ARRAY, values),)
    message = refusal(raw(tmp_path / "a", keys, (info(),)))
    assert message.startswith(("a: has a shape that no tensor has", "comfy.gguf.orig_shape.a: does not fit"))


def test_a_type_that_cannot_be_dequantised_is_refused(tmp_path: Path) -> None:
    file = GgufFile(raw(tmp_path / "a", (), (info(lengths=(256,), dtype=Type.Q8_K),), data=bytes(292)))
    with pytest.raises(CheckpointError, match="a: Q8_K cannot be dequantised"):
        file.read("a", whole((256,)))


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    tensors = {"a": (random_blocks(Type.Q4_K, 2, 1), Type.Q4_K), "b": (np.ones((3, 4), np.float32), Type.F32)}
    content = write(tmp_path / "a.gguf", tensors, a=[2, 256]).read_bytes()
    last = next(tensor for tensor in GGUFReader(tmp_path / "a.gguf").tensors if tensor.name == "b")
    for length in range(last.data_offset + last.n_bytes):
        (tmp_path / "cut").write_bytes(content[:length])
        refusal(tmp_path / "cut")


@FUZZ
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(-300, 100).map(lambda cut: max(0, cut)),
)
def test_damaged_files_are_refused_or_read(tmp_path: Path, changes: list[tuple[int, int]], cut: int) -> None:
    tensors = {
        "a": (random_blocks(Type.Q4_K, 2, 1), Type.Q4_K),
        "b": (random_blocks(Type.Q8_0, 2, 2), Type.Q8_0),
        "c": (np.ones((3, 4), np.float32), Type.F32),
    }
    path = write(tmp_path / "a.gguf", tensors, b=[4, 32])
    content = bytearray(path.read_bytes())
    header = min(tensor.data_offset for tensor in GGUFReader(path).tensors)
    for position, value in changes:
        content[position % header] = value
    damaged = tmp_path / "damaged"
    damaged.unlink(missing_ok=True)  # files that are open stay as they are
    damaged.write_bytes(content[: len(content) - cut])
    with contextlib.suppress(CheckpointError), bounded_memory():
        file = open_tensor_file(damaged)
        for name, stored in file.headers.items():
            assert file.read(name, whole(stored.shape)).shape == stored.shape
