"""What merging refuses: a picture without the LoRA would be the alternative."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.convert.convert import convert
from engine.config.engine_config import EngineConfig
from engine.errors import ArgumentError, CheckpointError, LoraError
from engine.parallel.mesh import Mesh
from engine.rank.rank import Rank
from tests.damage import copy_checkpoint, rewrite_tensors
from tests.engine.lora.adapter_files import draw_low_rank, layer_shapes, write, write_scheme
from tests.engine_runs import RankGroups, jobs_of
from tests.oracle import Request, relative_error


@pytest.fixture(scope="module")
def lora(turbo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scheme(tmp_path_factory.mktemp("lora") / "a.safetensors", turbo, draw_low_rank(layer_shapes(turbo)))


def load(folder: Path, *loras: Path, strength: float = 1.0, **engine: str) -> Rank:
    merged = tuple((str(lora), strength) for lora in loras)
    config = EngineConfig(model=str(folder), device="cpu", merge_loras=merged, **engine)
    return Rank(config, Mesh(), torch.device("cpu"))


def written(turbo: Path, output: Path, **how: str) -> Path:
    checkpoint = CheckpointFiles.open(EngineConfig(model=str(turbo)))
    convert(checkpoint, output, **how)  # type: ignore[arg-type]
    checkpoint.close()
    return output


def test_8_bit_weights_are_not_rounded_once_more_unasked(turbo: Path, lora: Path, tmp_path: Path) -> None:
    file = written(turbo, tmp_path / "fp8.safetensors", layout="native", weights="fp8")
    with pytest.raises(ArgumentError, match=r"merge_loras would have to round .* has as float8_e4m3fn, once more"):
        load(turbo, lora, transformer=str(file))
    load(turbo, lora, transformer=str(file), quantization="none")


def test_what_was_split_for_ranks_cannot_be_merged_into(turbo: Path, lora: Path, tmp_path: Path) -> None:
    """Nor norms, which ranks have whole: their 1 has been added to what is stored."""
    folder = written(turbo, tmp_path / "split", layout="sharded", weights="keep")
    norm = write(tmp_path / "norm.safetensors", {"txt_in.norm.set_weight": torch.ones(64)})
    for file in (lora, norm):
        with pytest.raises(ArgumentError, match="merge_loras needs the whole checkpoint, and this one has been split"):
            load(folder, file)


@pytest.mark.parametrize("quantization", ["fp8", "int8"])
def test_merging_comes_before_quantising(turbo: Path, rank_groups: RankGroups, lora: Path, quantization: str) -> None:
    jobs = jobs_of(turbo, [Request("a red circle on a blue background", steps=2)])
    merged = ((str(lora), 1.0),)
    (exact,) = rank_groups.run_jobs(turbo, jobs, merge_loras=merged)
    (plain,) = rank_groups.run_jobs(turbo, jobs, quantization=quantization)
    (rounded,) = rank_groups.run_jobs(turbo, jobs, quantization=quantization, merge_loras=merged)
    assert relative_error(rounded.latents, exact.latents) < 0.2 * relative_error(plain.latents, exact.latents)


LAYER = "transformer_blocks.1.attn.to_v"


def write_difference(turbo: Path, file: Path, value: float) -> Path:
    """A LoRA that adds `value` to every weight of a layer."""
    return write(file, {f"{LAYER}.diff": torch.full(layer_shapes(turbo)[LAYER], value)})


@pytest.mark.parametrize("quantization", ["auto", "int8"])
def test_a_lora_that_overflows_is_named_with_its_strength_and_not_the_checkpoint(
    turbo: Path, tmp_path: Path, quantization: str
) -> None:
    bold = write_difference(turbo, tmp_path / "bold.safetensors", 1e38)
    meek = write_difference(turbo, tmp_path / "meek.safetensors", 0.01)
    with pytest.raises(LoraError) as error:
        load(turbo, meek, bold, strength=10.0, quantization=quantization)
    assert error.value.message == (
        f"{bold} at strength 10 makes {LAYER}.weight overflow: use a smaller strength, or another LoRA"
    )
    load(turbo, meek, bold, strength=1.0, quantization=quantization)


def test_loras_that_overflow_together_are_both_named(turbo: Path, tmp_path: Path) -> None:
    files = [write_difference(turbo, tmp_path / f"{name}.safetensors", 2e38) for name in "ab"]
    with pytest.raises(LoraError, match=r"a\.safetensors at strength 1 and .*b\.safetensors at strength 1 make "):
        load(turbo, *files)


def test_a_damaged_weight_is_the_checkpoints_fault_whatever_is_merged(turbo: Path, tmp_path: Path) -> None:
    lora = write_difference(turbo, tmp_path / "meek.safetensors", 0.01)
    folder = copy_checkpoint(turbo, tmp_path / "damaged")
    file = folder / "transformer/diffusion_pytorch_model.safetensors"
    rewrite_tensors(file, lambda tensors: tensors[f"{LAYER}.weight"].view(-1)[3:4].fill_(float("nan")))
    with pytest.raises(CheckpointError, match=f"{LAYER}.weight.*: holds values that are not finite"):
        load(folder, lora)
