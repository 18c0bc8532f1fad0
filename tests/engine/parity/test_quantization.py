"""fp8: which weights it changes, what it saves, and that it still draws the same picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.checkpoint.weight_format import BLOCK_MATRICES
from engine.config.engine_config import EngineConfig
from engine.kernels.fp8 import FP8, Fp8Rows
from engine.parallel.mesh import Mesh
from engine.rank.rank import Rank
from tests.engine.kernels.tolerances import relative_error
from tests.engine_runs import RankGroups
from tests.oracle import Request

REQUESTS = [Request("a red circle on a blue background", seeds=(0, 1), steps=4)]
DEGREES = (1, 2, 4)


def test_the_matrices_of_the_blocks_are_quantised_and_nothing_else(turbo: Path) -> None:
    exact, rank = (
        Rank(EngineConfig(model=str(turbo), quantization=quantization), Mesh(), torch.device("cpu"))
        for quantization in ("none", "fp8")
    )
    whole = dict(exact.model.transformer.named_parameters())
    changed = 0
    for name, parameter in rank.model.transformer.named_parameters():
        if name.endswith("weight_scale"):
            continue
        if parameter.dtype == FP8:
            assert name.startswith("transformer_blocks.")
            assert name.endswith(tuple(f"{matrix}.weight" for matrix in BLOCK_MATRICES))
            scale = rank.model.transformer.get_parameter(f"{name}_scale")
            rows = Fp8Rows(parameter, scale, torch.float32)
            assert relative_error(rows.dequantize(), whole[name]) <= 0.04
            changed += 1
        else:
            assert torch.equal(parameter, whole[name])
    assert changed == 4 * rank.model.config.transformer.num_layers
    assert rank.memory()["weights"] < exact.memory()["weights"]


@pytest.mark.parametrize("tp", DEGREES)
def test_images_in_fp8_are_near_those_without(turbo: Path, rank_groups: RankGroups, tp: int) -> None:
    """A product of two e4m3 numbers is off by 3.7 %, and errors of the few blocks here add up to little more."""
    exact = rank_groups.run_requests(turbo, REQUESTS)
    pictures = rank_groups.run_requests(turbo, REQUESTS, tp=tp, quantization="fp8")
    for picture, reference in zip(pictures, exact, strict=True):
        assert 1e-4 < relative_error(picture.latents, reference.latents) <= 0.06


@pytest.mark.parametrize("tp", DEGREES)
def test_who_else_is_in_a_step_makes_no_difference_to_an_image(turbo: Path, rank_groups: RankGroups, tp: int) -> None:
    """Scales are a token's own. Products of as many rows as before are computed alike, so not a bit may differ."""
    mine = Request("a red circle on a blue background", guidance=2.0, steps=4)
    others = [
        Request("two large green squares", steps=4, seeds=(1,)),
        Request("two large white squares", steps=4, seeds=(2,), mu=3.0),
    ]
    first, second = (rank_groups.run_requests(turbo, [mine, other], tp=tp, quantization="fp8") for other in others)
    assert not torch.equal(first[1].latents, second[1].latents)
    assert torch.equal(first[0].latents, second[0].latents)


def test_rows_of_a_split_matrix_are_quantised_as_whole_ones_are(turbo: Path, rank_groups: RankGroups) -> None:
    """Those of q, k, v, gate and up are whole on a rank; of out and down a rank has a part, with its own scale."""

    def scales(rank: Rank) -> torch.Tensor:
        return rank.model.transformer.get_parameter("transformer_blocks.0.ff.gate_up.weight_scale")

    (alone,) = rank_groups.on_ranks(turbo, scales, quantization="fp8")
    halves = rank_groups.on_ranks(turbo, scales, tp=2, quantization="fp8")
    gate, up = alone.chunk(2)
    expected = [torch.cat(part) for part in zip(gate.chunk(2), up.chunk(2), strict=True)]
    for half, whole in zip(halves, expected, strict=True):
        assert torch.equal(half, whole)
