"""Which file of a folder is the LoRA, and what its neighbours say of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from engine.config.model_config import ModelConfig
from engine.errors import LoraError
from engine.lora.files import open_adapter
from engine.lora.folders import file_in
from tests.engine.lora.adapter_files import write

PAIR = {"blocks.0.attn.wq.lora_A": torch.ones(4, 128), "blocks.0.attn.wq.lora_B": torch.ones(128, 4)}
LAYER = "transformer_blocks.0.attn.to_q"


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["a.safetensors", "adapter_model.safetensors", "pytorch_lora_weights.safetensors"], 1),
        (["a.safetensors", "adapter_config.json", "pytorch_lora_weights.safetensors"], 2),
        (["README.md", "a.safetensors", "._a.safetensors", "adapter_config.json", "optimizer.bin"], 1),
    ],
)
def test_the_file_of_a_folder(tmp_path: Path, names: list[str], chosen: int) -> None:
    assert file_in(fill(tmp_path, *names)) == tmp_path / names[chosen]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "is a folder without a safetensors file: a LoRA's has adapter_model.safetensors, pytorch_lora_weights.sa"),
        (["adapter_model.bin"], "is a folder without a safetensors file"),
        (["b.safetensors", "a.safetensors"], "is a folder of several files: name one of a.safetensors, b.safetensors"),
        ([f"{n:02}.safetensors" for n in range(12)], "09.safetensors and 2 more"),
        ([f"{n}.txt" for n in range(1001)], "holds more than 1000 entries: name the LoRA's file"),
    ],
)
def test_a_folder_that_does_not_say_which(tmp_path: Path, turbo: Path, names: list[str], words: str) -> None:
    with pytest.raises(LoraError) as caught:
        open_adapter(fill(tmp_path, *names), ModelConfig.from_folder(turbo))
    assert caught.value.message.startswith(f"{tmp_path}: ")
    assert words in caught.value.message


def test_a_file_that_is_a_link_has_the_config_beside_the_link(tmp_path: Path, turbo: Path) -> None:
    """As in the hub's cache, where all files are links to blobs elsewhere."""
    blobs, snapshot = fill(tmp_path / "blobs"), fill(tmp_path / "snapshot")
    write(blobs / "1a", PAIR)
    (blobs / "2b").write_text(json.dumps({"lora_alpha": 8}))
    (snapshot / "adapter_model.safetensors").symlink_to("../blobs/1a")
    (snapshot / "adapter_config.json").symlink_to("../blobs/2b")
    for path in (snapshot, snapshot / "adapter_model.safetensors"):
        assert open_adapter(path, ModelConfig.from_folder(turbo)).changes[LAYER].scale == 2


def test_a_config_that_is_not_where_its_link_leads_is_missed(tmp_path: Path, turbo: Path) -> None:
    write(tmp_path / "adapter_model.safetensors", PAIR)
    (tmp_path / "adapter_config.json").symlink_to("../blobs/2b")
    with pytest.raises(LoraError, match=r"adapter_config\.json: the file is missing"):
        open_adapter(tmp_path, ModelConfig.from_folder(turbo))


def test_a_renamed_file_has_the_config_of_its_folder_if_it_is_alone_there(tmp_path: Path, turbo: Path) -> None:
    config = ModelConfig.from_folder(turbo)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8}))
    file = write(tmp_path / "krea2_style.safetensors", PAIR)
    assert open_adapter(file, config).changes[LAYER].scale == open_adapter(tmp_path, config).changes[LAYER].scale == 2
    fill(tmp_path, "other.safetensors")
    assert open_adapter(file, config).changes[LAYER].scale == 1
