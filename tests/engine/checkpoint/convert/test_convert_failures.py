"""Conversions that cannot be written or are not finished: nothing is left of them."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest
import torch

from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.checkpoint.convert import convert
from engine.checkpoint.convert.convert import LAYOUTS, QUANTIZED, WEIGHTS
from engine.config.engine_config import EngineConfig
from engine.errors import CheckpointError
from tests.damage import FULL, copy_checkpoint, full_disk, rewrite_tensors


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["x" * 251, "x" * 300, "file/x"])
def test_paths_that_cannot_be_written_are_named(turbo: Path, tmp_path: Path, layout: str, name: str) -> None:
    (tmp_path / "file").touch()
    checkpoint = CheckpointFiles.open(EngineConfig(model=str(turbo)))
    with pytest.raises(CheckpointError, match=r"cannot be written: (File name too long|Not a directory)"):
        convert.convert(checkpoint, tmp_path / name, layout=layout, weights=WEIGHTS[layout][0])
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_full_disk_is_said_and_nothing_left_on_it(turbo: Path, tmp_path: Path, layout: str) -> None:
    checkpoint = CheckpointFiles.open(EngineConfig(model=str(turbo)))
    message = rf"cannot be written: ({FULL}|\d+ requested and \d+ written)"
    with full_disk(room=20_000), pytest.raises(CheckpointError, match=message):
        convert.convert(checkpoint, tmp_path / "out", layout=layout, weights=WEIGHTS[layout][0])
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_what_was_not_finished(turbo: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    checkpoint = CheckpointFiles.open(EngineConfig(model=str(turbo)))
    for layout in LAYOUTS:
        with pytest.raises(Stop):
            convert.convert(checkpoint, tmp_path / "out", layout=layout, weights=WEIGHTS[layout][0], report=stop)
        assert not list(tmp_path.iterdir()), layout


def test_weights_that_are_not_finite_are_not_quantised(turbo: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["transformer_blocks.1.attn.to_k.weight"][5, 7] = float("nan")

    spoiled = copy_checkpoint(turbo, tmp_path / "spoiled")
    rewrite_tensors(spoiled / "transformer/diffusion_pytorch_model.safetensors", spoil)
    output = tmp_path / "out"
    native = rf"{spoiled}/\S+\.safetensors: transformer_blocks\.1\.attn\.to_k\.weight: holds values that are not finite"
    in_gguf = rf"{output}: blocks\.1\.attn\.wk\.weight: cannot be \w+: holds other numbers than a float16 does"
    with closing(CheckpointFiles.open(EngineConfig(model=str(spoiled)))) as checkpoint:
        for weights in QUANTIZED:
            with pytest.raises(CheckpointError, match=native):
                convert.convert(checkpoint, output, layout="native", weights=weights)
        for weights in ("q8_0", "q4_k", "f16"):
            with pytest.raises(CheckpointError, match=in_gguf):
                convert.convert(checkpoint, output, layout="gguf", weights=weights)
    assert not output.exists()
