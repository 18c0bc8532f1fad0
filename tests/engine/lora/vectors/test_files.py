"""Files that change norms and modulation tables: what is refused, in words, and LyCORIS' biases, which are zeros."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.config.model_config import ModelConfig
from engine.errors import LoraError
from engine.lora.files import open_adapter
from tests.engine.lora.adapter_files import write


@pytest.fixture(scope="module")
def config(turbo: Path) -> ModelConfig:
    return ModelConfig.from_folder(turbo)


def pair(path: str, rows: int) -> dict[str, torch.Tensor]:
    return {f"{path}.lora_A.weight": torch.ones(2, 128), f"{path}.lora_B.weight": torch.ones(rows, 2)}


REFUSED = {
    "a bias of a norm": (
        {"blocks.0.prenorm.w_norm": torch.ones(128), "blocks.0.prenorm.b_norm": torch.ones(128)},
        "blocks.0.prenorm.b_norm: is a bias, which norms and tables of Krea 2 do not have",
    ),
    "a bias of a norm that is as large as a matrix": (
        {"blocks.0.prenorm.w_norm": torch.ones(128), "blocks.0.prenorm.b_norm": torch.zeros(128, 128)},
        "diff_b is (128, 128), which does not fit a parameter of (128,)",
    ),
    "a norm's difference of another width": (
        {"blocks.0.attn.qknorm.qnorm.scale.diff": torch.ones(128)},
        "blocks.0.attn.qknorm.qnorm.scale: diff is (128,), which does not fit a parameter of (16,)",
    ),
    "a table that lies on its side": (
        {"last.modulation.lin.set_weight": torch.ones(128, 2)},
        "set_weight is (128, 2), which does not fit a parameter of (2, 128)",
    ),
    "a pair for half a table": (
        pair("last.modulation.lin", rows=1),
        "lora_A (lora_down) (2, 128), lora_B (lora_up) (1, 2) do not multiply to a parameter of (2, 128)",
    ),
    "half a pair": ({"last.modulation.lin.lora_A.weight": torch.ones(2, 128)}, "without lora_B"),
    "magnitudes of a table": (
        pair("last.modulation.lin", rows=2) | {"last.modulation.lin.dora_scale": torch.ones(2)},
        "dora_scale is the norms of a matrix, and this is none",
    ),
    "a norm under two names": (
        {"blocks.0.prenorm.scale.diff": torch.ones(128), "blocks.0.norm1.diff": torch.ones(128)},
        "is for transformer_blocks.0.norm1, which another name in the file is for too",
    ),
    "a norm that there is not": (
        {"blocks.0.prenorm.scale.diff": torch.ones(128), "blocks.0.midnorm.scale.diff": torch.ones(128)},
        "blocks.0.midnorm.scale.diff (the closest layer is blocks.0.prenorm.scale)",
    ),
    "a norm's difference in integers": (
        {"blocks.0.prenorm.scale.diff": torch.ones(128, dtype=torch.int32)},
        "is stored as I32",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_is_refused_in_words(tmp_path: Path, config: ModelConfig, name: str) -> None:
    tensors, words = REFUSED[name]
    with pytest.raises(LoraError) as caught:
        open_adapter(write(tmp_path / "lora.safetensors", tensors), config)
    assert words in caught.value.message


def test_values_that_are_not_finite_are_found(tmp_path: Path, config: ModelConfig) -> None:
    file = write(tmp_path / "lora.safetensors", {"txtmlp.0.scale.diff": torch.full((64,), torch.nan)})
    with pytest.raises(LoraError, match=r"txtmlp.0.scale.diff: holds values that are not finite"):
        open_adapter(file, config).check_finite()


def test_a_norms_bias_of_zeros_is_none(tmp_path: Path, config: ModelConfig) -> None:
    """LyCORIS writes it beside every norm that it trains."""
    zeros = {"blocks.0.prenorm.b_norm": -torch.zeros(128), "blocks.0.postnorm.b_norm": torch.zeros(128)}
    for dtype in (torch.float32, torch.bfloat16):
        tensors = {"blocks.0.prenorm.w_norm": torch.ones(128)} | {name: each.to(dtype) for name, each in zeros.items()}
        adapter = open_adapter(write(tmp_path / "lora.safetensors", tensors), config)
        assert list(adapter.changes) == ["transformer_blocks.0.norm1"]
        assert adapter.family == "full difference"
