"""One file that holds several parts of a model, given as the model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.part_paths import find_parts
from engine.config.engine_config import EngineConfig
from engine.errors import ArgumentError
from tests.damage import copy_checkpoint
from tests.engine.checkpoint.layouts.layouts import Tensors, prefixed, save
from tests.engine.checkpoint.model_configs import open_config
from tests.engine.checkpoint.test_checkpoint_files import load, states


@pytest.fixture(scope="module")
def all_in_one(single: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ComfyUI's CheckpointSave writes it for Krea 2."""
    prefixes = {"transformer": "", "text_encoder": "text_encoders.qwen3vl_4b.transformer.", "vae": "vae."}
    everything: Tensors = {}
    for part, prefix in prefixes.items():
        everything |= prefixed(prefix, load_file(single[part]))
    return save(everything, tmp_path_factory.mktemp("one") / "everything.safetensors")


def test_one_file_is_every_part_that_it_holds(
    turbo: Path, all_in_one: Path, single: dict[str, str], tmp_path: Path
) -> None:
    repository = copy_checkpoint(turbo, tmp_path / "Krea-2")
    file = Path(shutil.copy(all_in_one, repository))
    rank = load(model=str(file))
    expected = states(load(model=str(turbo)))
    found = states(rank)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    checkpoint = CheckpointFiles.open(EngineConfig(model=str(file)))
    assert {component.file.path for component in checkpoint.components.values()} == {file}
    assert checkpoint.tokenizer == repository / "tokenizer"
    # what is given beside it goes before
    parts = find_parts(EngineConfig(model=str(file), vae=single["vae"]))
    assert parts.paths["vae"] == Path(single["vae"])
    assert parts.paths["text_encoder"] == file
    parts = find_parts(EngineConfig(model=str(file), transformer=single["transformer"]))
    assert [part for part, path in parts.paths.items() if path == file] == ["text_encoder", "vae"]
    with pytest.raises(ArgumentError, match="model must be a folder, or a file of other parts, where transformer is "):
        open_config(model=str(file), **single)


def test_one_files_tokenizer_is_given_or_lies_beside_it(all_in_one: Path, turbo: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError) as error:
        find_parts(EngineConfig(model=str(all_in_one)))
    assert error.value.message == (
        "missing: tokenizer; no file of tensors has it: give Qwen3-VL-4B's tokenizer.json or its folder, or put it "
        f"beside {all_in_one}, which holds the DiT, a text encoder and a VAE"
    )
    assert error.value.parameter == "tokenizer"
    given = find_parts(EngineConfig(model=str(all_in_one), tokenizer=str(turbo / "tokenizer")))
    assert [*given.paths.values()].count(all_in_one) == 3
    file = Path(shutil.copy(all_in_one, tmp_path))
    shutil.copy(turbo / "tokenizer/tokenizer.json", tmp_path)
    assert find_parts(EngineConfig(model=str(file))).paths["tokenizer"] == tmp_path / "tokenizer.json"
    (tmp_path / "tokenizer.json").unlink()
    for name in ("merges.txt", "vocab.json"):
        with pytest.raises(ArgumentError, match="missing: tokenizer; "):
            find_parts(EngineConfig(model=str(file)))
        (tmp_path / name).touch()
    assert find_parts(EngineConfig(model=str(file))).paths["tokenizer"] == tmp_path / "vocab.json"
    shutil.copytree(turbo / "tokenizer", tmp_path / "tokenizer")
    assert find_parts(EngineConfig(model=str(file))).paths["tokenizer"] == tmp_path / "tokenizer"


def test_a_file_says_what_it_holds_and_what_it_lacks(single: dict[str, str], tmp_path: Path) -> None:
    two = load_file(single["transformer"]) | prefixed("vae.", load_file(single["vae"]))
    file = save(two, tmp_path / "two.safetensors")
    with pytest.raises(ArgumentError) as error:
        open_config(model=str(file))
    assert error.value.message.startswith(
        "missing: text_encoder, tokenizer; give each as a file or a folder, or all of "
    )
    assert error.value.message.endswith(f" beside {file}, which holds the DiT and a VAE")
    with pytest.raises(ArgumentError, match=r"missing: text_encoder, tokenizer; .* which holds no DiT but a VAE"):
        open_config(model=single["vae"])
