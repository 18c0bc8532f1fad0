"""The whole recipe with a schedule of a minute: every stage runs, takes what the one before left, and resumes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from bench import adherence
from demo.__main__ import SCHEDULES, Schedule, make
from demo.release import training_steps
from engine.config import ModelConfig
from launcher.tokenizer import PromptTokenizer

TINY = Schedule(
    vae_steps=2,
    decoder_steps=1,
    pictures=16,
    raw_steps=1,
    walks=32,
    turbo_steps=1,
    lora_steps=1,
    lora_pictures=160,
    kept_out=16,
    substeps=1,
    unjudged=True,
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "work"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHDYNAMO_DISABLE", "1")  # compiling takes longer than these few steps
        make(TINY.stages(), folder)
    return folder


@pytest.mark.timeout(600)
@pytest.mark.parametrize("variant", ["raw", "turbo"])
def test_its_release_is_a_checkpoint_for_the_engine(work: Path, variant: str) -> None:
    checkpoint = work / "release" / variant
    config = ModelConfig.from_folder(checkpoint)
    assert config.is_distilled == (variant == "turbo")
    assert (config.default_width, config.default_height) == (128, 128)
    assert PromptTokenizer(checkpoint, config.text_encoder.vocab_size).encode("two red stars").ids


@pytest.mark.timeout(600)
def test_more_steps_go_on_from_the_last(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    assert training_steps(work) == {"autoencoder": 2, "decoder": 1, "raw": 1, "turbo": 1, "outlined_state": 1}
    before = load_file(work / "raw.safetensors")
    more = ["--steps", "2", "--pictures", str(TINY.pictures), "--kept-out", str(TINY.kept_out)]
    subprocess.run([sys.executable, "-m", "demo.transformer", "--work", work, *more], check=True, timeout=500)
    assert training_steps(work)["raw"] == 2
    after = load_file(work / "raw.safetensors")
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before if name.startswith("weights/"))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_short_schedule_reaches_its_bar(tmp_path: Path) -> None:
    """As docs/demo.md states it; of twelve colours any other model gets one in twelve backgrounds right."""
    make(SCHEDULES["short"].stages(), tmp_path)
    gate = ["--model", str(tmp_path / "release" / "turbo"), "--device", "cpu", "--prompts", "60"]
    assert adherence.main([*gate, "--fail-under", "background=0.3"]) == 0
