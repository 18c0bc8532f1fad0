"""Krea 2 at its real size without its checkpoint: the config, random weights drawn on the device, random prompts.

What these weights compute is no picture, but they take the time and the memory that the real ones take. Every tensor
depends on a seed and its own name alone, so ranks that hold shards of it, and a peer, get the same values.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from engine.checkpoint.files.stored import Bounds, StoredTensor
from engine.checkpoint.layouts.tensors import Source, component_with_files, sources_by_component
from engine.config.chat_template import PREFIX_TOKENS, SUFFIX_TOKENS
from engine.config.components import ScheduleConfig, TextEncoderConfig, TransformerConfig, VAEConfig
from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.model_config import DEFAULT_TAPS, ModelConfig

PROMPT_TOKENS = 60
_PREFIX_SEED, _SUFFIX_SEED = 1 << 40, (1 << 40) + 1  # all prompts have these two in common

KREA2 = ModelConfig(
    transformer=TransformerConfig(
        in_channels=64,
        num_layers=28,
        head_dim=128,
        num_heads=48,
        num_kv_heads=12,
        intermediate_size=16384,
        timestep_embed_dim=256,
        text_hidden_size=2560,
        num_text_layers=12,
        text_num_heads=20,
        text_num_kv_heads=20,
        text_intermediate_size=6912,
        num_layerwise_text_blocks=2,
        num_refiner_text_blocks=2,
        axes_dims_rope=(32, 48, 48),
        rope_theta=1000.0,
        norm_eps=1e-5,
    ),
    text_encoder=TextEncoderConfig(
        hidden_size=2560,
        intermediate_size=9728,
        num_layers=36,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=151936,
        norm_eps=1e-6,
        rope_theta=5e6,
    ),
    vae=VAEConfig(
        base_dim=96,
        z_dim=16,
        dim_mult=(1, 2, 4, 4),
        num_res_blocks=2,
        # plausible ones, not the checkpoint's: random weights make no picture of either
        latents_mean=tuple(0.1 * (channel - 7.5) for channel in range(16)),
        latents_std=tuple(1.2 + 0.1 * channel for channel in range(16)),
    ),
    schedule=ScheduleConfig(
        base_image_seq_len=256, max_image_seq_len=6400, base_shift=0.5, max_shift=1.15, num_train_timesteps=1000
    ),
    text_encoder_taps=DEFAULT_TAPS,
    patch_size=2,
    is_distilled=True,
    default_width=1024,
    default_height=1024,
)

# The smallest that exercises every part at TP 4 and at fp8's multiples of 16: for tests of the benchmarks.
TINY = replace(
    KREA2,
    transformer=replace(
        KREA2.transformer,
        num_layers=3,
        head_dim=16,
        num_heads=8,
        num_kv_heads=4,
        intermediate_size=256,
        timestep_embed_dim=64,
        text_hidden_size=64,
        num_text_layers=3,
        text_num_heads=4,
        text_num_kv_heads=4,
        text_intermediate_size=128,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    ),
    text_encoder=replace(
        KREA2.text_encoder,
        hidden_size=64,
        intermediate_size=128,
        num_layers=6,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        vocab_size=512,
    ),
    vae=replace(KREA2.vae, base_dim=8, dim_mult=(1, 1, 1, 1), num_res_blocks=1),
    text_encoder_taps=(1, 3, 5),
    default_width=128,
    default_height=128,
)

SIZES: dict[str, Callable[[], ModelConfig]] = {
    "tiny": lambda: TINY,
    "demo": lambda: ModelConfig.from_folder(DEMO_CHECKPOINT),
    "real": lambda: KREA2,
}


def model_of_size(size: str, layers: int | None = None) -> ModelConfig:
    """One of `SIZES`, with another number of DiT blocks if `layers` says so."""
    config = SIZES[size]()
    return config if layers is None else replace(config, transformer=replace(config.transformer, num_layers=layers))


def random_prompt(config: ModelConfig, seed: int, tokens: int = PROMPT_TOKENS) -> tuple[int, ...]:
    """Draw the ids of a prompt of `tokens` tokens between a prefix and a suffix. Another seed gives another prompt."""
    return (
        *_random_ids(config, _PREFIX_SEED, PREFIX_TOKENS),
        *_random_ids(config, seed, tokens),
        *_random_ids(config, _SUFFIX_SEED, SUFFIX_TOKENS),
    )


def _random_ids(config: ModelConfig, seed: int, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.text_encoder.vocab_size, (count,), generator=generator).tolist()


class RandomWeights:
    """The `Weights` of a model that nobody trained, drawn on `device` when they are asked for."""

    def __init__(self, config: ModelConfig, device: torch.device, seed: int = 0) -> None:
        self.config, self.device, self.seed = config, device, seed
        self.sources = sources_by_component(config)

    def draw(self, component: str, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A whole tensor by its name in the checkpoint, float32 on the device."""
        digest = hashlib.sha256(f"{self.seed}/{component_with_files(component)}/{name}".encode()).digest()
        generator = torch.Generator(self.device).manual_seed(int.from_bytes(digest[:7], "big"))
        mean, std = distribution(name, shape)
        return torch.randn(shape, generator=generator, device=self.device).mul_(std).add_(mean)

    def stored(self, component: str, source: Source) -> StoredTensor:
        """The tensor, drawn whenever it is read."""
        return _DrawnTensor(self, component, source)

    def close(self) -> None:
        """Nothing is held."""


class _DrawnTensor(StoredTensor):
    format = "random"

    def __init__(self, weights: RandomWeights, component: str, source: Source) -> None:
        self.file, self.name, self.shape = Path("random weights", component), source.name, source.shape
        self._weights, self._component = weights, component

    def size(self, bounds: Bounds) -> int:
        return 0  # of nothing

    def read(self, bounds: Bounds) -> torch.Tensor:
        return self._weights.draw(self._component, self.name, self.shape)[bounds]


def distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation that a tensor of a checkpoint is drawn with: activations stay near 1, and no tensor
    is so regular that leaving it out would change nothing."""
    last = name.rsplit(".", 1)[-1]
    if name.endswith(("norm_q.weight", "norm_k.weight")):
        return 0.6, 0.3  # zero-centred; above 0 for attention that is not nearly uniform
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return 1.6, 0.3
    if last == "gamma" or name.endswith(("layernorm.weight", "language_model.norm.weight")):
        return 1.0, 0.3
    if last == "scale_shift_table":
        return 0.0, 0.5
    if len(shape) == 1:  # biases and zero-centred norms
        return 0.0, 0.3
    if name.endswith(("embed_tokens.weight", "pos_embed.weight")):
        return 0.0, 1.0
    fan_in = math.prod(shape[1:])
    if len(shape) == 5 and shape[2] == 3:
        fan_in //= 3  # one image is one frame: only one temporal slice of the kernel meets anything but padding
    return 0.0, fan_in**-0.5
