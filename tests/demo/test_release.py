"""What `demo.release` writes, of the weights that ship."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from demo import release as release_module
from demo.captions import parse, prompts
from demo.release import ENGINE_KEYS, draw, release
from demo.tokenizer import sentence
from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.model_config import ModelConfig
from engine.config.size_domain import SizeDomain


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder whose turbo is the checkpoint that ships; raw is missing."""
    folder = tmp_path_factory.mktemp("work")
    for part in ("vae", "tokenizer"):
        shutil.copytree(DEMO_CHECKPOINT / part, folder / part)
    for part in ("transformer", "text_encoder"):
        shutil.copytree(DEMO_CHECKPOINT / part, folder / "turbo" / part)
    mask = os.umask(0o022)
    try:
        release(folder)
    finally:
        os.umask(mask)
    return folder


@pytest.fixture(scope="module")
def turbo(work: Path) -> Path:
    return work / "release" / "turbo"


def test_what_is_not_trained_is_left_out(work: Path) -> None:
    assert sorted(path.name for path in (work / "release").iterdir()) == ["turbo", "turbo.png"]


def test_nothing_trained_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has neither raw nor turbo"):
        release(tmp_path)


def test_a_pair_too_large_for_the_wheel_is_an_error(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(work, tmp_path / "work")
    monkeypatch.setattr(release_module, "LARGEST_PAIR", 1_000_000)
    monkeypatch.setattr(release_module, "draw", lambda folder: Image.new("RGB", (1, 1)))
    with pytest.raises(SystemExit, match=r"take \d+\.\d MB, more than 1 MB"):
        release(tmp_path / "work")


def test_files_are_those_of_the_official_layout(turbo: Path) -> None:
    assert {str(path.relative_to(turbo)) for path in turbo.rglob("*") if path.is_file()} == {
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }


def test_everyone_may_read_them_and_none_names_the_work_folder(work: Path, turbo: Path) -> None:
    for file in (path for path in turbo.rglob("*") if path.is_file()):
        assert file.stat().st_mode & stat.S_IROTH
        assert str(work).encode() not in file.read_bytes()


def test_weights_are_bfloat16_but_for_the_norms_of_the_dit(turbo: Path) -> None:
    for file in turbo.rglob("*.safetensors"):
        for name, tensor in load_file(file).items():
            norm = file.parent.name == "transformer" and "norm" in name
            assert tensor.dtype == (torch.float32 if norm else torch.bfloat16), name


def test_the_engine_reads_what_it_is(turbo: Path) -> None:
    config = ModelConfig.from_folder(turbo)
    assert config.is_distilled
    assert (config.default_width, config.default_height) == (128, 128)
    assert config.size_domain == SizeDomain(96, 256, 128, 128)


def test_its_words_are_those_of_the_grammar(turbo: Path) -> None:
    domain = ModelConfig.from_folder(turbo).prompt_domain
    assert domain is not None
    used = set()
    for prompt in prompts(3, 2000, kept_out=False):
        assert domain.warning(prompt.text()) is None
        assert domain.warning(sentence(prompt.text())) is None
        used.update(prompt.text().split())
    assert used == domain.words
    assert domain.warning("a fox in the snow") == f'the model does not know "fox", "in", "snow". {domain.note}'


def test_its_note_gives_prompts_that_it_draws() -> None:
    examples = re.findall('"([^"]+)"', str(ENGINE_KEYS["prompt_note"]))
    assert examples
    assert all(parse(example) is not None for example in examples)


def test_it_draws_what_the_trained_weights_draw(turbo: Path) -> None:
    trained = draw(DEMO_CHECKPOINT)
    released = Image.open(turbo.parent / "turbo.png")
    difference = np.asarray(trained, np.float64) - np.asarray(released, np.float64)
    assert trained.size == released.size == (128, 128)
    assert 10 * np.log10(255**2 / (difference**2).mean()) > 30  # dB: all that bfloat16 weights change


def test_its_readme_says_what_is_in_it(turbo: Path) -> None:
    text = (turbo / "README.md").read_text()
    config = json.loads((turbo / "transformer" / "config.json").read_text())
    assert f"{config['num_layers']} blocks" in text
    assert "8 steps, no guidance" in text
