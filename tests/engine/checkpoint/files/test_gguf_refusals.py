"""GGUF files that are refused: bad metadata, tensors that cannot be, damage."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, GGUFValueType
from hypothesis import given
from hypothesis import strategies as st

from engine.checkpoint.files.gguf_file import GgufFile
from engine.checkpoint.files.gguf_header import _LARGEST_HEADER as LARGEST_HEADER
from engine.checkpoint.files.open import open_tensor_file
from engine.errors import CheckpointError
from tests.damage import bounded_memory
from tests.engine.checkpoint.files.gguf_files import FUZZ, random_blocks, refusal, whole, write


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
        ((key("a", 13, b""),), "a: has an unknown type"),
        ((key("a", 2**32 - 1, b""),), "a: has an unknown type"),
        ((key("a", GGUFValueType.ARRAY, array(GGUFValueType.ARRAY, 2**40)),), "a: has an unknown type"),
        ((key(b"\xff", GGUFValueType.UINT8, b"\0"),), "has a metadata key that is not UTF-8"),
        ((key("a", GGUFValueType.STRING, string(b"\xff")),), "has a metadata value that is not UTF-8"),
        ((key("a", GGUFValueType.UINT8, b"\0"), key("a", GGUFValueType.UINT8, b"\0")), "a: is there twice"),
        *(
            ((key("general.alignment", GGUFValueType.UINT32, struct.pack("<I", value)),), "a power of two")
            for value in (0, 3, 2**31)
        ),
        ((key("general.alignment", GGUFValueType.STRING, string("²")),), "a power of two"),
        ((key("general.alignment", GGUFValueType.STRING, string("٣٢")),), "a power of two"),
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
        ((info(lengths=(33,), dtype=Type.Q8_0),), "a: has rows that are not whole blocks"),
        ((info(lengths=(), dtype=Type.Q8_0),), "a: has rows that are not whole blocks"),
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


def test_a_shape_to_restore_of_a_million_lengths_is_refused_unread(tmp_path: Path) -> None:
    values = array(GGUFValueType.UINT8, 10**6, bytes(10**6))
    message = refusal(raw(tmp_path / "a", (key("comfy.gguf.orig_shape.a", GGUFValueType.ARRAY, values),), (info(),)))
    assert message == "comfy.gguf.orig_shape.a: is too long, expected at most 64 numbers, found 1000000"


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
