"""The bytes of whole tensors, which every container gives without torch."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.checkpoint.convert.writers import write_gguf
from engine.checkpoint.files.open import open_tensor_file
from engine.errors import CheckpointError

TENSORS = {"a.weight": torch.randn(40, 64), "a.bias": torch.randn(7), "empty": torch.empty(0)}


@pytest.mark.parametrize("container", ["safetensors", "index", "gguf"])
def test_octets_are_the_tensors_bytes(tmp_path: Path, container: str) -> None:
    file = tmp_path / "model.safetensors"
    if container == "gguf":
        write_gguf(file, {name: tuple(t.shape) for name, t in TENSORS.items()}, "F32", TENSORS.__getitem__)
    else:
        save_file(TENSORS, file)
    if container == "index":
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, file.name)}))
        file = index
    opened = open_tensor_file(file)
    for name, tensor in TENSORS.items():
        assert opened.octets(name).tobytes() == tensor.numpy().tobytes()
    assert opened.octets("a.weight", slice(4, 12)).tobytes() == TENSORS["a.weight"].numpy().tobytes()[4:12]
    # read and not mapped: what is mapped of a file that is cut short ends the process that touches it
    os.truncate(tmp_path / "model.safetensors", 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: has become shorter while it was read"):
        opened.octets("a.weight")
