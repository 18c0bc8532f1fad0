"""A component in every layout is the same component; what is none is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.checkpoint.convert.writers import write_gguf
from engine.checkpoint.layouts.component import Component, open_text_encoder, open_transformer, open_vae
from engine.errors import CheckpointError
from tests.engine.checkpoint.layouts.layouts import (
    Tensors,
    language_model,
    llama_text_encoder,
    load_text_encoder,
    load_transformer,
    load_vae,
    native_transformer,
    prefixed,
    save,
    wan_vae,
)

# ComfyUI's, and what DDP, torch.compile, PEFT, Lightning, Cosmos' and DiffSynth's trainers wrap a model in
WRAPPERS = ("model.", "module.", "_orig_mod.", "net.", "base_model.model.", "diffusion_model.", "transformer.")
PREFIXES = (
    *("", "model.diffusion_model.", "module._orig_mod.model.diffusion_model.", "_orig_mod.module.", "pipe.dit."),
    *WRAPPERS,
)
RES_BLOCKS = 1  # of the small checkpoint's VAE


def values(component: Component) -> Tensors:
    """All of a component's tensors, read as a rank reads them."""
    return {
        name: tensor.read(tuple(slice(0, length) for length in tensor.shape))
        for name, tensor in component.tensors.items()
    }


def assert_same(component: Component, expected: Tensors) -> None:
    found = values(component)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert component.tensors[name].shape == tuple(tensor.shape), name
        assert torch.equal(found[name], tensor), name


def refusal(opener: Callable[[Path], Component], path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        opener(path)
    assert error.value.message.isprintable()
    assert str(path) in error.value.message
    return error.value.message.removeprefix(f"{path}: ")


# ---- where


@pytest.mark.parametrize(
    ("opener", "component", "stem"),
    [
        (open_transformer, "transformer", "diffusion_pytorch_model"),
        (open_text_encoder, "text_encoder", "model"),
        (open_vae, "vae", "diffusion_pytorch_model"),
    ],
)
def test_a_repository_a_folder_and_a_file_are_all_taken(
    turbo: Path, opener: Callable[[Path], Component], component: str, stem: str
) -> None:
    file = turbo / component / f"{stem}.safetensors"
    components = [opener(path) for path in (turbo, turbo / component, file)]
    assert {each.file.path for each in components} == {file}
    for each in components[1:]:
        assert_same(each, values(components[0]))


def test_shards_are_taken_by_their_index_their_folder_and_their_repository(
    checkpoint: Callable[..., Path], turbo: Path
) -> None:
    folder = checkpoint(max_shard_size="200KB")
    index = folder / "transformer/diffusion_pytorch_model.safetensors.index.json"
    for path in (folder, folder / "transformer", index):
        component = open_transformer(path)
        assert component.file.path == index
        assert_same(component, load_transformer(turbo))
    files = {tensor.file for tensor in component.tensors.values()}
    assert files == set((folder / "transformer").glob("*.safetensors")), "errors name the shard"


def test_a_folder_with_one_file_needs_no_certain_name(turbo: Path, tmp_path: Path) -> None:
    save(load_transformer(turbo), tmp_path / "anything.safetensors")
    assert_same(open_transformer(tmp_path), load_transformer(turbo))
    save(load_transformer(turbo), tmp_path / "another.safetensors")
    message = refusal(open_transformer, tmp_path)
    assert message.endswith("name one of them, found another.safetensors, anything.safetensors")


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    assert refusal(open_transformer, tmp_path / "none.safetensors") == "the file is missing"


# ---- transformer


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("native", [False, True], ids=["diffusers", "native"])
def test_a_transformer_is_the_same_in_both_namings_under_every_prefix(
    turbo: Path, tmp_path: Path, prefix: str, native: bool
) -> None:
    original = load_transformer(turbo)
    tensors = native_transformer(original) if native else original
    component = open_transformer(save(prefixed(prefix, tensors), tmp_path / "model.safetensors"))
    assert_same(component, original)
    plain = prefix.replace("_orig_mod.", "")
    assert component.layout == ("native" if native else "diffusers") + " names" + (f" after {plain}" if plain else "")


def test_the_last_layers_modulation_may_be_flat_too(turbo: Path, tmp_path: Path) -> None:
    tensors = native_transformer(load_transformer(turbo))
    tensors["last.modulation.lin"] = tensors["last.modulation.lin"].flatten()
    assert_same(open_transformer(save(tensors, tmp_path / "model.safetensors")), load_transformer(turbo))


def test_dead_matrices_are_dropped_with_their_companions(turbo: Path, tmp_path: Path) -> None:
    tensors = native_transformer(load_transformer(turbo))
    tensors["last.down.weight"] = torch.zeros(4, 4).to(torch.float8_e4m3fn)
    tensors["last.down.weight_scale"] = torch.ones(())
    tensors["last.up.weight"] = torch.zeros(4, 4)
    file = save(prefixed("model.diffusion_model.", tensors), tmp_path / "model.safetensors")
    assert_same(open_transformer(file), load_transformer(turbo))


@settings(
    max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(st.data())
def test_two_namings_in_one_file_are_refused(turbo: Path, tmp_path: Path, data: st.DataObject) -> None:
    original = load_transformer(turbo)
    native = native_transformer(original)
    pairs = list(zip(original.items(), native.items(), strict=True))
    chosen = data.draw(st.sets(st.integers(0, len(pairs) - 1), min_size=1, max_size=len(pairs) - 1))
    mixed = dict(pair[number in chosen] for number, pair in enumerate(pairs))
    message = refusal(open_transformer, save(mixed, tmp_path / "mixed.safetensors"))
    assert message.startswith("mixes two namings, expected names like ")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("transformer_blocks.0.img_mod.1.weight", "it is Qwen-Image"),
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "it is FLUX.1 or a model like it"),
        ("blocks.0.cross_attn.k.weight", "it is Wan or a model like it"),
        ("model.diffusion_model.input_blocks.1.0.emb_layers.1.weight", "it is Stable Diffusion 1, 2 or XL"),
        ("model.layers.0.self_attn.q_proj.weight", "it is a language model"),
        ("transformer_blocks.0.attn.to_q.weight", "a tensor is missing, expected text_fusion.projector.weight"),
    ],
)
def test_another_models_transformer_is_refused_with_what_it_is_or_lacks(tmp_path: Path, name: str, model: str) -> None:
    other = {name: torch.zeros(8, 8), "txt_norm.weight": torch.zeros(8)}
    message = refusal(open_transformer, save(other, tmp_path / "other.safetensors"))
    assert message == f"is no Krea 2 transformer: {model}"


def test_another_language_model_is_no_text_encoder(tmp_path: Path) -> None:
    names = ("embed_tokens.weight", "layers.0.self_attn.q_proj.weight", "layers.0.self_attn.q_proj.bias")
    other = {f"model.{name}": torch.zeros(8, 8) for name in names}
    message = refusal(open_text_encoder, save(other, tmp_path / "other.safetensors"))
    assert message.startswith(
        "is not Krea 2's text encoder, Qwen3-VL-4B-Instruct: it is another language model, such as"
    )


def test_a_gguf_file_of_another_model_is_refused_with_its_architecture(tmp_path: Path) -> None:
    for architecture, said in (("flux", " (general.architecture flux)"), ("pig", "")):
        writer = GGUFWriter(tmp_path / architecture, architecture)
        writer.add_tensor("double_blocks.0.img_attn.qkv.weight", np.zeros((8, 8), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        message = refusal(open_transformer, tmp_path / architecture)
        assert message == f"is no Krea 2 transformer: it is FLUX.1 or a model like it{said}"


@pytest.mark.parametrize("qtype", ["F32", "Q8_0"])
def test_a_gguf_file_is_the_same_transformer(turbo: Path, tmp_path: Path, qtype: str) -> None:
    """Its modulation may be quantised too, and is a table nevertheless."""
    original = load_transformer(turbo)
    tensors = prefixed("model.diffusion_model.", native_transformer(original))
    file = tmp_path / "model.gguf"
    write_gguf(file, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, qtype, tensors.__getitem__)
    component = open_transformer(file)
    if qtype == "F32":
        assert_same(component, original)
    formats = {tensor.format for tensor in component.tensors.values()}
    assert formats == {"F32", qtype}
    for name, tensor in values(component).items():
        assert tensor.shape == original[name].shape, name
        assert (tensor - original[name]).abs().max() <= original[name].abs().max() / 127, name


def test_a_gguf_file_is_the_same_text_encoder(turbo: Path, tmp_path: Path) -> None:
    tensors = llama_text_encoder(load_text_encoder(turbo))
    file = tmp_path / "model.gguf"
    write_gguf(file, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, "F32", tensors.__getitem__)
    component = open_text_encoder(file)
    assert_same(component, language_model(load_text_encoder(turbo)))
    assert component.layout == "llama.cpp names"


# ---- text encoder


@pytest.mark.parametrize(
    "prefix", ["", "model.", "language_model.", "model.language_model.", "model.model.", "module._orig_mod.model."]
)
def test_a_text_encoder_is_the_same_under_every_prefix(turbo: Path, tmp_path: Path, prefix: str) -> None:
    original = language_model(load_text_encoder(turbo))
    tensors = prefixed(prefix, original)
    tensors["model.visual.patch_embed.proj.weight"] = torch.zeros(3)
    tensors["visual.merger.weight"] = torch.zeros(3)
    tensors["lm_head.weight"] = torch.zeros(3)
    assert_same(open_text_encoder(save(tensors, tmp_path / "model.safetensors")), original)


def test_a_text_encoder_may_have_llama_cpps_names(turbo: Path, tmp_path: Path) -> None:
    tensors = llama_text_encoder(load_text_encoder(turbo))
    tensors["output.weight"] = torch.zeros(3)
    component = open_text_encoder(save(tensors, tmp_path / "model.safetensors"))
    assert_same(component, language_model(load_text_encoder(turbo)))
    assert component.in_file("layers.3.mlp.up_proj.weight") == "blk.3.ffn_up.weight"


def test_what_is_no_text_encoder_is_refused(turbo: Path, tmp_path: Path) -> None:
    message = refusal(open_text_encoder, save(load_vae(turbo), tmp_path / "vae.safetensors"))
    assert message == "holds no text encoder, only a VAE (give it as vae)"
    message = refusal(open_text_encoder, save({"x.weight": torch.zeros(2)}, tmp_path / "model.safetensors"))
    assert message == (
        "is not the text encoder's, expected one tensor whose name ends with embed_tokens.weight, found 0 of them"
    )


# ---- VAE


@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model.", "module._orig_mod.", "base_model.model.vae."])
@pytest.mark.parametrize("wan", [False, True], ids=["diffusers", "wan"])
def test_a_vae_is_the_same_in_both_namings(turbo: Path, tmp_path: Path, prefix: str, wan: bool) -> None:
    original = load_vae(turbo)
    tensors = wan_vae(original, RES_BLOCKS) if wan else original
    assert_same(open_vae(save(prefixed(prefix, tensors), tmp_path / "model.safetensors")), original)


def test_wans_names_are_read_whatever_the_number_of_residual_blocks(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    original = load_vae(checkpoint(vae_res_blocks=2))
    assert_same(open_vae(save(wan_vae(original, 2), tmp_path / "model.safetensors")), original)


@pytest.mark.parametrize("wan", [False, True], ids=["diffusers", "wan"])
def test_a_wan_2_2_vae_is_refused(turbo: Path, tmp_path: Path, wan: bool) -> None:
    tensors = wan_vae(load_vae(turbo), RES_BLOCKS) if wan else load_vae(turbo)
    name = "decoder.conv1.weight" if wan else "decoder.conv_in.weight"
    tensors[name] = torch.zeros(8, 48, 3, 3, 3)
    message = refusal(open_vae, save(tensors, tmp_path / "model.safetensors"))
    assert message.startswith(f"{name}: belongs to a Wan 2.2 VAE")
    assert message.endswith("found 48 channels")


# ---- damage


def test_pickles_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    torch.save({"img_in.weight": torch.zeros(2)}, file)
    assert "pickle" in refusal(open_transformer, file)


def test_an_index_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors.index.json"
    for shard in ("../x.safetensors", "x" * 10_000):
        file.write_text(json.dumps({"weight_map": {"img_in.weight": shard}}))
        message = refusal(open_transformer, file)
        assert message.startswith("weight_map: names a shard outside its folder")
        assert len(message) < 300
