"""What merging refuses: a picture without the LoRA would be the alternative."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.convert.convert import convert
from engine.config.engine_config import EngineConfig
from engine.errors import ArgumentError
from engine.parallel.mesh import Mesh
from engine.rank.rank import Rank
from tests.engine.lora.adapter_files import draw_low_rank, layer_shapes, write_scheme
from tests.engine_runs import RankGroups, jobs_of
from tests.oracle import Request, relative_error


@pytest.fixture(scope="module")
def lora(turbo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scheme(tmp_path_factory.mktemp("lora") / "a.safetensors", turbo, draw_low_rank(layer_shapes(turbo)))


def load(folder: Path, lora: Path, **engine: str) -> Rank:
    config = EngineConfig(model=str(folder), device="cpu", merge_loras=((str(lora), 1.0),), **engine)
    return Rank(config, Mesh(), torch.device("cpu"))


def written(turbo: Path, output: Path, **how: str) -> Path:
    checkpoint = CheckpointFiles.open(EngineConfig(model=str(turbo)))
    convert(checkpoint, output, **how)  # type: ignore[arg-type]
    checkpoint.close()
    return output


def test_8_bit_weights_are_not_rounded_once_more_unasked(turbo: Path, lora: Path, tmp_path: Path) -> None:
    file = written(turbo, tmp_path / "fp8.safetensors", layout="native", weights="fp8")
    with pytest.raises(ArgumentError, match=r"merge_loras would have to round .* stores in 8 bits"):
        load(turbo, lora, transformer=str(file))
    load(turbo, lora, transformer=str(file), quantization="none")


def test_what_was_split_for_ranks_cannot_be_merged_into(turbo: Path, lora: Path, tmp_path: Path) -> None:
    folder = written(turbo, tmp_path / "split", layout="sharded", weights="keep")
    with pytest.raises(ArgumentError, match="merge_loras needs the whole checkpoint, and this one has been split"):
        load(folder, lora)


@pytest.mark.parametrize("quantization", ["fp8", "int8"])
def test_merging_comes_before_quantising(turbo: Path, rank_groups: RankGroups, lora: Path, quantization: str) -> None:
    jobs = jobs_of(turbo, [Request("a red circle on a blue background", steps=2)])
    merged = ((str(lora), 1.0),)
    (exact,) = rank_groups.run_jobs(turbo, jobs, merge_loras=merged)
    (plain,) = rank_groups.run_jobs(turbo, jobs, quantization=quantization)
    (rounded,) = rank_groups.run_jobs(turbo, jobs, quantization=quantization, merge_loras=merged)
    assert relative_error(rounded.latents, exact.latents) < 0.2 * relative_error(plain.latents, exact.latents)
