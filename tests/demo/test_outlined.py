"""The LoRA's training: begins with the raw model as it is, resumes where it was, and the engine and diffusers take what
it writes for the same change."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from demo import outlined
from demo.training import Run
from engine.config.model_config import ModelConfig
from engine.lora.files import open_adapter
from engine.step import Adapter
from tests.engine_runs import jobs_of, run_jobs
from tests.oracle import Request, expected_pictures, load_pipeline, relative_error

STEPS = 8
TOLERANCE = 1e-4
REQUEST = Request("a red circle on a blue background", width=96, height=64, steps=3, guidance=2.0)


@pytest.fixture(scope="module")
def raw(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint(is_distilled=False, layers=2, encoder_layers=3, taps=(0, 1, 2), fusion_blocks=1)


@pytest.fixture(scope="module")
def work(raw: Path, small_trainings: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder in which the LoRA was trained in one go."""
    work = tmp_path_factory.mktemp("work")
    (work / "raw").symlink_to(raw)
    for part in ("vae", "tokenizer"):
        (work / part).symlink_to(raw / part)
    run(work)
    return work


def run(work: Path) -> None:
    arguments = ["--steps", STEPS, "--pictures", 20, "--batch", 2, "--rate", 0.05]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["outlined", "--work", str(work), *map(str, arguments)])
        outlined.main()


def test_a_training_that_was_interrupted_ends_with_the_same_file(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("raw", "vae", "tokenizer"):
        (tmp_path / name).symlink_to(work / name)
    for name in ("outlined_latents.safetensors", "outlined_kept_out.safetensors"):
        shutil.copy(work / name, tmp_path / name)
    steps: list[int] = []
    descend = Run.descend

    def interrupted_once(self: Run, loss: torch.Tensor, learning_rate: float) -> None:
        steps.append(self.step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        descend(self, loss, learning_rate)

    monkeypatch.setattr(Run, "descend", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert not (tmp_path / "outlined.safetensors").exists()
    run(tmp_path)
    assert steps == [0, 1, 2, 3, 3, 4, 5, 6, 7]
    expected = load_file(work / "outlined.safetensors")
    resumed = load_file(tmp_path / "outlined.safetensors")
    assert expected.keys() == resumed.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(resumed[name], tensor)


def test_the_file_says_what_it_is(work: Path) -> None:
    file = work / "outlined.safetensors"
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    assert header["title"] == "outlined shapes"
    assert header["training_steps"] == str(STEPS)
    tensors = load_file(file)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_it_changes_every_attention_and_feed_forward_linear_of_the_blocks_and_nothing_else(
    raw: Path, work: Path
) -> None:
    config = ModelConfig.from_folder(raw)
    adapter = open_adapter(work / "outlined.safetensors", config)
    adapter.check_finite()
    assert adapter.left_out == ""
    assert set(adapter.changes) == {
        f"transformer_blocks.{block}.{layer}"
        for block in range(config.transformer.num_layers)
        for layer in (
            *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_gate", "attn.to_out.0"),
            *("ff.gate", "ff.up", "ff.down"),
        )
    }


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_engine_and_diffusers_take_it_for_the_same_change(raw: Path, work: Path, strength: float) -> None:
    """Latents within 1e-4 of diffusers' in float32, which they leave by far more without the LoRA."""
    file = work / "outlined.safetensors"
    (plain,) = expected_pictures(raw, REQUEST)
    pipeline = load_pipeline(raw)
    try:
        pipeline.load_lora_weights(work, weight_name=file.name, adapter_name="outlined")
        pipeline.set_adapters(["outlined"], [strength])
        (theirs,) = expected_pictures(raw, REQUEST)
    finally:
        pipeline.unload_lora_weights()
    jobs = [replace(job, loras=((0, strength),)) for job in jobs_of(raw, [REQUEST])]
    (ours,) = run_jobs(raw, jobs, adapters=[Adapter(0, str(file))])
    assert relative_error(ours.latents, theirs.latents) <= TOLERANCE
    assert relative_error(plain.latents, theirs.latents) > 100 * TOLERANCE
