"""A model whose widths fit K-quants: written, described, loaded and drawn with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.convert.convert import convert
from engine.config.engine_config import EngineConfig
from launcher.cli.described.components import describe_file
from tests.engine.kernels.tolerances import relative_error
from tests.engine_runs import run_requests
from tests.oracle import Picture, Request

REQUEST = Request("a red circle on a blue background", steps=3)
# ‖latents − exact‖ / ‖exact‖ after three steps, where blocks are K-quants and text fusion is what is taken in their
# place. Q4_0, Q5_0 and Q8_0 alone are at 0.15, 0.080 and 0.0105.
ERRORS = {"q2_k": 0.366, "q3_k": 0.230, "q4_k": 0.110, "q5_k": 0.0651, "q6_k": 0.0276}
INSTEAD = {"q2_k": "Q4_0", "q3_k": "Q4_0", "q4_k": "Q5_0", "q5_k": "Q5_1", "q6_k": "Q8_0"}
FAST = (("q6_k", 1), ("q4_k", 2))


@pytest.fixture(scope="module")
def wide(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint(layers=2, heads=16, kv_heads=8, intermediate=512)


@pytest.fixture(scope="module")
def exact(wide: Path) -> Picture:
    return run_requests(wide, [REQUEST])[0]


# A slice of whole blocks, as of 4 ranks, is nothing else than one of 2; test_gguf_tensors.py has all kinds.
@pytest.mark.parametrize(
    ("weights", "tp"),
    [
        pytest.param(weights, tp, marks=() if (weights, tp) in FAST else pytest.mark.slow)
        for weights in ERRORS
        for tp in (1, 2, 4)
    ],
)
def test_k_quants_draw_nearly_the_same(wide: Path, exact: Picture, tmp_path: Path, weights: str, tp: int) -> None:
    file = tmp_path / "model.gguf"
    with closing(CheckpointFiles.open(EngineConfig(model=str(wide)))) as checkpoint:
        notes = convert(checkpoint, file, layout="gguf", weights=weights)
    qtype, other = weights.upper(), INSTEAD[weights]
    assert notes == [f"20 of 55 matrices are {qtype}; the others, whose columns are no multiple of 256: 35 {other}"]
    assert f"native names: 37 F32, 35 {other}, 20 {qtype}" in describe_file(file)
    dense, held = (
        run_requests(wide, [REQUEST], tp=tp, quantization=quantization, transformer=str(file))[0]
        for quantization in ("none", "auto")
    )
    error = relative_error(dense.latents, exact.latents)
    assert ERRORS[weights] / 1.5 < error < ERRORS[weights] * 1.5
    assert relative_error(held.latents, dense.latents) < 2e-2  # int8, with a scale for every 32 columns
