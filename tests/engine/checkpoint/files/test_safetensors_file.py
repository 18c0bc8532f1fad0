"""Reading safetensors files: the same values as the safetensors library, and refusals of what is none."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from engine.checkpoint.files.mapped_file import DTYPES
from engine.checkpoint.files.open import open_tensor_file
from engine.checkpoint.files.safetensors_file import LARGEST_HEADER, SafetensorsFile
from engine.checkpoint.files.sharded_file import ShardedFile, open_sharded
from engine.checkpoint.files.stored import Bounds, Header, PlainTensor
from engine.errors import CheckpointError
from tests.damage import bounded_memory

FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)


def whole(shape: tuple[int, ...]) -> Bounds:
    return tuple(slice(0, length) for length in shape)


def random_tensor(dtype: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    name, size = DTYPES[dtype]
    if name == "bool":
        return torch.rand(shape, generator=generator) < 0.5
    octets = torch.randint(0, 256, (*shape, size), dtype=torch.uint8, generator=generator)
    return octets.view(getattr(torch, name)).reshape(shape)


def same_bits(one: torch.Tensor, two: torch.Tensor) -> bool:
    octets = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, two)]
    return one.dtype == two.dtype and one.shape == two.shape and bool(octets[0].equal(octets[1]))


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A file with this header: an object, or the JSON text itself."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(shape: Any = (2, 3), begin: Any = 0, end: Any = 24, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refusal(path: Path) -> str:
    """The one line that opening the file gives, after the file's name, in bounded memory."""
    with pytest.raises(CheckpointError) as error, bounded_memory():
        open_tensor_file(path)
    message = error.value.message
    assert message.isprintable()
    assert len(message) < 1000
    assert message.startswith(f"{path.parent}")
    return message.removeprefix(f"{path.parent}/")


# ---- what is read


@settings(FUZZ, max_examples=60)
@given(data=st.data())
def test_random_slices_are_those_of_the_library(tmp_path: Path, data: st.DataObject) -> None:
    lengths = st.integers(0, 7)
    shapes = data.draw(
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter("__metadata__".__ne__),
            st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(lengths, max_size=4).map(tuple)),
            min_size=1,
            max_size=6,
        )
    )
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "a.safetensors"
    save_file(
        {name: random_tensor(dtype, shape, generator) for name, (dtype, shape) in shapes.items()}, path, {"a": "ü"}
    )
    expected = load_file(path)
    file = SafetensorsFile(path)
    assert file.metadata == {"a": "ü"}
    assert file.headers == {name: Header(shape, dtype) for name, (dtype, shape) in shapes.items()}
    for name, (_, shape) in shapes.items():
        assert same_bits(file.read(name, whole(shape)), expected[name])
        ends = [sorted(data.draw(st.tuples(st.integers(0, length), st.integers(0, length)))) for length in shape]
        bounds = tuple(slice(first, last) for first, last in ends)
        assert same_bits(file.read(name, bounds), expected[name][bounds])
        assert file.header_file(name) == path


def test_tensors_that_are_not_aligned_are_read(tmp_path: Path) -> None:
    values = torch.arange(6, dtype=torch.float32).view(2, 3)
    header = {"odd": entry((3,), 0, 3, "U8"), "a": entry(begin=3, end=27)}
    file = SafetensorsFile(write(tmp_path / "a", header, b"\1\2\3" + values.numpy().tobytes()))
    tensor = file.read("a", (slice(1, 2), slice(0, 2)))
    assert tensor.equal(values[1:2, 0:2])
    assert tensor.data_ptr() % 4 == 0


def test_bools_of_other_values_than_one_are_true(tmp_path: Path) -> None:
    file = SafetensorsFile(write(tmp_path / "a", {"a": entry((3,), 0, 3, "BOOL")}, b"\0\1\xff"))
    assert file.read("a", whole((3,))).view(torch.uint8).tolist() == [0, 1, 1]


def test_what_is_read_is_no_copy_and_outlives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    values = torch.randn((64, 64))
    save_file({"a": values}, path)
    file = SafetensorsFile(path)
    first, second = (file.read("a", (slice(8, 16), slice(0, 64))) for _ in range(2))
    assert first.data_ptr() == second.data_ptr()
    file.close()
    del file
    gc.collect()
    assert first.equal(values[8:16])


def test_a_closed_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros((2, 3))}, path)
    file = SafetensorsFile(path)
    file.close()
    with pytest.raises(CheckpointError, match="it was closed"):
        file.read("a", whole((2, 3)))


def test_several_threads_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {str(number): torch.full((50, 50), float(number)) for number in range(40)}
    save_file(tensors, path)
    file = SafetensorsFile(path)
    with ThreadPoolExecutor(8) as executor:
        read = list(executor.map(lambda name: file.read(name, whole((50, 50))).clone(), list(tensors) * 5))
    assert all(tensor.equal(tensors[name]) for tensor, name in zip(read, list(tensors) * 5, strict=True))


def test_a_link_to_a_file_is_as_good(tmp_path: Path) -> None:
    save_file({"a": torch.ones((2, 3))}, tmp_path / "blob")
    (tmp_path / "a.safetensors").symlink_to("blob")
    assert open_tensor_file(tmp_path / "a.safetensors").headers["a"].shape == (2, 3)


def test_a_plain_tensor_of_a_file(tmp_path: Path) -> None:
    values = torch.arange(6.0)
    save_file({"a": values}, tmp_path / "a.safetensors")
    tensor = PlainTensor(SafetensorsFile(tmp_path / "a.safetensors"), "a", (2, 3))
    assert tensor.read((slice(1, 2), slice(0, 3))).equal(values.view(2, 3)[1:2])


# ---- what is refused

DATA = bytes(24)


@pytest.mark.parametrize("content", [b"", b"\0", b"1234567", b"not a model at all", bytes(100), b"\xff" * 100])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize("content", [b"PK\3\4 and so on", b"\x80\x02}q\0.", b"\x80\x05\x95\0\0\0\0\0\0\0\0."])
def test_pickles_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert refusal(path).startswith("model.safetensors: is a pickle")


def test_a_file_that_torch_saved_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pt")
    torch.save({"a": torch.zeros(3)}, tmp_path / "b.safetensors", _use_new_zipfile_serialization=False)
    assert "is a pickle" in refusal(tmp_path / "a.pt")
    assert "is a pickle" in refusal(tmp_path / "b.safetensors")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone") == "gone: the file is missing"
    (tmp_path / "folder").mkdir()
    assert refusal(tmp_path / "folder") == "folder: is not a file"
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == "pipe: is not a file"
    refusal(tmp_path / ("n" * 300))
    refusal(tmp_path / "a\0b")


@pytest.mark.parametrize("length", [3, 10**6, 2**31, LARGEST_HEADER + 1, 2**63, 2**64 - 1])
def test_a_wrong_header_length_is_refused(tmp_path: Path, length: int) -> None:
    refusal(write(tmp_path / "a", {"a": entry()}, DATA, length))


def test_a_header_beyond_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.write((LARGEST_HEADER + 1).to_bytes(8, "little") + b"{")
        file.truncate(1 << 40)  # a sparse file, of no blocks
    assert "its header is too long" in refusal(path)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"{", "is not valid json"),
        (b"{}}", "is not valid json"),
        (b'{"a\xff": 1}', "is not valid json"),
        (b'{"a": ' * 50_000, "is not valid json"),
        (b'{"a": ' + b"[" * 100_000, "is not valid json"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not valid json"),
        (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
        (b'{"a": {"dtype": "F32", "dtype": "F32"}}', "the key 'dtype' is there twice"),
        (b'{"\\ud800": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}', "is not Unicode"),
        ({"__metadata__": {"a": 1}}, "__metadata__: has a value"),
        ({"__metadata__": []}, "__metadata__: has a value"),
        ({"a": []}, "a: is not described"),
        ({"a" * 10**6: None}, "is not described"),
        ({"a": {}}, "a: tensor has a dtype that cannot be read"),
        ({"a": entry(dtype="F33")}, "a: tensor has a dtype that cannot be read"),
        ({"a": entry(dtype=["F32"])}, "a: tensor has a dtype that cannot be read"),
    ],
)
def test_a_bad_header_is_refused(tmp_path: Path, header: Any, reason: str) -> None:
    assert reason in refusal(write(tmp_path / "a", header, DATA))


@pytest.mark.parametrize(
    "shape",
    [
        *(None, 6, "6", {}, [2, None], [2.0, 3.0], [True, 6], [-2, -3], [[6]], [6] + [1] * 63, [1] * 1_000_000),
        *([1 << 60], [1 << 30] * 3, [0, 1 << 60], [10**400], [10**400, 0], [1 << 32, 1 << 32]),
    ],
)
def test_a_shape_that_no_tensor_has_is_refused(tmp_path: Path, shape: Any) -> None:
    for end in (0, 24):
        assert "a: has a shape that no tensor has" in refusal(write(tmp_path / "a", {"a": entry(shape, 0, end)}, DATA))


@pytest.mark.parametrize(
    ("begin", "end"),
    [(0, 23), (0, 25), (24, 0), (-24, 0), (0.0, 24.0), (None, 24), (False, 24), ("0", "24"), (0, 10**4000)],
)
def test_offsets_that_do_not_fit_are_refused(tmp_path: Path, begin: Any, end: Any) -> None:
    assert "a: has data_offsets that do not fit" in refusal(
        write(tmp_path / "a", {"a": entry((2, 3), begin, end)}, DATA)
    )


@pytest.mark.parametrize("offsets", [None, [], [0], [0, 24, 24], "x", {"begin": 0}])
def test_what_are_no_offsets_is_refused(tmp_path: Path, offsets: Any) -> None:
    header = {"a": {**entry(), "data_offsets": offsets}}
    assert "a: has data_offsets that do not fit" in refusal(write(tmp_path / "a", header, DATA))


@pytest.mark.parametrize(
    "entries",
    [
        (entry(begin=8, end=32),),  # a gap at the start
        (entry(), entry()),
        (entry(), entry(begin=20, end=44)),
        (entry(), entry(begin=28, end=52)),
        (entry(), entry((0,), 12, 12)),
        (entry(), entry(begin=2**62, end=2**62 + 24)),
    ],
)
def test_overlaps_and_gaps_are_refused(tmp_path: Path, entries: tuple[dict[str, Any], ...]) -> None:
    header = dict(zip("ab", entries, strict=False))
    assert "does not begin where the tensor before it ends" in refusal(write(tmp_path / "a", header, bytes(64)))


@pytest.mark.parametrize("size", [0, 23, 25, 4096])
def test_data_of_another_length_is_refused(tmp_path: Path, size: int) -> None:
    assert "its data has another length" in refusal(write(tmp_path / "a", {"a": entry()}, bytes(size)))


def seconds_to_open(tmp_path: Path, tensors: int) -> float:
    """Of this thread on a core, for a file of so many tensors; the least of three times.

    Python collects no garbage meanwhile, which takes time for all that the process holds.
    """
    header = {f"blocks.{number}.attn.wq.weight": entry((1,), 4 * number, 4 * number + 4) for number in range(tensors)}
    path = write(tmp_path / "many", header, bytes(4 * tensors))
    seconds = []
    gc.disable()
    try:
        for _ in range(3):
            began = time.thread_time()
            file = SafetensorsFile(path)
            seconds.append(time.thread_time() - began)
            assert len(file.headers) == tensors
    finally:
        gc.enable()
    return min(seconds)


def test_the_time_that_a_header_takes_grows_with_its_length_and_no_faster(tmp_path: Path) -> None:
    few, many = seconds_to_open(tmp_path, 2_000), seconds_to_open(tmp_path, 20_000)
    assert many < 40 * few  # 10 if it is in proportion, 100 if every tensor is compared with every other


@pytest.mark.parametrize("text", [b"0", b"[[[]]]"])
def test_the_memory_that_a_header_takes_is_in_proportion_to_its_length(tmp_path: Path, text: bytes) -> None:
    length = 1 << 19
    path = write(tmp_path / "a", b'{"a": [' + b",".join([text] * (length // (len(text) + 1))) + b"]}")
    tracemalloc.start()
    try:
        assert "is not described" in refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50 * length  # 800 MB for the largest header


# That time and memory are in proportion to a header's length: the two tests above.
@pytest.mark.slow
def test_a_header_of_a_hundred_thousand_tensors_is_read(tmp_path: Path) -> None:
    header = {f"blocks.{number}.attn.wq.weight": entry((1,), 4 * number, 4 * number + 4) for number in range(100_000)}
    path = write(tmp_path / "many", header, bytes(400_000))
    with bounded_memory():
        assert len(SafetensorsFile(path).headers) == 100_000


@FUZZ
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(0, 400),
)
def test_damaged_files_are_refused_or_read(tmp_path: Path, changes: list[tuple[int, int]], cut: int) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros((2, 3)), "b": torch.zeros((4,), dtype=torch.bfloat16)}, path, {"format": "pt"})
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[:8], "little")
    for position, value in changes:
        content[position % (8 + header)] = value
    read_all_or_refuse(path, bytes(content[: len(content) - max(0, cut - 300)]))


def read_all_or_refuse(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # files that are open stay as they are
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError), bounded_memory():
        file = open_tensor_file(path)
        for name, header in file.headers.items():
            assert file.read(name, whole(header.shape)).shape == header.shape


# ---- shards


@pytest.fixture
def index(tmp_path: Path) -> Path:
    save_file({"a": torch.ones((2, 3)), "b": torch.zeros(4)}, tmp_path / "1.safetensors", {"format": "pt"})
    save_file({"c": torch.full((5,), 7.0)}, tmp_path / "2.safetensors", {"format": "pt", "more": "x"})
    return write_index(tmp_path, {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"})


def write_index(folder: Path, weight_map: Any) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 60}, "weight_map": weight_map}))
    return path


def test_shards_are_one_file(index: Path) -> None:
    file = open_sharded(index)
    assert file.path == index
    assert file.headers == {"a": Header((2, 3), "F32"), "b": Header((4,), "F32"), "c": Header((5,), "F32")}
    assert file.metadata == {"format": "pt", "more": "x"}
    assert file.header_file("c") == index.parent / "2.safetensors"
    assert file.read("c", (slice(1, 3),)).tolist() == [7, 7]
    assert isinstance(open_tensor_file(index), ShardedFile)
    file.close()
    with pytest.raises(CheckpointError, match=r"1\.safetensors: cannot be read"):
        file.read("a", whole((2, 3)))


@pytest.mark.parametrize(
    "shard",
    ["../1.safetensors", "/1.safetensors", "x/1.safetensors", "", ".", "..", "gone", "a\0b", "\ud800", "n" * 300],
)
def test_a_shard_elsewhere_is_refused(index: Path, shard: str) -> None:
    refusal(write_index(index.parent, {"a": "1.safetensors", "c": shard}))


@pytest.mark.parametrize("weight_map", [None, [], "x", {}, {"a": None}, {"a": ["1.safetensors"]}])
def test_a_bad_weight_map_is_refused(index: Path, weight_map: Any) -> None:
    assert "weight_map: has a value that does not fit" in refusal(write_index(index.parent, weight_map))


def test_an_index_that_lists_what_is_not_there_is_refused(index: Path) -> None:
    for weight_map in ({"a": "1.safetensors", "x": "1.safetensors"}, {"a": "1.safetensors", "b": "2.safetensors"}):
        assert "tensor is missing, though the index lists it" in refusal(write_index(index.parent, weight_map))


def test_a_tensor_in_two_shards_is_refused(index: Path) -> None:
    save_file({"c": torch.zeros(5), "a": torch.zeros((2, 3))}, index.parent / "2.safetensors")
    assert refusal(index) == "2.safetensors: a: tensor is in another shard too, found 1.safetensors"


def test_shards_that_are_quantised_differently_are_refused(index: Path) -> None:
    save_file({"c": torch.zeros(5)}, index.parent / "2.safetensors", {"_quantization_metadata": "{}"})
    assert "_quantization_metadata: differs" in refusal(index)


def test_bad_indexes_are_refused(index: Path) -> None:
    for content in (b"{", b"{" * 10**6, b'{"weight_map": {"a": "1.safetensors", "a": "1.safetensors"}}', b"{\xff}"):
        index.write_bytes(content)
        assert "is not valid json" in refusal(index)
    with index.open("wb") as file:
        file.write(b"{ ")
        file.truncate(1 << 40)
    assert "is too long for an index" in refusal(index)
