"""Adapter files that are refused, each with words that say what is wrong; and what a good one says of itself."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from bench.engines.real_size import KREA2
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, CheckpointError, LoraError
from engine.lora.files import AdapterFile, open_adapter
from tests.engine.lora.adapter_files import draw_low_rank, layer_shapes, write, write_scheme

QUERY = "transformer_blocks.0.attn.to_q"
SHAPE = (128, 128)


@pytest.fixture(scope="module")
def config(turbo: Path) -> ModelConfig:
    return ModelConfig.from_folder(turbo)


def pair(path: str, rows: int = 128, columns: int = 128, rank: int = 2) -> dict[str, torch.Tensor]:
    return {f"{path}.lora_A.weight": torch.ones(rank, columns), f"{path}.lora_B.weight": torch.ones(rows, rank)}


def refusal(tmp_path: Path, config: ModelConfig, tensors: dict[str, torch.Tensor], **options: object) -> str:
    file = write(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(LoraError) as caught:
        open_adapter(file, config, **options)  # type: ignore[arg-type]
    assert str(file) in caught.value.message
    return caught.value.message


REFUSED = {
    "an orphan A": ({f"{QUERY}.lora_A.weight": torch.ones(2, 128)}, "lora_A (lora_down) without lora_B (lora_up)"),
    "an orphan alpha": ({f"{QUERY}.alpha": torch.ones(())}, "alpha without"),
    "an orphan dora_scale": ({f"{QUERY}.dora_scale": torch.ones(128)}, "dora_scale without"),
    "half a LoHa": (
        {f"{QUERY}.hada_w1_a": torch.ones(128, 2), f"{QUERY}.hada_w1_b": torch.ones(2, 128)},
        "without hada_w2_a, hada_w2_b",
    ),
    "half a LoKr": ({f"{QUERY}.lokr_w1": torch.ones(8, 8)}, "lokr_w1 without lokr_w2"),
    "two families": (pair(QUERY) | {f"{QUERY}.diff": torch.ones(SHAPE)}, "do not belong together"),
    "a convolution's": (
        {f"{QUERY}.lokr_w1": torch.ones(8, 8), f"{QUERY}.lokr_t2": torch.ones(8, 8)},
        "belongs to a convolution",
    ),
    "one layer under two names": (pair(QUERY) | pair("blocks.0.attn.wq"), "another name in the file is for too"),
    "a fused matrix and one of its parts": (
        pair("blocks.0.attn.to_qkv", rows=256) | pair("blocks.0.attn.wk", rows=64),
        "another name in the file is for too",
    ),
    "one layer behind two prefixes": (
        pair(QUERY) | pair(f"model._orig_mod.{QUERY}"),
        "another name in the file is for",
    ),
    "one pair with .weight and without": (
        pair(QUERY) | {f"{QUERY}.lora_A": torch.ones(2, 128)},
        "lora_A are the same thing twice",
    ),
    "one difference of a bias in two spellings": (
        {"first.diff_b": torch.ones(128), "first.bias.diff": torch.ones(128)},
        "are the same thing twice",
    ),
    "the same role twice": (pair(QUERY) | {f"{QUERY}.lora_down.weight": torch.ones(2, 128)}, "the same thing twice"),
    "several adapters": (
        {f"{QUERY}.lora_A.{name}.weight": torch.ones(2, 128) for name in ("one",)}
        | {f"{QUERY}.lora_B.two.weight": torch.ones(128, 2)},
        "several adapters (one, two)",
    ),
    "too narrow an A": (pair(QUERY, columns=64), "does not fit a weight of (128, 128)"),
    "too short a B": (pair(QUERY, rows=64), "does not fit a weight of (128, 128)"),
    "ranks that differ": (
        {f"{QUERY}.lora_A.weight": torch.ones(2, 128), f"{QUERY}.lora_B.weight": torch.ones(128, 3)},
        "does not fit",
    ),
    "a rank of zero": (pair(QUERY, rank=0), "does not fit"),
    "a LoRA of a convolution's shape": (
        {f"{QUERY}.lora_A.weight": torch.ones(2, 128, 1, 1), f"{QUERY}.lora_B.weight": torch.ones(128, 2, 1, 1)},
        "does not fit",
    ),
    "Kronecker factors of another size": (
        {f"{QUERY}.lokr_w1": torch.ones(8, 8), f"{QUERY}.lokr_w2": torch.ones(8, 16)},
        "the Kronecker product of (8, 8) and (8, 16) does not fit",
    ),
    "numbers that a LoRA is not stored as": (
        {name: tensor.to(torch.int32) for name, tensor in pair(QUERY).items()},
        "is stored as I32, of which nothing says what it stands for: use a download in F32, F16, BF16 or fp8",
    ),
    "an alpha that is not finite": (pair(QUERY) | {f"{QUERY}.alpha": torch.tensor(torch.nan)}, "is not finite"),
    "a misspelt layer": (
        pair(QUERY) | pair("transformer_blocks.0.attn.to_qq"),
        "transformer_blocks.0.attn.to_qq.lora_A.weight (the closest layer is transformer_blocks.0.attn.to_q)",
    ),
    "a misspelt flat layer": (pair(QUERY) | pair("lora_unet_blocks_0_atn_wq"), "lora_unet_blocks_0_attn_wq)"),
    "a block that there is not": (
        pair(QUERY) | pair("transformer.transformer_blocks.27.attn.to_q"),
        "is a LoRA for a model with more blocks than this one: it has transformer.transformer_blocks.27.attn.to_q.lora",
    ),
    "no block that there is": (pair("lora_unet_blocks_27_attn_wq"), "is a LoRA for a model with more blocks"),
    "an unknown suffix": (pair(QUERY) | {f"{QUERY}.glora_a": torch.ones(1)}, "glora_a"),
    "PEFT's biases of B": (
        pair(QUERY) | {f"{QUERY}.lora_B.bias": torch.ones(128)},
        "is an adapter of LoRA with biases (",
    ),
    "text encoder keys": (
        pair(QUERY) | pair("text_encoder.layers.0.self_attn.q_proj"),
        "changes the text encoder too (text_encoder.layers.0.self_attn.q_proj.lora_A.weight), which is not supported",
    ),
    "kohya's text encoder keys": (pair(QUERY) | pair("lora_te1_layers_0_q_proj"), "changes the text encoder too"),
    "nothing": ({}, "is not a Krea 2 LoRA"),
    "weights": (
        {"model.diffusion_model.blocks.0.attn.wq.weight": torch.ones(SHAPE)},
        "holds weights of Krea 2's transformer itself, no LoRA",
    ),
    "a LoRA of FLUX": (pair("transformer.single_transformer_blocks.0.proj_mlp"), "is a LoRA for FLUX"),
    "a LoRA of Qwen-Image": (
        pair("transformer.transformer_blocks.0.attn.to_q", 3072, 3072)
        | pair("transformer.transformer_blocks.0.attn.add_q_proj", 3072, 3072),
        "is a LoRA for Qwen-Image",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_is_refused_in_words(tmp_path: Path, config: ModelConfig, name: str) -> None:
    tensors, words = REFUSED[name]
    assert words in refusal(tmp_path, config, tensors)


def test_a_lora_of_qwen_image_is_known_by_its_width(tmp_path: Path) -> None:
    tensors = pair("transformer.transformer_blocks.0.attn.to_q", 3072, 3072)
    assert "it seems to be a LoRA for Qwen-Image" in refusal(tmp_path, KREA2, tensors)


def test_what_names_say_is_shortened(tmp_path: Path, config: ModelConfig) -> None:
    pattern = {"transformer.alpha_pattern": {"x" * 1000: 1}}
    file = write(tmp_path / "lora.safetensors", pair(QUERY), pattern)
    with pytest.raises(LoraError, match=r"alpha_pattern names x+\.\.\., for which") as long_pattern:
        open_adapter(file, config)
    long_path = refusal(tmp_path, config, {"transformer." * 70 + f"{QUERY}.lora_A.weight": torch.ones(2, 128)})
    assert len(long_pattern.value.message) < 1000
    assert len(long_path) < 1000


def test_what_pefts_config_says_has_limits(tmp_path: Path, config: ModelConfig) -> None:
    file = write(tmp_path / "adapter_model.safetensors", pair(QUERY))
    many = json.dumps({"alpha_pattern": dict.fromkeys(map(str, range(1000)), 1)})
    (tmp_path / "adapter_config.json").write_text(many)
    with pytest.raises(LoraError, match=r"alpha_pattern in adapter_config\.json has 1000 keys for 1 layers"):
        open_adapter(file, config)
    with (tmp_path / "adapter_config.json").open("wb") as opened:
        opened.truncate(1 << 40)
    with pytest.raises(LoraError, match=r"adapter_config\.json: is too long, expected at most 16777216 bytes"):
        open_adapter(file, config)


def test_a_header_has_fewer_values_than_a_checkpoints(tmp_path: Path, config: ModelConfig) -> None:
    header = json.dumps({"__metadata__": {}, "a": [1] * (1 << 16)}).encode()
    file = tmp_path / "lora.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(LoraError, match=r"lora\.safetensors: is not valid json: at most 65536 values are allowed"):
        open_adapter(file, config)


def test_a_file_that_is_cut_short_while_it_is_checked_is_refused(tmp_path: Path, config: ModelConfig) -> None:
    """A mapped one would end the process."""
    file = write(tmp_path / "lora.safetensors", pair(QUERY, rank=64))
    adapter = open_adapter(file, config)
    os.truncate(file, 4096)
    with pytest.raises(CheckpointError, match=r"lora\.safetensors: has become shorter while it was read"):
        adapter.check_finite()


def test_the_index_of_several_files_is_refused(tmp_path: Path, config: ModelConfig) -> None:
    file = write(tmp_path / "shard.safetensors", pair(QUERY))
    index = tmp_path / "lora.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(pair(QUERY), file.name)}))
    with pytest.raises(LoraError, match="is the index of several files: a LoRA is one"):
        open_adapter(index, config)


@pytest.mark.parametrize("name", ["lora.pt", "lora.ckpt", "pytorch_lora_weights.bin"])
def test_pickles_are_refused(tmp_path: Path, config: ModelConfig, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04\x95")
    with pytest.raises(LoraError, match="is a pickle"):
        open_adapter(tmp_path / name, config)


@pytest.mark.parametrize("content", [None, b"", b"\x80\x04\x95", b"GGUF" + bytes(100), b"{" * 100])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, config: ModelConfig, content: bytes | None) -> None:
    file = tmp_path / "lora.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(LoraError, match=r"lora\.safetensors"):
        open_adapter(file, config)


def test_lenient_refuses_what_does_not_fit_and_what_is_no_krea_2_lora(tmp_path: Path, config: ModelConfig) -> None:
    assert "does not fit" in refusal(tmp_path, config, pair(QUERY, rows=64), lenient=True)
    assert "is not a Krea 2 LoRA" in refusal(tmp_path, config, pair("unet.something"), lenient=True)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_found(
    tmp_path: Path, config: ModelConfig, dtype: torch.dtype, value: float
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in pair(QUERY).items()}
    open_adapter(write(tmp_path / "good.safetensors", tensors), config).check_finite()
    if dtype == torch.float8_e4m3fn:  # which has no infinity
        value = float("nan")
    tensors[f"{QUERY}.lora_B.weight"][127, 1] = value
    adapter = open_adapter(write(tmp_path / "bad.safetensors", tensors), config)
    with pytest.raises(LoraError, match="not finite"):
        adapter.check_finite()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_alpha_of_any_dtype(tmp_path: Path, config: ModelConfig, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensors = pair(QUERY) | {f"{QUERY}.alpha": torch.full(shape, 1.5, dtype=dtype)}
    assert scale_of(open_adapter(write(tmp_path / "lora.safetensors", tensors), config)) == 0.75


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_alpha_may_be_an_integer(tmp_path: Path, config: ModelConfig, dtype: torch.dtype) -> None:
    tensors = pair(QUERY) | {f"{QUERY}.alpha": torch.tensor(3, dtype=dtype)}
    adapter = open_adapter(write(tmp_path / "lora.safetensors", tensors), config)
    adapter.check_finite()
    assert scale_of(adapter) == 1.5


def scale_of(adapter: AdapterFile) -> float:
    return adapter.changes[QUERY].scale


def test_the_first_place_that_says_an_alpha_counts(tmp_path: Path, config: ModelConfig) -> None:
    """The layer's own, then the header's, then PEFT's file, whose folder may be named instead of the file."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, "use_rslora": True}))
    peft = {f"base_model.model.{name}": tensor for name, tensor in pair(QUERY, rank=4).items()}
    file = write(tmp_path / "adapter_model.safetensors", peft)
    assert scale_of(open_adapter(tmp_path, config)) == scale_of(open_adapter(file, config)) == 4
    write(file, peft, {"transformer.lora_alpha": 2})
    assert scale_of(open_adapter(file, config)) == 0.5
    write(file, peft | {f"base_model.model.{QUERY}.alpha": torch.tensor(1.0)}, {"transformer.lora_alpha": 2})
    assert scale_of(open_adapter(file, config)) == 0.25


def test_anothers_peft_config_in_the_folder_does_not_count(tmp_path: Path, config: ModelConfig) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8}))
    write(tmp_path / "adapter_model.safetensors", pair(QUERY))
    assert scale_of(open_adapter(write(tmp_path / "other.safetensors", pair(QUERY)), config)) == 1


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"transformer.lora_alpha": "many"}, "lora_alpha"),
        ({"transformer.lora_alpha": 1e300}, "lora_alpha"),
        ({"transformer.alpha_pattern": [1]}, "alpha_pattern"),
        ({"transformer.alpha_pattern": {"attn.to_x": 1}}, "alpha_pattern names attn.to_x"),
    ],
)
def test_a_header_that_says_nonsense_of_alpha(
    tmp_path: Path, config: ModelConfig, metadata: dict[str, object], words: str
) -> None:
    file = write(tmp_path / "lora.safetensors", pair(QUERY), metadata)
    with pytest.raises(LoraError, match=words):
        open_adapter(file, config)


def test_what_a_file_says_of_itself(tmp_path: Path, turbo: Path, config: ModelConfig) -> None:
    change = draw_low_rank(layer_shapes(turbo), rank=4)
    adapter = open_adapter(write_scheme(tmp_path / "lora.safetensors", turbo, change), config)
    assert (adapter.family, adapter.modules, adapter.left_out) == ("LoRA", len(change), "")
    assert adapter.bytes_on_rank(1, 2) == sum(4 * 2 * sum(shape) for shape in layer_shapes(turbo).values())
    assert adapter.bytes_on_rank(1, 2) // 2 < adapter.bytes_on_rank(2, 2) < adapter.bytes_on_rank(1, 2)
    dora = pair(QUERY) | {f"{QUERY}.dora_scale": torch.ones(128)}
    assert open_adapter(write(tmp_path / "dora.safetensors", dora), config).family == "DoRA"


@pytest.mark.parametrize("merge_loras", [(("", 1.0),), (("lora.safetensors", float("nan")),)])
def test_merging_takes_files_and_finite_strengths(merge_loras: tuple[tuple[str, float], ...]) -> None:
    with pytest.raises(ArgumentError, match="merge_loras"):
        EngineConfig(merge_loras=merge_loras)
