"""An index and its shards, read as one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.checkpoint.files.open import open_tensor_file
from engine.checkpoint.files.safetensors_file import ShardedFile
from engine.checkpoint.files.stored import Header
from engine.errors import CheckpointError
from tests.engine.checkpoint.files.safetensors_files import refusal, whole


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
    file = ShardedFile(index)
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
