"""Reading safetensors files: the same values as the safetensors library."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from engine.checkpoint.files.mapped_file import DTYPES
from engine.checkpoint.files.open import open_tensor_file
from engine.checkpoint.files.safetensors_file import SafetensorsFile
from engine.checkpoint.files.stored import Header, PlainTensor, Reshaped
from engine.errors import CheckpointError
from tests.engine.checkpoint.files.safetensors_files import FUZZ, entry, random_tensor, same_bits, whole, write


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


def test_a_reshaped_tensor_of_a_file(tmp_path: Path) -> None:
    values = torch.arange(6.0)
    save_file({"a": values}, tmp_path / "a.safetensors")
    tensor = Reshaped(PlainTensor(SafetensorsFile(tmp_path / "a.safetensors"), "a"), (2, 3))
    assert tensor.read((slice(1, 2), slice(0, 3))).equal(values.view(2, 3)[1:2])
