"""Random checkpoints of Krea 2's architecture in the diffusers layout, written by diffusers and transformers.

They are what the engine is compared on: any size, complete, loadable by `Krea2Pipeline.from_pretrained`. Every
parameter is drawn from a normal distribution: default initial values (zero tables, norms of one) would hide a
modulation that is never added or a norm that is never applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Krea2Pipeline,
    Krea2Transformer2DModel,
)
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLModel

from bench.engines.real_size import distribution
from engine.config.chat_template import PREFIX, PREFIX_TOKENS, SUFFIX, SUFFIX_TOKENS

CAPTIONS = (
    "a red circle on a blue background",
    "a small yellow star left of a purple heart",
    "a fox in the snow, oil on canvas",
    "two large green squares above a white ring",
)
_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_PRETOKENIZE = (  # Qwen's
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class CheckpointSpec:
    """Sizes of a random checkpoint. The defaults are the smallest that still exercise every part at TP 4. One field for
    each size that a component's config.json has, so that a test changes one alone."""

    seed: int = 0
    is_distilled: bool = True
    # DiT
    layers: int = 3
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 16
    axes: tuple[int, int, int] = (4, 6, 6)
    intermediate: int = 256
    timestep_dim: int = 64
    # text fusion and text encoder, both of this width
    text_width: int = 64
    fusion_heads: int = 4
    fusion_kv_heads: int = 4
    fusion_intermediate: int = 128
    fusion_blocks: int = 2
    encoder_layers: int = 6
    encoder_heads: int = 4
    encoder_kv_heads: int = 4
    encoder_head_dim: int = 16
    encoder_intermediate: int = 128
    mrope_section: tuple[int, int, int] = (4, 2, 2)
    taps: tuple[int, ...] = (1, 3, 5)
    # VAE
    vae_base: int = 8
    vae_mult: tuple[int, ...] = (1, 1, 1, 1)
    vae_res_blocks: int = 1
    vae_contrast: float = 0.3
    # files; norms, biases and tables are float32 whatever the dtype, as in the official ones
    dtype: torch.dtype = torch.float32
    max_shard_size: str = "5GB"


def build_checkpoint(folder: Path, spec: CheckpointSpec) -> Path:
    """Write the checkpoint of `spec` to `folder` and return it. The same spec always gives the same weights."""
    generator = torch.Generator().manual_seed(spec.seed)
    pipeline = Krea2Pipeline(
        scheduler=_scheduler(),
        vae=build_vae(spec, generator),
        text_encoder=_text_encoder(spec, generator),
        tokenizer=build_tokenizer(),
        transformer=_transformer(spec, generator),
        text_encoder_select_layers=spec.taps,
        is_distilled=spec.is_distilled,
    )
    for component in (pipeline.transformer, pipeline.text_encoder, pipeline.vae):
        for name, parameter in component.named_parameters():
            if parameter.ndim >= 2 and not name.endswith("scale_shift_table"):
                parameter.data = parameter.data.to(spec.dtype)
    pipeline.save_pretrained(folder, max_shard_size=spec.max_shard_size)
    return folder


def build_tokenizer() -> Qwen2Tokenizer:
    """A byte-level BPE tokenizer of Qwen's form, trained until every word of the template is one token.

    Qwen's pre-tokeniser cuts the template's prefix into exactly 34 pieces and its suffix into 5, so this makes both
    as long as the real tokenizer does.
    """
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRETOKENIZE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # never reached: training ends when every word of the texts is one token
        min_frequency=1,
        show_progress=False,
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    texts = [PREFIX, SUFFIX, *CAPTIONS]
    for token in _SPECIAL_TOKENS:
        texts = [piece for text in texts for piece in text.split(token) if piece]
    trained.train_from_iterator(texts, trainer)
    tokenizer = Qwen2Tokenizer(tokenizer_object=trained, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    prefix, suffix = (len(tokenizer(text).input_ids) for text in (PREFIX, SUFFIX))
    assert (prefix, suffix) == (PREFIX_TOKENS, SUFFIX_TOKENS), f"template is {prefix} + {suffix} tokens"
    return tokenizer


def build_vae(spec: CheckpointSpec, generator: torch.Generator) -> AutoencoderKLQwenImage:
    """A random VAE. At the default contrast its pixels fill [-1, 1] and are hardly ever clipped."""
    vae = AutoencoderKLQwenImage(
        base_dim=spec.vae_base,
        dim_mult=list(spec.vae_mult),
        num_res_blocks=spec.vae_res_blocks,
        temperal_downsample=[False, True, True][: len(spec.vae_mult) - 1],
        latents_mean=torch.randn(16, generator=generator).mul(0.5).tolist(),
        latents_std=torch.rand(16, generator=generator).add(0.5).tolist(),
    )
    randomise(vae, generator)
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(spec.vae_contrast)
    return vae.eval()


def randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw every parameter so that activations stay near 1 and no parameter may be forgotten unnoticed."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            mean, std = distribution(name, tuple(parameter.shape))
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + mean)


def _scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=6400
    )


def _transformer(spec: CheckpointSpec, generator: torch.Generator) -> Krea2Transformer2DModel:
    transformer = Krea2Transformer2DModel(
        num_layers=spec.layers,
        attention_head_dim=spec.head_dim,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        intermediate_size=spec.intermediate,
        timestep_embed_dim=spec.timestep_dim,
        text_hidden_dim=spec.text_width,
        num_text_layers=len(spec.taps),
        text_num_attention_heads=spec.fusion_heads,
        text_num_key_value_heads=spec.fusion_kv_heads,
        text_intermediate_size=spec.fusion_intermediate,
        num_layerwise_text_blocks=spec.fusion_blocks,
        num_refiner_text_blocks=spec.fusion_blocks,
        axes_dims_rope=spec.axes,
    )
    randomise(transformer, generator)
    return transformer.eval()


def _text_encoder(spec: CheckpointSpec, generator: torch.Generator) -> Qwen3VLModel:
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(build_tokenizer()),
            "hidden_size": spec.text_width,
            "intermediate_size": spec.encoder_intermediate,
            "num_hidden_layers": spec.encoder_layers,
            "num_attention_heads": spec.encoder_heads,
            "num_key_value_heads": spec.encoder_kv_heads,
            "head_dim": spec.encoder_head_dim,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": list(spec.mrope_section),
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": spec.text_width,
            "patch_size": 4,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
    )
    text_encoder = Qwen3VLModel(config)
    randomise(text_encoder, generator)
    return text_encoder.eval()
