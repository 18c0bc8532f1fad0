"""The whole recipe with a schedule of seconds: every stage runs, takes what the one before left, and resumes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from bench.adherence import __main__ as adherence
from demo import __main__ as recipe
from demo.__main__ import SCHEDULES, Schedule, make
from demo.release import training_steps
from engine.config.model_config import ModelConfig
from launcher.requests.tokenizer import PromptTokenizer

TINY = Schedule(
    vae_steps=2,
    decoder_steps=2,
    pictures=16,
    raw_steps=1,
    walks=4,
    turbo_steps=1,
    lora_steps=1,
    lora_pictures=20,
    kept_out=4,
    substeps=1,
    unjudged=True,
)
PROGRAM = 'if __name__ == "__main__":\n    main()\n'
BATCHES = ("demo.transformer", "demo.distill", "demo.outlined")  # stages that can be told the size of theirs


def run_here(command: list[str]) -> None:
    """Run `python -m MODULE …` in this process: a stage of so few steps takes a fraction of what a process does to
    import its libraries. `test_make.py` has stages that are processes, as these are in the slow test below."""
    _, _, module, *arguments = command
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *arguments])
        importlib.import_module(module).main()


@pytest.fixture(scope="module")
def work(small_trainings: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "work"
    stages = [[*stage, *(("--batch", "4") if stage[0] in BATCHES else ())] for stage in TINY.stages()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "_run", run_here)
        make(stages, folder)
    return folder


@pytest.mark.parametrize("variant", ["raw", "turbo"])
def test_its_release_is_a_checkpoint_for_the_engine(work: Path, variant: str) -> None:
    checkpoint = work / "release" / variant
    config = ModelConfig.from_folder(checkpoint)
    assert config.is_distilled == (variant == "turbo")
    assert (config.default_width, config.default_height) == (128, 128)
    assert PromptTokenizer(checkpoint, config.text_encoder.vocab_size).encode("two red stars").ids


def test_more_steps_go_on_from_the_last(work: Path) -> None:
    assert training_steps(work) == {"autoencoder": 2, "decoder": 2, "raw": 1, "turbo": 1, "outlined_state": 1}
    before = load_file(work / "raw.safetensors")
    more = ["--steps", "2", "--pictures", str(TINY.pictures), "--kept-out", str(TINY.kept_out), "--batch", "4"]
    run_here([sys.executable, "-m", "demo.transformer", "--work", str(work), *more])
    assert training_steps(work)["raw"] == 2
    after = load_file(work / "raw.safetensors")
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before if name.startswith("weights/"))


@pytest.mark.parametrize("module", sorted({stage[0] for stage in TINY.stages()}))
def test_a_stage_is_a_program(module: str) -> None:
    assert Path(str(importlib.import_module(module).__file__)).read_text().endswith(PROGRAM)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_short_schedule_reaches_its_bar(tmp_path: Path) -> None:
    """As docs/demo.md states it; of twelve colours any other model gets one in twelve backgrounds right."""
    make(SCHEDULES["short"].stages(), tmp_path)
    gate = ["--model", str(tmp_path / "release" / "turbo"), "--device", "cpu", "--prompts", "60"]
    assert adherence.main([*gate, "--fail-under", "background=0.3"]) == 0
