"""Every name that any scheme has for a layer leads to that layer and to no other, at the real size; and what is said
of keys that are for none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.engines.real_size import KREA2
from engine.checkpoint.layouts.names import linear_modules, vector_parameters
from engine.config.model_config import ModelConfig
from engine.errors import LoraError
from engine.lora.files import open_adapter
from engine.lora.names import LayerNames, split_key, strip_prefixes
from tests.engine.lora.adapter_files import write

QUERY = "transformer_blocks.0.attn.to_q"
NAMES = LayerNames(KREA2.transformer)
MODULES = linear_modules(KREA2.transformer)
VECTORS = vector_parameters(KREA2.transformer)
PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.", "model.", "module.", "_orig_mod.", "net.")
DOTTED = st.lists(st.sampled_from(PREFIXES), max_size=4).map("".join)
FLAT = ("lora_unet_", "lora_unet__", "lora_transformer_", "lycoris_", "lora_")
WRAPPERS = ("", "_orig_mod.", "module.", "block.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
ROLES = {
    "down": tuple(
        f"{name}{adapter}{weight}"
        for name in ("lora_A", "lora_down", "lora.down")
        for adapter in ("", ".default", ".my_lora")
        for weight in ("", ".weight")
    ),
    "up": ("lora_B", "lora_B.weight", "lora_B.default", "lora_B.default.weight", "lora_up.weight", "lora.up"),
    "alpha": ("alpha", "lora_alpha"),
    "lokr_w1": ("lokr_w1", "lokr_w1.default"),
    "lokr_w2_b": ("lokr_w2_b",),
    "hada_w1_a": ("hada_w1_a",),
    "diff": ("diff",),
    "diff_b": ("diff_b",),
    "magnitude": ("dora_scale", "magnitude", "lora_magnitude_vector", "lora_magnitude_vector.default.weight"),
}


@given(
    module=st.sampled_from(MODULES),
    native=st.booleans(),
    prefixes=DOTTED,
    flat=st.sampled_from((None, *FLAT)),
    wrapper=st.sampled_from(WRAPPERS),
    parameter=st.sampled_from(("", ".weight")),
    role=st.sampled_from([(role, suffix) for role, suffixes in ROLES.items() for suffix in suffixes]),
)
def test_every_key_of_every_scheme_names_its_layer(
    module: tuple[str, str],
    native: bool,
    prefixes: str,
    flat: str | None,
    wrapper: str,
    parameter: str,
    role: tuple[str, str],
) -> None:
    path = prefixes + re.sub(r"(?<=\.[0-9]\.)", wrapper, module[native], count=1)
    if flat is not None:
        path = flat + path.replace(".", "_")
    split = split_key(f"{path}{parameter}.{role[1]}")
    assert split is not None
    assert (NAMES.resolve(split[0]), split[1]) == ((module[0],), role[0])


@pytest.mark.parametrize("native", [False, True])
def test_a_difference_of_a_parameter_is_its_layers(native: bool) -> None:
    path = MODULES[0][native]
    assert split_key(f"{path}.weight.diff") == split_key(f"{path}.diff") == (path, "diff", None)
    assert split_key(f"{path}.bias.diff") == split_key(f"{path}.diff_b") == (path, "diff_b", None)


@pytest.mark.parametrize(
    "key",
    [
        "first.bias.lora_A",
        "first.lora_B.bias",
        "first.lora_B.default.bias",
        "first.lora_C",
        "model." * 50 + "first.lora_A",  # which would take long where there are thousands
    ],
)
def test_what_is_no_matrix_of_a_layer_is_for_none(key: str) -> None:
    split = split_key(key)
    assert split is None or NAMES.resolve(split[0]) is None


@given(
    parameter=st.sampled_from(VECTORS),
    native=st.booleans(),
    prefixes=DOTTED,
    flat=st.sampled_from((None, *FLAT)),
    wrapper=st.sampled_from(WRAPPERS),
    leaf=st.booleans(),
    role=st.sampled_from(
        [("diff", "diff"), ("diff", "w_norm"), ("set_weight", "set_weight"), ("down", "lora_A.weight")]
    ),
)
def test_every_key_of_norms_and_tables_names_its_parameter(
    parameter: tuple[str, str],
    native: bool,
    prefixes: str,
    flat: str | None,
    wrapper: str,
    leaf: bool,
    role: tuple[str, str],
) -> None:
    """With the parameter's own name or, but for diffusers' tables, that of what has it alone."""
    own = parameter[native]
    if not leaf and not own.endswith("scale_shift_table"):
        own = own.rpartition(".")[0]
    path = prefixes + re.sub(r"(?<=\.[0-9]\.)", wrapper, own, count=1)
    split = split_key(f"{path if flat is None else flat + path.replace('.', '_')}.{role[1]}")
    assert split is not None
    assert (NAMES.resolve(split[0]), split[1]) == ((parameter[0].removesuffix(".weight"),), role[0])


def test_there_are_264_layers_and_159_vectors_whose_names_are_all_different() -> None:
    assert (len(MODULES), len(VECTORS), len(NAMES.layers)) == (264, 159, 264 + 159)
    resolved = [NAMES.resolve(name) for module in MODULES for name in module]
    assert resolved == [(diffusers,) for diffusers, _ in MODULES for _ in range(2)]


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("lora_unet_txtfusion_layerwise_blocks_1_attn_wq", "text_fusion.layerwise_blocks.1.attn.to_q"),
        ("lora_unet_txtfusion_refiner_blocks_1_mlp_up", "text_fusion.refiner_blocks.1.ff.up"),
        ("lora_unet_first", "img_in"),
        ("lora_unet_tproj_1", "time_mod_proj"),
        ("lora_unet_last_linear", "final_layer.linear"),
        ("diffusion_model.blocks.3.attn.gate", "transformer_blocks.3.attn.to_gate"),
        ("diffusion_model.blocks.3.mlp.gate", "transformer_blocks.3.ff.gate"),
        ("transformer.transformer_blocks.27.mlp.down", "transformer_blocks.27.ff.down"),
        ("transformer.blocks.0.attn.wo", "transformer_blocks.0.attn.to_out.0"),
        ("transformer_blocks.0.attn.to_out", "transformer_blocks.0.attn.to_out.0"),
        ("base_model.model.transformer.blocks.0.attn.wk", "transformer_blocks.0.attn.to_k"),
    ],
)
def test_names_that_parsers_get_wrong(path: str, layer: str) -> None:
    assert NAMES.resolve(path) == (layer,)


@pytest.mark.parametrize("path", ["lycoris_transformer_blocks_20_attn_to_qkv", "diffusion_model.blocks.20.attn.to_qkv"])
def test_a_fused_name_is_three_layers_in_order(path: str) -> None:
    assert NAMES.resolve(path) == tuple(f"transformer_blocks.20.attn.to_{part}" for part in "qkv")


@pytest.mark.parametrize(
    "path",
    [
        *("transformer_blocks.28.attn.to_q", "transformer_blocks.0", "blocks.0.attn.qknorm", "final_layer", "last"),
        *("text_fusion.refiner_blocks.0.scale_shift_table", "txtfusion.refiner_blocks.0.mod.lin"),
        *("", "lora_unet_", "first.0"),
    ],
)
def test_what_is_no_layer_is_none(path: str) -> None:
    assert NAMES.resolve(path) is None


@given(st.text(max_size=60))
def test_any_text_is_a_key_or_none(text: str) -> None:
    split = split_key(text)
    assert split is None or NAMES.resolve(split[0]) is None
    assert strip_prefixes(f"base_model.model.transformer.{text}") == strip_prefixes(text)


# ---- what is for none


@pytest.fixture(scope="module")
def config(turbo: Path) -> ModelConfig:
    return ModelConfig.from_folder(turbo)


def pair(path: str) -> dict[str, torch.Tensor]:
    return {f"{path}.lora_A.weight": torch.ones(2, 128), f"{path}.lora_B.weight": torch.ones(128, 2)}


def refusal(tmp_path: Path, tensors: dict[str, torch.Tensor], config: ModelConfig, *, lenient: bool = False) -> str:
    with pytest.raises(LoraError) as caught:
        open_adapter(write(tmp_path / "lora.safetensors", tensors), config, lenient=lenient)
    return caught.value.message


def test_lenient_says_how_much_it_leaves_out_and_of_what(tmp_path: Path, config: ModelConfig) -> None:
    encoder, oft = (
        pair("text_encoder.layers.0.q_proj"),
        {f"blocks.0.mlp.up.{name}": torch.ones(2, 4, 4) for name in ("oft_blocks", "alpha")},
    )
    extra = encoder | oft | {f"\x1b[31m\nerror: {n}": torch.ones(1) for n in range(5)} | {"x" * 500: torch.ones(1)}
    adapter = open_adapter(write(tmp_path / "lora.safetensors", pair(QUERY) | extra), config, lenient=True)
    assert adapter.modules == 1
    said, _, of = adapter.left_out.partition(": ")
    counted = f"lora_lenient leaves out {len(extra)} of {len(extra) + 2} keys"
    assert said == f"{counted}, and what they change is missing from pictures"
    encoders, ofts = ", ".join(sorted(encoder)), ", ".join(sorted(oft))
    assert f"2 for the text encoder ({encoders})" in of
    assert f"2 of OFT, which is not read ({ofts})" in of
    assert "6 for nothing in Krea 2's transformer (\\x1b[31m\\nerror: 0, " in of
    assert len(adapter.left_out) < 900
    assert open_adapter(write(tmp_path / "lora.safetensors", pair(QUERY)), config, lenient=True).left_out == ""


@pytest.mark.parametrize(
    ("endings", "kind"),
    [
        (["oft_R.weight"], "OFT"),
        (["oft_R.default.weight"], "OFT"),
        (["oft_blocks", "alpha"], "OFT"),
        (["oft_diag", "alpha", "rescale"], "OFT"),
        (["boft_R", "boft_s"], "BOFT"),
        (["ia3_l"], "(IA)³"),
        (["a1.weight", "a2.weight", "b1.weight", "b2.weight", "alpha"], "GLoRA"),
        (["vera_lambda_b", "vera_lambda_d"], "VeRA"),
    ],
)
@pytest.mark.parametrize("path", ["blocks.0.attn.wq", "lora_unet_blocks_0_attn_wq", f"base_model.model.{QUERY}"])
def test_a_kind_that_is_not_read_is_refused_by_name(
    tmp_path: Path, config: ModelConfig, path: str, endings: list[str], kind: str
) -> None:
    tensors = {f"{path}.{ending}": torch.ones(1) for ending in endings}
    for lenient in (False, True):  # it would leave out all of the file
        message = refusal(tmp_path, tensors, config, lenient=lenient)
        assert f"is an adapter of {kind} ({path}." in message
        assert "), which is not read: LoRA, LoKr, LoHa, DoRA and differences of weights are; what trained it" in message
    beside = pair("blocks.0.attn.wo") | tensors
    assert f"has keys of {kind} ({path}." in refusal(tmp_path, beside, config)
    file = write(tmp_path / "lora.safetensors", beside)
    assert f"{len(endings)} of {kind}, which is not read" in open_adapter(file, config, lenient=True).left_out
