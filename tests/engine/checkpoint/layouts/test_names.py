"""Every tensor of the real model has one name in each naming, one parameter and one shard set."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from functools import cache

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, Krea2Transformer2DModel
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from bench.engines.real_size import KREA2, TINY
from engine.checkpoint.convert.config_json import config_files
from engine.checkpoint.layouts.names import (
    DEAD_TENSORS,
    linear_modules,
    text_encoder_from_llama,
    text_encoder_to_llama,
    transformer_from_native,
    transformer_to_native,
    vae_from_wan,
    vae_to_wan,
)
from engine.checkpoint.layouts.tensors import Source, text_encoder_sources, transformer_sources, vae_sources

Shapes = dict[str, tuple[int, ...]]

# ---- the real tensors, as the files list them


@cache
def diffusers_transformer() -> Shapes:
    return {source.name: source.shape for source in transformer_sources(KREA2.transformer)}


@cache
def native_transformer() -> Shapes:
    shapes = {}
    for name, shape in diffusers_transformer().items():
        native = transformer_to_native(name)
        assert native is not None, name
        shapes[native] = (math.prod(shape),) if native.endswith("mod.lin") else shape
    return shapes


@cache
def qwen3_vl() -> Shapes:
    """transformers' own at the sizes of Qwen3-VL-4B-Instruct, as its files name them."""
    text = KREA2.text_encoder
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "num_key_value_heads": text.num_kv_heads,
            "head_dim": text.head_dim,
        },
        vision_config={
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": text.hidden_size,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name != "lm_head.weight"}


@cache
def diffusers_vae() -> Shapes:
    with torch.device("meta"):
        vae = AutoencoderKLQwenImage()
    return {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}


def fingerprint(shapes: Shapes) -> str:
    """As DiffSynth-Studio publishes it for every file: names and shapes, sorted, joined, md5."""
    texts = sorted(text for name, shape in shapes.items() for text in (name, f"{name}:{'_'.join(map(str, shape))}"))
    return hashlib.md5(",".join(texts).encode()).hexdigest()


# ---- published fingerprints


def test_the_native_transformer_has_the_published_fingerprint() -> None:
    shapes = native_transformer()
    assert len(shapes) == 430
    assert sum(math.prod(shape) for shape in shapes.values()) == 12_820_073_036
    assert fingerprint(shapes) == "2a05e69084a6d608516ee47c8ad03334"


def test_with_the_dead_matrices_it_has_that_of_the_other_copies() -> None:
    shapes = native_transformer() | dict.fromkeys(DEAD_TENSORS, (6144, 6144))
    assert len(shapes) == 432
    assert fingerprint(shapes) == "4be51f0ecc9b9dfc9825abb3f7a0b4ae"


def test_the_diffusers_transformer_has_the_published_fingerprint() -> None:
    shapes = {transformer_from_native(name) or "": shape for name, shape in native_transformer().items()}
    for name, shape in shapes.items():
        if name.endswith("scale_shift_table") and len(shape) == 1:
            shapes[name] = (6, shape[0] // 6)
    assert shapes == diffusers_transformer()
    assert fingerprint(shapes) == "cddb3118d9f8250bf7b08c331c5c55aa"


def test_the_text_encoder_has_the_published_fingerprint() -> None:
    shapes = qwen3_vl()
    assert len(shapes) == 713
    assert fingerprint(shapes) == "b8750c24f732c87797f551196c4cef78"
    for source in text_encoder_sources(KREA2):
        assert shapes[f"model.language_model.{source.name}"] == source.shape


def test_the_vae_has_the_published_fingerprint_also_by_way_of_wans_names() -> None:
    shapes = diffusers_vae()
    assert len(shapes) == 194
    there_and_back = {vae_from_wan(vae_to_wan(name) or "") or "": shape for name, shape in shapes.items()}
    assert fingerprint(there_and_back) == fingerprint(shapes) == "ed4ea5824d55ec3107b09815e318123a"
    for source in vae_sources(KREA2.vae):
        assert shapes[source.name] == source.shape


# ---- against diffusers


def test_names_and_shapes_are_those_of_diffusers() -> None:
    with torch.device("meta"):
        model = Krea2Transformer2DModel.from_config(config_files(KREA2)["transformer/config.json"])
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == diffusers_transformer()
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert linears == {diffusers for diffusers, _ in linear_modules(KREA2.transformer)}


def test_wans_names_are_those_that_diffusers_converts() -> None:
    wan = {vae_to_wan(name) or "": torch.empty(0) for name in diffusers_vae()}
    assert len(wan) == 194
    converted = convert_wan_vae_to_diffusers(dict(wan))
    assert converted.keys() == diffusers_vae().keys()
    assert {vae_from_wan(name) for name in wan} == converted.keys()


# ---- linear modules


def test_the_264_matrices_have_both_names() -> None:
    modules = linear_modules(KREA2.transformer)
    assert len(modules) == len(set(modules)) == 264
    for diffusers, native in modules:
        assert transformer_to_native(f"{diffusers}.weight") == f"{native}.weight"
        assert len(diffusers_transformer()[f"{diffusers}.weight"]) == 2
    matrices = {name for name, shape in diffusers_transformer().items() if len(shape) == 2 and name.endswith(".weight")}
    assert {f"{diffusers}.weight" for diffusers, _ in modules} == matrices


# ---- every tensor goes to one place

SOURCES: dict[str, list[Source]] = {
    "transformer": list(transformer_sources(KREA2.transformer)),
    "text_encoder": list(text_encoder_sources(KREA2)),
    "vae": list(vae_sources(KREA2.vae)),
}


@pytest.mark.parametrize("component", SOURCES)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_tensor_fills_one_parameter_and_is_in_one_shard_set(component: str, size: int) -> None:
    sources = SOURCES[component]
    assert max(Counter(source.name for source in sources).values()) == 1
    for source in sources:
        seen = [source.shard_bounds(rank, size) for rank in range(size)]
        if source.split is None:
            assert len(set(map(str, seen))) == 1
            continue
        split = [bounds[source.split] for bounds in seen]
        assert [bound.start for bound in split[1:]] == [bound.stop for bound in split[:-1]]
        assert (split[0].start, split[-1].stop) == (0, source.shape[source.split])


@given(st.sampled_from(sorted(diffusers_transformer())))
def test_both_directions_of_the_transformers_table_are_inverse(name: str) -> None:
    native = transformer_to_native(name)
    assert native is not None
    assert transformer_from_native(native) == name
    assert transformer_from_native(name) is None, "no name belongs to both namings"
    assert transformer_to_native(native) is None


@given(st.sampled_from(sorted(source.name for source in SOURCES["text_encoder"])))
def test_both_directions_of_the_text_encoders_table_are_inverse(name: str) -> None:
    llama = text_encoder_to_llama(name)
    assert llama is not None
    assert text_encoder_from_llama(llama) == name


@given(st.sampled_from(sorted(diffusers_vae())))
def test_both_directions_of_the_vaes_table_are_inverse(name: str) -> None:
    wan = vae_to_wan(name)
    assert wan is not None
    assert vae_from_wan(wan) == name


@given(st.integers(1, 4), st.data())
def test_wans_flat_lists_follow_the_number_of_residual_blocks(res_blocks: int, data: st.DataObject) -> None:
    level, place = data.draw(st.integers(0, 7)), data.draw(st.integers(0, res_blocks + 1))
    if place <= res_blocks:
        name = f"decoder.up_blocks.{level}.resnets.{place}.conv1.weight"
    else:
        name = f"decoder.up_blocks.{level}.upsamplers.0.resample.1.weight"
    wan = vae_to_wan(name, res_blocks)
    assert wan is not None
    assert wan.startswith(f"decoder.upsamples.{level * (res_blocks + 2) + place}.")
    assert vae_from_wan(wan, res_blocks) == name


OTHER_NAMES = st.from_regex(r"(blocks|txtfusion|last|decoder|blk)(\.[a-z0-9_]{1,9}){1,5}", fullmatch=True)


@given(st.text(max_size=60) | OTHER_NAMES)
def test_any_other_name_has_no_counterpart(name: str) -> None:
    for there, back in (
        (transformer_from_native, transformer_to_native),
        (text_encoder_from_llama, text_encoder_to_llama),
        (vae_from_wan, vae_to_wan),
    ):
        translated = there(name)
        assert translated is None or back(translated) == name


def test_smaller_models_have_fewer_modules() -> None:
    assert len(linear_modules(TINY.transformer)) == 8 + 8 * (3 + 1 + 1)
