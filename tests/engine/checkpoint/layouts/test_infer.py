"""A config read off the tensors' shapes is the one that the checkpoint came with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.engines.real_size import KREA2
from engine.checkpoint.files.stored import Bounds, StoredTensor
from engine.checkpoint.layouts import infer
from engine.checkpoint.layouts.component import Component, open_text_encoder, open_transformer, open_vae
from engine.checkpoint.layouts.tensors import Source, text_encoder_sources, transformer_sources, vae_sources
from engine.config.components import read_schedule, read_text_encoder, read_transformer, read_vae
from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.json_fields import JsonFields
from engine.config.model_config import ModelConfig
from engine.errors import CheckpointError
from tests.engine.checkpoint.files.memory_file import MemoryFile
from tests.engine.checkpoint.layouts.layouts import language_model, load_text_encoder, load_transformer, load_vae, save

LAYER_0 = "language_model.layers.0"


class Shape(StoredTensor):
    """A tensor of which only the header is known."""

    format = "F32"

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.file, self.name, self.shape = Path("model.safetensors"), name, shape

    def size(self, bounds: Bounds) -> int:
        raise AssertionError("only shapes are needed")

    def read(self, bounds: Bounds) -> torch.Tensor:
        raise AssertionError("only shapes are needed")


def component(sources: list[Source]) -> Component:
    tensors = {source.name: Shape(source.name, source.shape) for source in sources}
    return Component(MemoryFile({}), tensors, "", str)  # type: ignore[arg-type]


def fields(values: Mapping[str, Any]) -> JsonFields:
    return JsonFields(Path("model.safetensors"), values)


# ---- from a file


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"layers": 2, "heads": 4, "fusion_heads": 2, "fusion_kv_heads": 2, "fusion_blocks": 1},
        {"encoder_kv_heads": 2},
    ],
)
def test_inferred_configs_are_those_of_the_checkpoint(checkpoint: Callable[..., Path], spec: dict[str, int]) -> None:
    folder = checkpoint(**spec)
    config = ModelConfig.from_folder(folder)
    assert read_transformer(fields(infer.infer_transformer(open_transformer(folder), {}))) == config.transformer
    # what no shape tells: the checkpoint's own instead of the published model's
    theta = {"rope_theta": config.text_encoder.rope_theta}
    text_encoder = infer.infer_text_encoder(open_text_encoder(folder), theta)
    assert read_text_encoder(fields(text_encoder)) == config.text_encoder
    latents = {"latents_mean": config.vae.latents_mean, "latents_std": config.vae.latents_std}
    assert read_vae(fields(infer.infer_vae(open_vae(folder), latents))) == config.vae


def test_the_demos_levels_of_the_vae_are_inferred() -> None:
    config = ModelConfig.from_folder(DEMO_CHECKPOINT)
    vae = read_vae(fields(infer.infer_vae(open_vae(DEMO_CHECKPOINT), {})))
    assert (vae.base_dim, vae.dim_mult, vae.num_res_blocks) == (config.vae.base_dim, (1, 2, 4, 4), 1)


# ---- at the real size


def test_the_real_transformer_is_inferred() -> None:
    inferred = infer.infer_transformer(component(list(transformer_sources(KREA2.transformer))), {})
    assert read_transformer(fields(inferred)) == KREA2.transformer


def test_the_real_text_encoder_is_inferred_with_its_constants() -> None:
    sources = list(text_encoder_sources(KREA2))
    layers = [
        Source(source.name.replace("layers.0.", "layers.35."), source.shape, "")
        for source in sources
        if ".0." in source.name
    ]
    whole = component([*sources, *layers, Source("norm.weight", (2560,), "")])
    assert read_text_encoder(fields(infer.infer_text_encoder(whole, {}))) == KREA2.text_encoder
    # cut above the last tap: there is no last norm, and none may be applied to the tap
    assert read_text_encoder(fields(infer.infer_text_encoder(component(sources), {}))) == KREA2.text_encoder


def test_the_real_vae_is_inferred_with_its_constants() -> None:
    vae = read_vae(fields(infer.infer_vae(component(list(vae_sources(KREA2.vae))), {})))
    assert (vae.base_dim, vae.z_dim, vae.dim_mult, vae.num_res_blocks) == (96, 16, (1, 2, 4, 4), 2)
    assert (vae.latents_mean[0], vae.latents_mean[-1]) == (-0.7571, -0.2921)
    assert (vae.latents_std[0], vae.latents_std[-1]) == (2.8184, 1.9160)


def test_the_schedule_without_a_file_is_the_published_one() -> None:
    assert read_schedule(fields(infer.SCHEDULER_CONSTANTS)) == KREA2.schedule


def test_constants_of_another_config_may_be_unset_or_of_another_form(turbo: Path) -> None:
    config = ModelConfig.from_folder(turbo)
    unset = {"attention_head_dim": config.transformer.head_dim, "axes_dims_rope": None, "norm_eps": 1e-4}
    transformer = read_transformer(fields(infer.infer_transformer(open_transformer(turbo), unset)))
    assert transformer == replace(config.transformer, norm_eps=1e-4)
    for constants in ({"rope_theta": 7.0}, {"text_config": {"rope_theta": 7.0}}):
        inferred = infer.infer_text_encoder(open_text_encoder(turbo), constants)
        assert read_text_encoder(fields(inferred)) == replace(config.text_encoder, rope_theta=7.0)


# ---- what shapes cannot be


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("img_in.weight", (128,)),
        ("img_in.weight", (0, 64)),
        ("transformer_blocks.0.attn.norm_q.weight", ()),
        ("transformer_blocks.0.attn.norm_q.weight", (1 << 40,)),
        ("text_fusion.projector.weight", (1, 2, 3)),
    ],
)
def test_a_shape_that_tells_nothing_is_refused(name: str, shape: tuple[int, ...]) -> None:
    sources = [source for source in transformer_sources(KREA2.transformer) if source.name != name]
    with pytest.raises(CheckpointError, match=f"{name}: has a shape that no such tensor has, expected . dimensions"):
        infer.infer_transformer(component([*sources, Source(name, shape, "")]), {})


@pytest.mark.parametrize(
    ("load", "opener", "infer_config", "name"),
    [
        (load_transformer, open_transformer, infer.infer_transformer, "time_embed.linear_1.weight"),
        (load_transformer, open_transformer, infer.infer_transformer, "transformer_blocks.0.ff.gate.weight"),
        (
            load_text_encoder,
            open_text_encoder,
            infer.infer_text_encoder,
            f"{LAYER_0}.self_attn.q_norm.weight",
        ),
        (load_vae, open_vae, infer.infer_vae, "post_quant_conv.weight"),
    ],
)
def test_a_missing_tensor_is_named_as_the_file_would(
    turbo: Path,
    tmp_path: Path,
    load: Callable[[Path], dict[str, torch.Tensor]],
    opener: Callable[[Path], Component],
    infer_config: Callable[[Component, Mapping[str, Any]], Any],
    name: str,
) -> None:
    tensors = load(turbo)
    del tensors[name]
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: {name}: tensor is missing"):
        infer_config(opener(save(tensors, tmp_path / "model.safetensors")), {})


def test_a_gap_in_the_layers_is_a_missing_tensor_later(turbo: Path, tmp_path: Path) -> None:
    """And not a config of a million layers."""
    tensors = {
        name.replace("layers.5.", "layers.999999."): tensor
        for name, tensor in language_model(load_text_encoder(turbo)).items()
    }
    opened = open_text_encoder(save(tensors, tmp_path / "model.safetensors"))
    assert infer.infer_text_encoder(opened, {})["num_hidden_layers"] == 6
