"""Where a LoRA's scale is said, which place counts, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.config.model_config import ModelConfig
from engine.errors import LoraError
from engine.lora.files import AdapterFile, open_adapter
from tests.engine.lora.adapter_files import write

PEFT = "the header's lora_adapter_metadata"
QUERY, KEY = "blocks.0.attn.wq", "blocks.0.attn.wk"
LAYERS = {QUERY: "transformer_blocks.0.attn.to_q", KEY: "transformer_blocks.0.attn.to_k"}
LOKR = {f"{QUERY}.lokr_w1": torch.ones(8, 8), f"{QUERY}.lokr_w2": torch.ones(16, 16)}


@pytest.fixture(scope="module")
def config(turbo: Path) -> ModelConfig:
    return ModelConfig.from_folder(turbo)


def pair(path: str = QUERY, rank: int = 4, rows: int = 128) -> dict[str, torch.Tensor]:
    return {f"{path}.lora_A": torch.ones(rank, 128), f"{path}.lora_B": torch.ones(rows, rank)}


def scale_of(adapter: AdapterFile, path: str = QUERY) -> float:
    return adapter.changes[LAYERS[path]].scale


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16])
def test_an_alpha_of_few_bits_is_the_number_that_torch_reads(
    tmp_path: Path, config: ModelConfig, dtype: torch.dtype
) -> None:
    octets = torch.randperm(256, dtype=torch.int16, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    numbers = octets.view(dtype).float()
    finite = octets.view(dtype)[numbers.isfinite()][:24]
    for alpha in finite:
        file = write(tmp_path / "lora.safetensors", pair() | {f"{QUERY}.alpha": alpha})
        assert scale_of(open_adapter(file, config)) == alpha.float().item() / 4


NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(alpha=NUMBERS, factor=NUMBERS, rank=st.integers(1, 40))
def test_the_header_of_kreas_trainer(
    tmp_path: Path, config: ModelConfig, alpha: float, factor: float, rank: int
) -> None:
    """The formula and its example: docs/lora_conversion.md and tests/test_convert_lora.py of krea-ai/krea-2."""
    header = {"rank": str(rank), "lora_alpha": str(alpha), "lora_scale": str(factor)}
    adapter = open_adapter(write(tmp_path / "lora.safetensors", pair(rank=rank), header=header), config)
    assert scale_of(adapter) == pytest.approx(alpha / rank * factor)
    assert adapter.scales == {"the header's lora_alpha": (scale_of(adapter),)}


@pytest.mark.parametrize(
    ("header", "scale", "place"),
    [
        ({}, 1, ""),
        ({"lora_alpha": "2"}, 0.5, "the header's lora_alpha"),
        ({"lora_alpha": " 2e0 ", "lora_rank": "4.0"}, 0.5, "the header's lora_alpha"),
        ({"network_alpha": "8"}, 2, "the header's network_alpha"),
        ({"alpha": "8", "lora_alpha": "8.0"}, 2, "the header's lora_alpha"),
        ({"lora_scale": "0.5", "rank": "4"}, 0.5, "the header's lora_scale"),
        ({"lora_alpha": "None", "lora_scale": ""}, 1, ""),
        ({"lora_adapter_metadata": json.dumps({"r": 2, "lora_alpha": 2, "rank_pattern": {"a": 8, "b": 8}})}, 0.5, PEFT),
        ({"rank": "64"}, 1, ""),  # says nothing of the scale
        ({"ss_network_alpha": "2", "ss_network_dim": "8"}, 1, ""),
    ],
)
def test_what_a_header_says(
    tmp_path: Path, config: ModelConfig, header: dict[str, str], scale: float, place: str
) -> None:
    adapter = open_adapter(write(tmp_path / "lora.safetensors", pair(), header=header), config)
    assert adapter.scales == {place: (scale,)}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        *(
            ({key: text}, f"{key} in the header is {text[:100]!r}"[:100])
            for key in ("lora_alpha", "lora_scale", "alpha")
            for text in ("many", "0x10", "1" * 100_000)
        ),
        *(({"lora_alpha": text}, "lora_alpha in the header is") for text in ("nan", "-inf", "1e400", "1e30")),
        ({"lora_alpha": "1", "alpha": "2"}, "the header says lora_alpha 1 and alpha 2: it may say one"),
        ({"lora_alpha": "1", "rank": "8"}, "rank in the header is 8, and the tensors' is 4"),
        ({"lora_alpha": "1", "rank": "4", "r": "4.5"}, "r in the header is 4.5, and the tensors' is 4"),
    ],
)
def test_a_header_that_cannot_be(tmp_path: Path, config: ModelConfig, header: dict[str, str], words: str) -> None:
    file = write(tmp_path / "lora.safetensors", pair(), header=header)
    with pytest.raises(LoraError) as caught:
        open_adapter(file, config)
    assert words in caught.value.message
    assert len(caught.value.message) < 600


def test_a_damaged_header_is_not_read_where_something_else_counts(tmp_path: Path, config: ModelConfig) -> None:
    header = {"lora_alpha": "many", "rank": "64"}
    with_tensor = pair() | {f"{QUERY}.alpha": torch.tensor(2.0)}
    assert scale_of(open_adapter(write(tmp_path / "a.safetensors", with_tensor, header=header), config)) == 0.5
    file = write(tmp_path / "b.safetensors", pair(), {"transformer.lora_alpha": 2}, header)
    assert open_adapter(file, config).scales == {"the header's lora_adapter_metadata": (0.5,)}


def test_each_layer_has_the_rank_of_its_tensors_and_the_first_place_that_says_an_alpha(
    tmp_path: Path, config: ModelConfig
) -> None:
    tensors = pair() | pair(KEY, rank=8, rows=64)
    header = {"lora_alpha": "16", "rank": "8", "lora_scale": "0.5"}
    adapter = open_adapter(write(tmp_path / "a.safetensors", tensors, header=header), config)
    assert (scale_of(adapter), scale_of(adapter, KEY)) == (2.0, 1.0)
    tensors[f"{KEY}.lora_alpha"] = torch.tensor(2.0)  # as SimpleTuner may call it
    adapter = open_adapter(write(tmp_path / "b.safetensors", tensors, header=header | {"rank": "4"}), config)
    assert adapter.scales == {"the header's lora_alpha": (2.0,), "alpha tensors": (0.25,)}


def test_the_header_counts_before_the_config_beside_the_file(tmp_path: Path, config: ModelConfig) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8}))
    file = tmp_path / "style.safetensors"
    assert open_adapter(write(file, pair()), config).scales == {"adapter_config.json": (2.0,)}
    assert scale_of(open_adapter(write(file, pair(), header={"lora_alpha": "2"}), config)) == 0.5


def test_pefts_config_of_whole_factors_has_a_rank(tmp_path: Path, config: ModelConfig) -> None:
    file = write(tmp_path / "adapter_model.safetensors", LOKR)
    for rank, words in ((0, "is 0, not above 0"), (None, "is None, not a number"), ("8", "is '8', not a number")):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LOKR", "alpha": 2, "r": rank}))
        with pytest.raises(LoraError, match=rf"r in adapter_config\.json {words}"):
            open_adapter(file, config)


def test_whole_factors_of_lycoris_have_no_scale(tmp_path: Path, config: ModelConfig) -> None:
    tensors = LOKR | {f"{QUERY}.alpha": torch.tensor(1e10)}
    adapter = open_adapter(write(tmp_path / "a.safetensors", tensors, header={"lora_alpha": "3"}), config)
    assert (scale_of(adapter), adapter.scales) == (1.0, {})


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"])
def test_an_adapter_that_peft_began_with_another_model_is_refused(
    tmp_path: Path, config: ModelConfig, init: str
) -> None:
    file = write(tmp_path / "a.safetensors", pair(), {"transformer.init_lora_weights": init, "transformer.r": 4})
    with pytest.raises(LoraError, match=f"init_lora_weights in the header's lora_adapter_metadata is '{init}', with"):
        open_adapter(file, config)
    for harmless in (True, False, "gaussian", "eva", "orthogonal"):
        open_adapter(write(file, pair(), {"transformer.init_lora_weights": harmless}), config)
