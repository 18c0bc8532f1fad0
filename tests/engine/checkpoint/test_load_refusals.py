"""What a user is told when a checkpoint is not what it should be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import ArgumentError, CheckpointError
from tests.damage import copy_checkpoint, replace_bytes, rewrite_json, rewrite_tensors
from tests.engine.checkpoint.loading import TEXT_ENCODER, TRANSFORMER, VAE, load, refusal
from tests.engine_runs import on_ranks


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (TRANSFORMER, "transformer_blocks.1.attn.to_q.weight"),
        (TEXT_ENCODER, "language_model.layers.0.mlp.up_proj.weight"),
        (VAE, "decoder.conv_in.bias"),
    ],
)
def test_a_missing_tensor_is_named(damaged: Path, file: str, name: str) -> None:
    rewrite_tensors(damaged / file, lambda tensors: tensors.pop(name))
    assert refusal(damaged).startswith(f"{file}: {name}: tensor is missing, expected (")


@pytest.mark.parametrize("name", ["encoder.conv_in.weight", "encoder.down_blocks.1.resample.1.bias", "quant_conv.bias"])
def test_a_vae_without_an_encoder_is_refused_where_pictures_may_go_in(damaged: Path, name: str) -> None:
    rewrite_tensors(damaged / VAE, lambda tensors: tensors.pop(name))
    what = "tensor is missing, which encodes the pictures that go in (--no-image-input does without them), expected ("
    assert refusal(damaged).startswith(f"{VAE}: {name}: {what}")
    assert load(damaged, image_input=False).model.vae_encoder is None


@pytest.mark.parametrize("name", ["encoder.extra", "encoder.down_blocks.11.conv1.bias"])
def test_an_extra_tensor_of_the_encoder_is_named_where_pictures_may_go_in(damaged: Path, name: str) -> None:
    rewrite_tensors(damaged / VAE, lambda tensors: tensors.update({name: torch.zeros(3)}))
    assert refusal(damaged) == f"{VAE}: {name}: tensor does not belong to this model"
    load(damaged, image_input=False)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (TRANSFORMER, "transformer_blocks.3.norm1.weight"),
        (TRANSFORMER, "last.down.weight2"),
        (TEXT_ENCODER, "language_model.layers.0.mlp.extra"),
        (TEXT_ENCODER, "extra"),
        (VAE, "decoder.extra"),
        (VAE, "extra"),
    ],
)
def test_an_extra_tensor_is_named(damaged: Path, file: str, name: str) -> None:
    rewrite_tensors(damaged / file, lambda tensors: tensors.update({name: torch.zeros(3)}))
    message = refusal(damaged)
    assert message.startswith(f"{file}: {name}: ")
    assert "belong" in message


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (TRANSFORMER, "text_fusion.projector.weight"),
        (TRANSFORMER, "transformer_blocks.0.attn.to_k.weight"),
        (TEXT_ENCODER, "language_model.embed_tokens.weight"),
        (VAE, "decoder.mid_block.attentions.0.norm.gamma"),
    ],
)
def test_a_misshapen_tensor_is_named_with_both_shapes(damaged: Path, file: str, name: str) -> None:
    shapes: list[tuple[int, ...]] = []

    def cut(tensors: dict[str, torch.Tensor]) -> None:
        shapes.append(tuple(tensors[name].shape))
        tensors[name] = tensors[name].flatten()[1:]
        shapes.append(tuple(tensors[name].shape))

    rewrite_tensors(damaged / file, cut)
    assert refusal(damaged) == f"{file}: {name}: tensor has the wrong shape, expected {shapes[0]}, found {shapes[1]}"


def test_a_dtype_that_is_no_float_is_named(damaged: Path) -> None:
    name = "transformer_blocks.0.attn.to_q.weight"
    rewrite_tensors(damaged / TRANSFORMER, lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    message = refusal(damaged)
    assert message.startswith(f"{TRANSFORMER}: {name}: ")
    assert "found I8 (" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("file", "name"),
    [(TRANSFORMER, "img_in.bias"), (TEXT_ENCODER, "language_model.layers.1.self_attn.k_proj.weight")],
)
def test_a_value_that_is_not_finite_is_refused(damaged: Path, file: str, name: str, value: float) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[5] = value

    rewrite_tensors(damaged / file, poison)
    message = refusal(damaged)
    assert message.startswith(f"{file}: ")
    assert name in message
    assert "finite" in message


def test_large_finite_values_are_not_taken_for_infinite(damaged: Path) -> None:
    rewrite_tensors(damaged / TRANSFORMER, lambda tensors: tensors["img_in.weight"].fill_(3e38))
    load(damaged)


@pytest.mark.parametrize("file", [TRANSFORMER, TEXT_ENCODER, VAE])
@pytest.mark.parametrize("kept", [0, 7, 8, 5000, -1])
def test_a_truncated_file_is_named(damaged: Path, file: str, kept: int) -> None:
    data = (damaged / file).read_bytes()
    replace_bytes(damaged / file, data[:kept])
    assert refusal(damaged).startswith(f"{file}: ")


@pytest.mark.parametrize(
    "file",
    [
        *(TRANSFORMER, TEXT_ENCODER, VAE, "transformer/config.json", "text_encoder/config.json"),
        *("vae/config.json", "scheduler/scheduler_config.json"),
    ],
)
def test_a_missing_file_is_named(damaged: Path, file: str) -> None:
    (damaged / file).unlink()
    assert refusal(damaged) == f"{file}: the file is missing"


def test_a_folder_without_an_index_is_no_checkpoint(damaged: Path) -> None:
    (damaged / "model_index.json").unlink()
    assert refusal(damaged).startswith(f"{damaged}: is no checkpoint, for there is no model_index.json in it; ")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: there is no such folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"_class_name": }', "\ufeff{}"])
def test_bad_json_is_named(damaged: Path, text: str) -> None:
    replace_bytes(damaged / "transformer/config.json", text.encode())
    assert refusal(damaged).startswith("transformer/config.json: ")


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("transformer/config.json", "num_layers", "3"),
        ("transformer/config.json", "num_attention_heads", 8.0),
        ("transformer/config.json", "axes_dims_rope", [4, 6, 8]),
        ("transformer/config.json", "axes_dims_rope", [4, 5, 7]),
        ("transformer/config.json", "text_hidden_dim", 128),
        ("transformer/config.json", "in_channels", 16),
        ("transformer/config.json", "norm_eps", float("nan")),
        ("transformer/config.json", "_class_name", "FluxTransformer2DModel"),
        ("vae/config.json", "latents_mean", [0.0] * 15),
        ("vae/config.json", "latents_std", [0.0] * 16),
        ("vae/config.json", "dim_mult", []),
        ("scheduler/scheduler_config.json", "use_dynamic_shifting", False),
        ("scheduler/scheduler_config.json", "max_shift", "1.15"),
        ("model_index.json", "_class_name", "StableDiffusionPipeline"),
        ("model_index.json", "text_encoder_select_layers", [1, 3]),
        ("model_index.json", "text_encoder_select_layers", [1, 3, 7]),
        ("model_index.json", "is_distilled", "yes"),
        ("model_index.json", "patch_size", 0),
    ],
)
def test_a_config_value_that_does_not_fit_is_named(damaged: Path, file: str, key: str, value: Any) -> None:
    rewrite_json(damaged / file, lambda values: values.update({key: value}))
    message = refusal(damaged)
    assert message.startswith(f"{file}: {key}: ")
    assert ", expected " in message
    assert ", found " in message


def test_heads_that_do_not_divide_are_both_named(damaged: Path) -> None:
    rewrite_json(damaged / "transformer/config.json", lambda values: values.update(num_key_value_heads=3))
    message = refusal(damaged)
    assert "num_attention_heads" in message
    assert "num_key_value_heads 3" in message


def test_a_config_for_more_layers_than_there_are_names_the_first_missing_tensor(damaged: Path) -> None:
    rewrite_json(damaged / "transformer/config.json", lambda values: values.update(num_layers=4))
    assert refusal(damaged).startswith(f"{TRANSFORMER}: transformer_blocks.3.")


# ---- sharded files


@pytest.fixture
def damaged_shards(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return copy_checkpoint(checkpoint(max_shard_size="200KB"), tmp_path / "damaged")


INDEX = f"{TRANSFORMER}.index.json"


def test_a_missing_shard_is_named(damaged_shards: Path) -> None:
    shard = sorted((damaged_shards / "transformer").glob("*.safetensors"))[1]
    shard.unlink()
    assert refusal(damaged_shards) == f"transformer/{shard.name}: the file is missing"


def test_a_tensor_that_its_shard_lacks_is_named(damaged_shards: Path) -> None:
    def move(values: dict[str, Any]) -> None:
        weights = values["weight_map"]
        weights["img_in.weight"] = next(s for s in sorted(weights.values()) if s != weights["img_in.weight"])

    rewrite_json(damaged_shards / INDEX, move)
    message = refusal(damaged_shards)
    assert message.startswith("transformer/")
    assert "img_in.weight" in message


@pytest.mark.parametrize("weight_map", [None, [], "x", {"img_in.weight": 3}])
def test_a_bad_index_is_named(damaged_shards: Path, weight_map: Any) -> None:
    rewrite_json(damaged_shards / INDEX, lambda values: values.update(weight_map=weight_map))
    assert refusal(damaged_shards).startswith(f"{INDEX}: weight_map: ")


@pytest.mark.parametrize("shard", ["../vae/x.safetensors", "/etc/passwd", "", ".", "a\0b", "x" * 999])
def test_an_index_cannot_name_files_elsewhere(damaged_shards: Path, shard: str) -> None:
    rewrite_json(damaged_shards / INDEX, lambda values: values["weight_map"].update({"img_in.weight": shard}))
    assert refusal(damaged_shards).startswith("transformer/")


def test_control_characters_of_a_file_do_not_reach_the_terminal(damaged: Path) -> None:
    name = "x\n\x1b[31mred\r"
    rewrite_tensors(damaged / TRANSFORMER, lambda tensors: tensors.update({name: torch.zeros(3)}))
    assert refusal(damaged).isprintable()


# ---- degrees


def test_an_impossible_degree_lists_the_possible_ones(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint(encoder_kv_heads=2)
    with pytest.raises(ArgumentError) as error:
        on_ranks(folder, lambda rank: None, tp=4)
    message = error.value.message
    assert error.value.parameter == "tp"
    assert "num_key_value_heads of the text encoder is 2" in message
    assert message.endswith("possible: 1, 2")
    assert on_ranks(folder, lambda rank: rank.model.mesh.tp.size, tp=2) == [2, 2]
