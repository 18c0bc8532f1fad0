"""A `ModelConfig` as the json files of the diffusers layout, for checkpoints that this engine writes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from engine.config.components import ScheduleConfig, TextEncoderConfig, TransformerConfig, VAEConfig
from engine.config.model_config import PIPELINE_CLASS, ModelConfig

_TRANSFORMER_CLASS, _VAE_CLASS = "Krea2Transformer2DModel", "AutoencoderKLQwenImage"
_SCHEDULER_CLASS = "FlowMatchEulerDiscreteScheduler"


def config_files(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """Return the content of each file, by its path in the folder."""
    levels = len(config.vae.dim_mult)
    return {
        "model_index.json": _model_index(config),
        "scheduler/scheduler_config.json": _by_key(
            config.schedule,
            _class_name=_SCHEDULER_CLASS,
            shift=1.0,
            time_shift_type="exponential",
            use_dynamic_shifting=True,
        ),
        "transformer/config.json": _by_key(config.transformer, _class_name=_TRANSFORMER_CLASS),
        "text_encoder/config.json": _text_encoder(config.text_encoder),
        "vae/config.json": _by_key(
            config.vae,
            _class_name=_VAE_CLASS,
            attn_scales=[],
            dropout=0.0,
            input_channels=3,
            # whether a level halves time as well; an image is a single frame
            temperal_downsample=[level > 0 for level in range(levels - 1)],
        ),
    }


def _by_key(
    config: TransformerConfig | TextEncoderConfig | VAEConfig | ScheduleConfig, **constants: object
) -> dict[str, Any]:
    """A config's fields, by the keys that it is read with, and constants; sorted."""
    values = {field.metadata["key"] or field.name: getattr(config, field.name) for field in fields(config)} | constants
    return {key: [*value] if isinstance(value, tuple) else value for key, value in sorted(values.items())}


def _model_index(config: ModelConfig) -> dict[str, Any]:
    domain, sizes = config.prompt_domain, config.size_domain
    optional = {
        "default_steps": config.stated_steps,
        "default_guidance": config.stated_guidance,
        "prompt_words": None if domain is None else sorted(domain.words),
        "prompt_note": None if domain is None else domain.note,
        "good_sides": None if sizes is None else [sizes.least, sizes.most],
    }
    return {
        "_class_name": PIPELINE_CLASS,
        "is_distilled": config.is_distilled,
        "patch_size": config.patch_size,
        "scheduler": ["diffusers", _SCHEDULER_CLASS],
        "text_encoder": ["transformers", "Qwen3VLModel"],
        "text_encoder_select_layers": list(config.text_encoder_taps),
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", _TRANSFORMER_CLASS],
        "vae": ["diffusers", _VAE_CLASS],
        "default_width": config.default_width,
        "default_height": config.default_height,
        **{key: value for key, value in optional.items() if value is not None},
    }


def _text_encoder(config: TextEncoderConfig) -> dict[str, Any]:
    rope = {"rope_theta": config.rope_theta, "rope_type": "default"}
    text = _by_key(config, attention_bias=False, hidden_act="silu", model_type="qwen3_vl_text", rope_parameters=rope)
    del text["rope_theta"]
    return {
        "architectures": ["Qwen3VLModel"],
        "model_type": "qwen3_vl",
        "text_config": text,
        # No vision weights are written, and for transformers' default tower half a billion random ones would be made.
        "vision_config": {
            "deepstack_visual_indexes": [],
            "depth": 0,
            "hidden_size": 16,
            "intermediate_size": 16,
            "model_type": "qwen3_vl_vision",
            "num_heads": 1,
            "num_position_embeddings": 4,
            "out_hidden_size": config.hidden_size,
        },
    }
