"""The names that Krea 2's tensors go by in the files people have, and what each is called here.

Here everything has the name that diffusers and transformers give it, without a prefix. Pure Python, and every table
is read in both directions: what loads a file and what writes one cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial

from engine.config.components import TransformerConfig

# Modules that wrap any part of a model while it is trained: torch.compile's, FSDP's, activation checkpointing's.
WRAPPERS = "_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module"
# Parts of tensors' names in adapters, as PEFT, diffusers, kohya and LyCORIS write them.
_IN_LORAS = re.compile(
    r"lora[_.](?:[AB]|down|up|magnitude)|hada_w|lokr_w|b?oft_[Rbds]|dora_scale|\.(?:diff(?:_b)?|set_weight|[wb]_norm)$"
)


def is_lora(names: Iterable[str]) -> bool:
    """Whether these are names of an adapter's tensors, none of a model's."""
    return any(_IN_LORAS.search(name) for name in names)


# ---- transformer: native (the official single files, ComfyUI's, GGUF) and diffusers

# Modules that multiply by a `weight`; LoRAs act on these. Outside of the blocks most have a `bias` too.
_LINEARS = {
    "first": "img_in",
    "tmlp.0": "time_embed.linear_1",
    "tmlp.2": "time_embed.linear_2",
    "tproj.1": "time_mod_proj",
    "txtmlp.1": "txt_in.linear_1",
    "txtmlp.3": "txt_in.linear_2",
    "txtfusion.projector": "text_fusion.projector",
    "last.linear": "final_layer.linear",
}
_TENSORS = {
    "txtmlp.0.scale": "txt_in.norm.weight",
    "last.norm.scale": "final_layer.norm.weight",
    "last.modulation.lin": "final_layer.scale_shift_table",
}
_BLOCKS = {
    "blocks": "transformer_blocks",
    "txtfusion.layerwise_blocks": "text_fusion.layerwise_blocks",
    "txtfusion.refiner_blocks": "text_fusion.refiner_blocks",
}
_BLOCK_LINEARS = {
    "attn.wq": "attn.to_q",
    "attn.wk": "attn.to_k",
    "attn.wv": "attn.to_v",
    "attn.gate": "attn.to_gate",
    "attn.wo": "attn.to_out.0",
    "mlp.gate": "ff.gate",
    "mlp.up": "ff.up",
    "mlp.down": "ff.down",
}
_BLOCK_TENSORS = {
    "attn.qknorm.qnorm.scale": "attn.norm_q.weight",
    "attn.qknorm.knorm.scale": "attn.norm_k.weight",
    "prenorm.scale": "norm1.weight",
    "postnorm.scale": "norm2.weight",
    "mod.lin": "scale_shift_table",
}
# In some files, and read by no inference code.
DEAD_TENSORS = ("last.down.weight", "last.up.weight")

NATIVE_TRANSFORMER_SIGNATURE, TRANSFORMER_SIGNATURE = "txtfusion.projector.weight", "text_fusion.projector.weight"

# ---- text encoder: llama.cpp and transformers

_LLAMA_TENSORS = {"token_embd": "embed_tokens", "output_norm": "norm"}
_LLAMA_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TEXT_ENCODER_SIGNATURE, LLAMA_SIGNATURE = "embed_tokens.weight", "token_embd.weight"

# ---- VAE: Wan 2.1's own names and diffusers'

_WAN_TOP = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
_WAN_SIDE = {
    "conv1": "conv_in",
    "middle.0": "mid_block.resnets.0",
    "middle.1": "mid_block.attentions.0",
    "middle.2": "mid_block.resnets.1",
    "head.0": "norm_out",
    "head.2": "conv_out",
}
_WAN_INSIDE = {  # of residual blocks, attention and resamplers
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
    **{same: same for same in ("norm", "to_qkv", "proj", "resample.1", "time_conv")},
}
_MOST_BLOCKS = 100  # in a flat list of blocks; the real VAE has 15
VAE_SIGNATURE, WAN_SIGNATURE = "decoder.conv_in.weight", "decoder.middle.0.residual.0.gamma"
WAN_RES_BLOCKS = 2  # of the real VAE

_Table = Mapping[str, str]
_Translation = Callable[[str], str | None]
_BLOCK_NAME = re.compile(r"(.+?)\.(0|[1-9][0-9]*)\.(.+)")


def _translate(tables: Sequence[_Table], name: str) -> str | None:
    names, blocks, names_in_blocks = tables
    if name in names:
        return names[name]
    parts = _BLOCK_NAME.fullmatch(name)
    if parts is None or parts[1] not in blocks or parts[3] not in names_in_blocks:
        return None
    return f"{blocks[parts[1]]}.{parts[2]}.{names_in_blocks[parts[3]]}"


def _both_ways(*tables: _Table) -> tuple[_Translation, _Translation]:
    """From the tables' keys to their values, and back. tables: names, numbered blocks, and names inside these."""
    return partial(_translate, tables), partial(_translate, [_swapped(table) for table in tables])


def _with(leaf: str, table: _Table) -> dict[str, str]:
    return {f"{one}.{leaf}": f"{other}.{leaf}" for one, other in table.items()}


def _swapped(table: _Table) -> _Table:
    return {other: one for one, other in table.items()}


# The other name of a tensor of the transformer; None if there is no such tensor in any Krea 2.
transformer_from_native, transformer_to_native = _both_ways(
    _with("weight", _LINEARS) | _with("bias", _LINEARS) | _TENSORS,
    _BLOCKS,
    _with("weight", _BLOCK_LINEARS) | _BLOCK_TENSORS,
)
# The other name of a tensor of the language model; None for what llama.cpp has no name for.
text_encoder_from_llama, text_encoder_to_llama = _both_ways(
    _with("weight", _LLAMA_TENSORS), {"blk": "layers"}, _with("weight", _LLAMA_LAYER_TENSORS)
)


def linear_modules(config: TransformerConfig) -> list[tuple[str, str]]:
    """List every matrix of the transformer as (diffusers' module, native module): 264 of them at the real size."""
    return _everywhere(config, _LINEARS, _BLOCK_LINEARS)


def vector_parameters(config: TransformerConfig) -> list[tuple[str, str]]:
    """List the weights of the transformer's norms and its modulation tables as (diffusers' name, native name): 159 of
    them at the real size."""
    return [
        (diffusers, native)
        for diffusers, native in _everywhere(config, _TENSORS, _BLOCK_TENSORS)
        if not (native.startswith("txtfusion.") and native.endswith(".mod.lin"))  # it knows of no timestep
    ]


def _everywhere(config: TransformerConfig, names: _Table, names_in_blocks: _Table) -> list[tuple[str, str]]:
    """(diffusers' name, native name) of what is outside of blocks, and of what is in each of them, or seems to be."""
    counts = (config.num_layers, config.num_layerwise_text_blocks, config.num_refiner_text_blocks)
    return [(diffusers, native) for native, diffusers in names.items()] + [
        (f"{blocks}.{block}.{diffusers}", f"{native_blocks}.{block}.{native}")
        for (native_blocks, blocks), count in zip(_BLOCKS.items(), counts, strict=True)
        for block in range(count)
        for native, diffusers in names_in_blocks.items()
    ]


def vae_from_wan(name: str, res_blocks: int = WAN_RES_BLOCKS) -> str | None:
    """Return diffusers' name of a tensor of the VAE; None if Wan's has no such tensor. res_blocks: residual blocks in
    a level of the encoder."""
    return _rename_module(_wan_modules(res_blocks)[0], name)


def vae_to_wan(name: str, res_blocks: int = WAN_RES_BLOCKS) -> str | None:
    """Return the inverse of `vae_from_wan`."""
    return _rename_module(_wan_modules(res_blocks)[1], name)


@cache
def _wan_modules(res_blocks: int) -> tuple[_Table, _Table]:
    """The modules of the VAE from Wan's names to diffusers', and back. The decoder's flat list has one residual block
    more a level than the encoder's `res_blocks`, and then an upsampler."""
    blocks = dict(_WAN_SIDE)
    for number in range(_MOST_BLOCKS):
        level, place = divmod(number, res_blocks + 2)
        blocks[f"downsamples.{number}"] = f"down_blocks.{number}"
        in_level = f"resnets.{place}" if place <= res_blocks else "upsamplers.0"
        blocks[f"upsamples.{number}"] = f"up_blocks.{level}.{in_level}"
    inside = {
        f"{wan}.{wan_inner}": f"{ours}.{inner}"
        for wan, ours in blocks.items()
        for wan_inner, inner in _WAN_INSIDE.items()
    }
    modules = dict(_WAN_TOP)
    for half in ("encoder", "decoder"):
        modules |= {f"{half}.{wan}": f"{half}.{ours}" for wan, ours in (_WAN_SIDE | inside).items()}
    return modules, _swapped(modules)


def _rename_module(modules: _Table, name: str) -> str | None:
    module, _, leaf = name.rpartition(".")
    return f"{modules[module]}.{leaf}" if module in modules else None
