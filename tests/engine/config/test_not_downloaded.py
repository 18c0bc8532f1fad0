"""What lies in place of a file that was not downloaded is told for what it is, whichever file it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import CheckpointError, LoraError
from engine.lora.files import open_adapter
from launcher.requests.tokenizer import PromptTokenizer
from tests.damage import copy_checkpoint, replace_bytes
from tests.random_json_damage import JSON_FILES

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
PAGE = b"<!DOCTYPE html>\n<html><head>"
SHOWN = {POINTER: "run in its folder: git lfs pull", PAGE: "download the file itself"}


def refusal(folder: Path, file: Path, open_it: Callable[[Path], object]) -> str:
    with pytest.raises((CheckpointError, LoraError)) as error:
        open_it(folder)
    assert error.value.message.startswith(f"{file}: is a ")
    return error.value.message


def open_folder(folder: Path) -> CheckpointFiles:
    return CheckpointFiles.open(EngineConfig(model=str(folder)))


@pytest.mark.parametrize("content", SHOWN, ids=("pointer", "page"))
def test_in_a_checkpoint(checkpoint: Callable[..., Path], tmp_path: Path, content: bytes) -> None:
    source = checkpoint(max_shard_size="200KB")
    shards = sorted((source / "transformer").glob("*.safetensors"))
    index = "transformer/diffusion_pytorch_model.safetensors.index.json"
    assert len(shards) > 1
    for number, name in enumerate((*JSON_FILES, index, f"transformer/{shards[1].name}")):
        folder = copy_checkpoint(source, tmp_path / str(number))
        replace_bytes(folder / name, content)
        assert refusal(folder, folder / name, open_folder).endswith(SHOWN[content])


@pytest.mark.parametrize("content", SHOWN, ids=("pointer", "page"))
def test_as_a_lora_or_a_tokenizer(turbo: Path, tmp_path: Path, content: bytes) -> None:
    folder = copy_checkpoint(turbo, tmp_path / "copy")
    config = ModelConfig.from_folder(folder)
    lora, tokenizer = tmp_path / "lora.safetensors", folder / "tokenizer/tokenizer.json"
    lora.write_bytes(content)
    assert refusal(lora, lora, lambda path: open_adapter(path, config)).endswith(SHOWN[content])
    replace_bytes(tokenizer, content)
    assert refusal(folder, tokenizer, lambda path: PromptTokenizer(path, 100)).endswith(SHOWN[content])


@pytest.mark.parametrize("file", JSON_FILES)
def test_a_servers_answer_for_a_config(turbo: Path, tmp_path: Path, file: str) -> None:
    damaged = copy_checkpoint(turbo, tmp_path / "damaged")
    replace_bytes(damaged / file, b'{"error": "Repository not found"}')
    message = refusal(damaged, damaged / file, open_folder)
    assert message.endswith("is a server's answer, not the file, which must be downloaded again: Repository not found")


@pytest.mark.parametrize("content", [b'{"error": "Repository not found"}', b"Repository not found"])
def test_a_servers_answer_for_a_tokenizer(turbo: Path, tmp_path: Path, content: bytes) -> None:
    damaged = copy_checkpoint(turbo, tmp_path / "damaged")
    replace_bytes(damaged / "tokenizer/tokenizer.json", content)
    with pytest.raises(CheckpointError, match=r"must be downloaded again: Repository not found$"):
        PromptTokenizer(damaged, 100)
