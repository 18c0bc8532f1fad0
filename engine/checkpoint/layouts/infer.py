"""The config.json that a component lacks, from the shapes of its tensors and from constants of the published model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from engine.checkpoint.layouts.component import Component
from engine.config.json_fields import LARGEST_WIDTH
from engine.errors import CheckpointError

# What no shape tells. Of the transformer that is norm_eps and rope_theta, for which its config's defaults stand.
TEXT_ENCODER_CONSTANTS = {"rms_norm_eps": 1e-6, "rope_theta": 5_000_000.0}
VAE_CONSTANTS = {
    "latents_mean": (
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    ),
    "latents_std": (
        *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
        *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    ),
}
SCHEDULER_CONSTANTS = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
INDEX_CONSTANTS = {"_class_name": "Krea2Pipeline"}


def infer_transformer(component: Component, constants: Mapping[str, Any]) -> dict[str, Any]:
    """Infer `transformer/config.json`. constants: another transformer's config, for what shapes do not tell.

    Raises `CheckpointError` if a tensor that this needs is missing, or has a shape that no model has.
    """
    shape, count = partial(_shape, component), partial(_count, component)
    width, in_channels = shape("img_in.weight")
    (head_dim,) = shape("transformer_blocks.0.attn.norm_q.weight", rank=1)
    (text_width,) = shape("txt_in.norm.weight", rank=1)
    layerwise, refiner = (count(f"text_fusion.{kind}_blocks") for kind in ("layerwise", "refiner"))
    fusion = "text_fusion.layerwise_blocks.0" if layerwise else "text_fusion.refiner_blocks.0"
    (text_head_dim,) = shape(f"{fusion}.attn.norm_q.weight", rank=1)
    unit = head_dim // 16
    axes = (head_dim - 12 * unit, 6 * unit, 6 * unit)
    if constants.get("attention_head_dim") == head_dim:
        axes = constants.get("axes_dims_rope") or axes
    return {
        **constants,
        "_class_name": "Krea2Transformer2DModel",
        "in_channels": in_channels,
        "num_layers": count("transformer_blocks"),
        "attention_head_dim": head_dim,
        "num_attention_heads": width // head_dim,
        "num_key_value_heads": shape("transformer_blocks.0.attn.to_k.weight")[0] // head_dim,
        "intermediate_size": shape("transformer_blocks.0.ff.gate.weight")[0],
        "timestep_embed_dim": shape("time_embed.linear_1.weight")[1],
        "text_hidden_dim": text_width,
        "num_text_layers": shape("text_fusion.projector.weight")[1],
        "text_num_attention_heads": text_width // text_head_dim,
        "text_num_key_value_heads": shape(f"{fusion}.attn.to_k.weight")[0] // text_head_dim,
        "text_intermediate_size": shape(f"{fusion}.ff.gate.weight")[0],
        "num_layerwise_text_blocks": layerwise,
        "num_refiner_text_blocks": refiner,
        "axes_dims_rope": axes,
    }


def infer_text_encoder(component: Component, constants: Mapping[str, Any]) -> dict[str, Any]:
    """Infer `text_encoder/config.json`, of the language model alone. See `infer_transformer`."""
    shape, count = partial(_shape, component), partial(_count, component)
    vocab_size, width = shape("embed_tokens.weight")
    (head_dim,) = shape("layers.0.self_attn.q_norm.weight", rank=1)
    language = constants.get("text_config")
    layers = count("layers")
    if "norm.weight" not in component.tensors:
        layers += 1  # files cut above the last tap end before the model does, and its last norm is not due there
    return {
        **TEXT_ENCODER_CONSTANTS,
        **(language if isinstance(language, dict) else constants),
        "model_type": "qwen3_vl_text",
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": shape("layers.0.mlp.gate_proj.weight")[0],
        "num_hidden_layers": layers,
        "num_attention_heads": shape("layers.0.self_attn.q_proj.weight")[0] // head_dim,
        "num_key_value_heads": shape("layers.0.self_attn.k_proj.weight")[0] // head_dim,
        "head_dim": head_dim,
    }


def infer_vae(component: Component, constants: Mapping[str, Any]) -> dict[str, Any]:
    """Infer `vae/config.json`. See `infer_transformer`."""
    shape, count = partial(_shape, component), partial(_count, component)
    levels = count("decoder.up_blocks")
    first_convolutions = [f"decoder.up_blocks.{level}.resnets.0.conv1.weight" for level in range(max(levels, 1))]
    widths = [shape(name, rank=5)[0] for name in reversed(first_convolutions)]
    return {
        **VAE_CONSTANTS,
        **constants,
        "_class_name": "AutoencoderKLQwenImage",
        "z_dim": shape("post_quant_conv.weight", rank=5)[0],
        "base_dim": widths[0],
        "dim_mult": [width // widths[0] for width in widths],
        "num_res_blocks": count("decoder.up_blocks.0.resnets") - 1,
        "temperal_downsample": [
            f"decoder.up_blocks.{level}.upsamplers.0.time_conv.weight" in component.tensors
            for level in reversed(range(levels - 1))
        ],
    }


def _shape(component: Component, name: str, rank: int = 2) -> tuple[int, ...]:
    """A tensor's shape, of `rank` dimensions, each between 1 and what the largest real models have."""
    tensor = component.tensors.get(name)
    if tensor is None:
        raise CheckpointError.of(component.file.path, "tensor is missing", name=component.in_file(name))
    if len(tensor.shape) != rank or not all(1 <= length <= LARGEST_WIDTH for length in tensor.shape):
        problem, expected = "has a shape that no such tensor has", f"{rank} dimensions"
        raise CheckpointError.of(tensor.file, problem, name=tensor.name, expected=expected, found=tensor.shape)
    return tensor.shape


def _count(component: Component, blocks: str) -> int:
    """How many different numbers follow `blocks` in the names. A gap shows as a missing tensor later."""
    number = re.compile(rf"{re.escape(blocks)}\.([0-9]+)\.")
    return len({found[1] for name in component.tensors if (found := number.match(name))})
