"""A `ModelConfig` as the json files of the diffusers layout, for checkpoints that this engine writes."""

from __future__ import annotations

from typing import Any

from engine.config.model_config import PIPELINE_CLASS, ModelConfig

TRANSFORMER_CLASS = "Krea2Transformer2DModel"


def config_files(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """The content of each file, by its path in the folder."""
    return {
        "model_index.json": _model_index(config),
        "scheduler/scheduler_config.json": _scheduler(config),
        "transformer/config.json": _transformer(config),
        "text_encoder/config.json": _text_encoder(config),
        "vae/config.json": _vae(config),
    }


def _model_index(config: ModelConfig) -> dict[str, Any]:
    domain = config.prompt_domain
    optional = {
        "default_steps": config.stated_steps,
        "default_guidance": config.stated_guidance,
        "prompt_words": None if domain is None else sorted(domain.words),
        "prompt_note": None if domain is None else domain.note,
    }
    return {
        "_class_name": PIPELINE_CLASS,
        "is_distilled": config.is_distilled,
        "patch_size": config.patch_size,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3VLModel"],
        "text_encoder_select_layers": list(config.text_encoder_taps),
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", TRANSFORMER_CLASS],
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
        "default_width": config.default_width,
        "default_height": config.default_height,
        **{key: value for key, value in optional.items() if value is not None},
    }


def _scheduler(config: ModelConfig) -> dict[str, Any]:
    schedule = config.schedule
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "base_image_seq_len": schedule.base_image_seq_len,
        "base_shift": schedule.base_shift,
        "max_image_seq_len": schedule.max_image_seq_len,
        "max_shift": schedule.max_shift,
        "num_train_timesteps": schedule.num_train_timesteps,
        "shift": 1.0,
        "time_shift_type": "exponential",
        "use_dynamic_shifting": True,
    }


def _transformer(config: ModelConfig) -> dict[str, Any]:
    dit = config.transformer
    return {
        "_class_name": TRANSFORMER_CLASS,
        "attention_head_dim": dit.head_dim,
        "axes_dims_rope": list(dit.axes_dims_rope),
        "in_channels": dit.in_channels,
        "intermediate_size": dit.intermediate_size,
        "norm_eps": dit.norm_eps,
        "num_attention_heads": dit.num_heads,
        "num_key_value_heads": dit.num_kv_heads,
        "num_layers": dit.num_layers,
        "num_layerwise_text_blocks": dit.num_layerwise_text_blocks,
        "num_refiner_text_blocks": dit.num_refiner_text_blocks,
        "num_text_layers": dit.num_text_layers,
        "rope_theta": dit.rope_theta,
        "text_hidden_dim": dit.text_hidden_size,
        "text_intermediate_size": dit.text_intermediate_size,
        "text_num_attention_heads": dit.text_num_heads,
        "text_num_key_value_heads": dit.text_num_kv_heads,
        "timestep_embed_dim": dit.timestep_embed_dim,
    }


def _text_encoder(config: ModelConfig) -> dict[str, Any]:
    text = config.text_encoder
    return {
        "architectures": ["Qwen3VLModel"],
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "head_dim": text.head_dim,
            "hidden_act": "silu",
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "model_type": "qwen3_vl_text",
            "num_attention_heads": text.num_heads,
            "num_hidden_layers": text.num_layers,
            "num_key_value_heads": text.num_kv_heads,
            "rms_norm_eps": text.norm_eps,
            "rope_parameters": {"rope_theta": text.rope_theta, "rope_type": "default"},
            "vocab_size": text.vocab_size,
        },
        # No tower: what is written has no vision, and the default would be half a billion random numbers.
        "vision_config": {
            "deepstack_visual_indexes": [],
            "depth": 0,
            "hidden_size": 16,
            "intermediate_size": 16,
            "model_type": "qwen3_vl_vision",
            "num_heads": 1,
            "num_position_embeddings": 4,
            "out_hidden_size": text.hidden_size,
        },
    }


def _vae(config: ModelConfig) -> dict[str, Any]:
    vae = config.vae
    return {
        "_class_name": "AutoencoderKLQwenImage",
        "attn_scales": [],
        "base_dim": vae.base_dim,
        "dim_mult": list(vae.dim_mult),
        "dropout": 0.0,
        "input_channels": 3,
        "latents_mean": list(vae.latents_mean),
        "latents_std": list(vae.latents_std),
        "num_res_blocks": vae.num_res_blocks,
        # which of the levels halve time as well, of which one image sees nothing
        "temperal_downsample": [level > 0 for level in range(len(vae.dim_mult) - 1)],
        "z_dim": vae.z_dim,
    }
