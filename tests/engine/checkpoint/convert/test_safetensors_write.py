"""Files written tensor by tensor, read by safetensors' own library."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from engine.checkpoint.convert import writers
from engine.checkpoint.convert.writers import safetensors_writer
from engine.errors import CheckpointError


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "strided": torch.randn(5, 7).t(),
        'name "with" quotes\n': torch.randn(3).bfloat16(),
        **{str(dtype): torch.randn(4, 8).to(dtype) for dtype in writers._NAMES if dtype != torch.float8_e8m0fnu},
        "exponents": torch.arange(1, 9, dtype=torch.uint8).view(torch.float8_e8m0fnu),
    }
    with safetensors_writer(tmp_path / "a.safetensors", len(tensors)) as writer:
        writer.metadata = {"format": "pt", "ü": '{"x": 1}'}
        for name, tensor in tensors.items():
            writer.add(name, tensor)
    read = load_file(tmp_path / "a.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name].view(-1).view(torch.uint8), tensor.contiguous().view(-1).view(torch.uint8))
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "ü": '{"x": 1}'}
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_file_that_was_not_finished_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), safetensors_writer(tmp_path / "a.safetensors", 1) as writer:
        writer.add("x" * 2000, torch.ones(3))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    file, message = tmp_path / "missing" / "a.safetensors", r"missing/a\.safetensors: cannot be written: No such file"
    with pytest.raises(CheckpointError, match=message), safetensors_writer(file, 1):
        pass
