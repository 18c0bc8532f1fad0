"""Of what a file holds besides a component nothing gets into it, whoever saved the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from engine.checkpoint.convert.writers import write_gguf
from engine.checkpoint.layouts.belonging import Ambiguous, belonging
from engine.checkpoint.layouts.component import open_text_encoder, open_transformer, open_vae
from tests.engine.checkpoint.layouts.layouts import (
    language_model,
    load_text_encoder,
    load_transformer,
    load_vae,
    native_transformer,
    prefixed,
    save,
    wan_vae,
)
from tests.engine.checkpoint.layouts.test_component import RES_BLOCKS, assert_same, refusal, values


def test_of_an_all_in_one_file_every_component_is_taken(turbo: Path, tmp_path: Path) -> None:
    transformer, vae = load_transformer(turbo), load_vae(turbo)
    text_encoder = load_text_encoder(turbo)
    everything = {
        **prefixed("model.diffusion_model.", native_transformer(transformer)),
        **prefixed("text_encoders.qwen3vl_4b.transformer.model.", language_model(text_encoder)),
        **prefixed("first_stage_model.", wan_vae(vae, RES_BLOCKS)),
    }
    file = save(everything, tmp_path / "all.safetensors")
    assert_same(open_transformer(file), transformer)
    assert_same(open_text_encoder(file), language_model(text_encoder))
    assert_same(open_vae(file), vae)


def test_an_all_in_one_file_without_the_component_says_so(turbo: Path, tmp_path: Path) -> None:
    everything = {
        **prefixed("model.diffusion_model.", native_transformer(load_transformer(turbo))),
        **prefixed("first_stage_model.", load_vae(turbo)),
    }
    message = refusal(open_text_encoder, save(everything, tmp_path / "all.safetensors"))
    assert message == ("holds no text encoder, only a transformer (give it as transformer) and a VAE (give it as vae)")


VAE_PREFIXES = ("vae.", "first_stage_model.")
TEXT_PREFIXES = (
    "text_encoders.qwen3vl_4b.transformer.model.",
    "text_encoders.llm.model.language_model.",
    "cond_stage_model.",
    "text_encoder.",
)


@pytest.mark.parametrize("transformer_prefix", ["model.diffusion_model.", "diffusion_model.", ""])
@pytest.mark.parametrize(("text_prefix", "vae_prefix"), [*zip(TEXT_PREFIXES, VAE_PREFIXES * 2, strict=True)])
def test_an_all_in_one_file_is_read_under_every_savers_names(
    turbo: Path, tmp_path: Path, transformer_prefix: str, text_prefix: str, vae_prefix: str
) -> None:
    transformer, text_encoder, vae = load_transformer(turbo), language_model(load_text_encoder(turbo)), load_vae(turbo)
    root = text_prefix.partition(".")[0]
    everything = {
        **prefixed(transformer_prefix, native_transformer(transformer)),
        **prefixed(text_prefix, text_encoder),
        **prefixed(vae_prefix, wan_vae(vae, RES_BLOCKS)),
        f"{root}.visual.patch_embed.proj.weight": torch.zeros(3),
        "text_encoders.qwen3vl_4b.logit_scale": torch.zeros(()),
    }
    file = save(everything, tmp_path / "all.safetensors")
    assert_same(open_transformer(file), transformer)
    assert_same(open_text_encoder(file), text_encoder)
    assert_same(open_vae(file), vae)


def test_wrappers_around_single_modules_are_left_out_of_names(turbo: Path, tmp_path: Path) -> None:
    """As torch.compile, FSDP and activation checkpointing put them there."""
    original = load_transformer(turbo)
    for wrapper in ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module._orig_mod", "block"):
        named = {
            name.replace("blocks.0.", f"blocks.0.{wrapper}.").replace("attn.wq.", f"attn.wq.{wrapper}."): tensor
            for name, tensor in prefixed("_orig_mod.", native_transformer(original)).items()
        }
        assert_same(open_transformer(save(named, tmp_path / f"{wrapper}.safetensors")), original)
    twice = native_transformer(original)
    twice["blocks.0._orig_mod.attn.wq.weight"] = twice["blocks.0.attn.wq.weight"]
    message = refusal(open_transformer, save(twice, tmp_path / "twice.safetensors"))
    assert message == (
        "holds a transformer more than once, or two tensors of one name, expected one, found "
        "blocks.0._orig_mod.attn.wq.weight and blocks.0.attn.wq.weight"
    )


@pytest.mark.parametrize(
    ("own", "mean"),
    [("model.", "ema."), ("model.diffusion_model.", "model_ema."), ("online_model.", "ema_model."), ("", "ema.")],
)
def test_the_weights_are_taken_and_not_their_running_mean_nor_a_trainers_state(
    turbo: Path, tmp_path: Path, own: str, mean: str
) -> None:
    original = load_transformer(turbo)
    native = native_transformer(original)
    means = {name: torch.zeros_like(tensor) for name, tensor in native.items()}
    state = {
        **dict.fromkeys(("epoch", "global_step", "n_averaged", f"{mean}decay", f"{mean}num_updates"), torch.zeros(())),
        "optimizer.state.0.exp_avg": torch.zeros(3),
        "optimizer.exp_avg.txtfusion.projector.weight": torch.zeros(3),
        "lr_scheduler.last_epoch": torch.zeros(()),
    }
    file = tmp_path / "checkpoint.safetensors"
    component = open_transformer(save({**prefixed(own, native), **prefixed(mean, means), **state}, file))
    assert_same(component, original)
    after = f" after {own}" if own else ""
    assert component.layout == f"native names{after}, without {len(means) + len(state)} tensors of its training"
    assert_same(open_transformer(save({**prefixed(mean, native), **state}, file)), original)


def test_two_models_in_one_file_and_a_lora_that_is_not_merged_are_refused(turbo: Path, tmp_path: Path) -> None:
    native = native_transformer(load_transformer(turbo))
    file = save({**prefixed("generator.", native), **prefixed("critic.", native)}, tmp_path / "two.safetensors")
    message = refusal(open_transformer, file)
    assert message.endswith("expected one, found critic. and generator.")
    peft = {name.replace("attn.wq.", "attn.wq.base_layer."): tensor for name, tensor in native.items()}
    file = save(prefixed("base_model.model.", peft), tmp_path / "peft.safetensors")
    assert_same(open_transformer(file), load_transformer(turbo))
    peft["blocks.0.attn.wq.lora_A.default.weight"] = torch.zeros(2, 3)
    message = refusal(open_transformer, save(prefixed("base_model.model.", peft), file))
    assert message.startswith("holds a LoRA beside the weights that it changes; merge it into them first")


def test_a_tensor_that_is_nobodys_stays_under_its_name(turbo: Path, tmp_path: Path) -> None:
    tensors = prefixed("net.", native_transformer(load_transformer(turbo))) | {"logvar.linear.weight": torch.zeros(3)}
    component = open_transformer(save(tensors, tmp_path / "model.safetensors"))
    assert "logvar.linear.weight" in component.tensors  # which whoever checks the component names


def test_names_without_end_are_sorted_in_bounded_time() -> None:
    many = [
        f"{number}.{name}" for number in range(20_000) for name in ("decoder.conv_in.weight", "embed_tokens.weight")
    ]
    with pytest.raises(Ambiguous):
        belonging([*many, "txtfusion.projector.weight"], "transformer")


def test_what_a_header_says_of_layers_fits_under_every_prefix(turbo: Path, tmp_path: Path) -> None:
    """Its names lack the prefix, or one of the wrappers, in files of some trainers and converters."""
    layer = "blocks.0.attn.wq"
    native = native_transformer(load_transformer(turbo))
    scale = native[f"{layer}.weight"].abs().amax() / 127
    native[f"{layer}.weight"] = (native[f"{layer}.weight"] / scale).round().to(torch.int8)
    native[f"{layer}.weight_scale"] = scale
    expected = native[f"{layer}.weight"].float() * scale
    for prefix, named in (
        ("module._orig_mod.model.diffusion_model.", layer),
        ("module._orig_mod.model.diffusion_model.", f"model.diffusion_model.{layer}"),
        ("", f"model.diffusion_model.{layer}"),
        ("net.", f"net.{layer}"),
    ):
        said = {"_quantization_metadata": json.dumps({"layers": {named: {"format": "int8_tensorwise"}}})}
        component = open_transformer(save(prefixed(prefix, native), tmp_path / "model.safetensors", said))
        assert torch.equal(values(component)["transformer_blocks.0.attn.to_q.weight"], expected)


def test_a_quantised_all_in_one_file_has_marks_of_each_part(turbo: Path, tmp_path: Path) -> None:
    """As the published ones: ComfyUI's marks are tensors beside the weights, of the text encoder's too."""
    parts = {
        "model.diffusion_model.": (native_transformer(load_transformer(turbo)), "blocks.0.attn.wq"),
        "text_encoders.qwen3vl_4b.transformer.model.": (
            language_model(load_text_encoder(turbo)),
            "layers.0.self_attn.q_proj",
        ),
    }
    mark = torch.frombuffer(bytearray(json.dumps({"format": "int8_tensorwise"}).encode()), dtype=torch.uint8)
    everything = prefixed("vae.", wan_vae(load_vae(turbo), RES_BLOCKS))
    expected = []
    for prefix, (tensors, layer) in parts.items():
        scale = tensors[f"{layer}.weight"].abs().amax() / 127
        whole = (tensors[f"{layer}.weight"] / scale).round()
        expected.append(whole * scale)
        own = {"weight": whole.to(torch.int8), "weight_scale": scale, "comfy_quant": mark}
        everything |= prefixed(prefix, tensors) | prefixed(f"{prefix}{layer}.", own)
    file = save(everything, tmp_path / "everything.safetensors")
    found = values(open_transformer(file))["transformer_blocks.0.attn.to_q.weight"]
    assert torch.equal(found, expected[0])
    assert torch.equal(values(open_text_encoder(file))["layers.0.self_attn.q_proj.weight"], expected[1])
    assert_same(open_vae(file), load_vae(turbo))


def test_gguf_files_and_shards_have_prefixes_too(turbo: Path, tmp_path: Path) -> None:
    original = load_transformer(turbo)
    tensors = prefixed("module._orig_mod.net.", native_transformer(original))
    file = tmp_path / "model.gguf"
    write_gguf(file, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, "F32", tensors.__getitem__)
    assert_same(open_transformer(file), original)
    names = sorted(tensors)
    for number, some in enumerate((names[::2], names[1::2]), 1):
        save({name: tensors[name] for name in some}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    component = open_transformer(tmp_path / "model-00002-of-00002.safetensors")
    assert_same(component, original)
    assert component.layout == "native names after module.net."


def test_a_prefix_of_any_characters_is_told_in_one_short_line(turbo: Path, tmp_path: Path) -> None:
    tensors = prefixed("\n\x1b[31m" + 300 * "x" + ".", load_vae(turbo))
    component = open_vae(save(tensors, tmp_path / "vae.safetensors"))
    assert_same(component, load_vae(turbo))
    assert component.layout.isprintable()
    assert len(component.layout) < 200
