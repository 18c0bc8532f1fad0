"""Reads and checks what each component of a checkpoint is: the sizes and constants in its config.json.

Imports no torch: the front-end and `krea2 info` need these numbers without waiting for it. Every size of the model
comes from here; none is a constant elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from engine.config.json_fields import JsonFields, json_field

# No real model comes near these; a config beyond them is damaged, and would otherwise ask for absurd memory.
_MOST_LAYERS = 1024
_LARGEST_SHIFT = 10.0  # exp of it scales the noise schedule
_MOST_IMAGE_TOKENS = 1 << 16  # twice those of the largest image

# The VAE's encoder as a component of its own, "vae" being its decoder: both are in the same files.
VAE_ENCODER = "vae_encoder"

_integer = partial(json_field, JsonFields.integer)
_layers = partial(json_field, JsonFields.integer, most=_MOST_LAYERS)
_positive = partial(json_field, JsonFields.number, above=0.0)
_shift = partial(json_field, JsonFields.number, above=-_LARGEST_SHIFT, below=_LARGEST_SHIFT)


@dataclass(frozen=True)
class TransformerConfig:
    """The DiT and its text fusion: a field for each key of `transformer/config.json`, so 17. Sizes are those of linear
    layers and heads; the three axes of the rotary embedding are a head's dims for frame, row and column."""

    in_channels: int = _integer(default=64)
    num_layers: int = _layers(default=28)
    head_dim: int = _integer("attention_head_dim", default=128, multiple_of=2)
    num_heads: int = _integer("num_attention_heads", default=48)
    num_kv_heads: int = _integer("num_key_value_heads", default=12)
    intermediate_size: int = _integer(default=16384)
    timestep_embed_dim: int = _integer(default=256, multiple_of=2)
    text_hidden_size: int = _integer("text_hidden_dim", default=2560)
    num_text_layers: int = _layers(default=12)
    text_num_heads: int = _integer("text_num_attention_heads", default=20)
    text_num_kv_heads: int = _integer("text_num_key_value_heads", default=20)
    text_intermediate_size: int = _integer(default=6912)
    num_layerwise_text_blocks: int = _layers(default=2, least=0)
    num_refiner_text_blocks: int = _layers(default=2, least=0)
    axes_dims_rope: tuple[int, int, int] = json_field(JsonFields.integers, default=(32, 48, 48), least=0, length=3)
    rope_theta: float = _positive(default=1000.0)
    norm_eps: float = _positive(default=1e-5)

    @property
    def hidden_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def text_head_dim(self) -> int:
        return self.text_hidden_size // self.text_num_heads

    def undivided_heads(self, ranks: int) -> list[tuple[str, int]]:
        """List the numbers of heads in the blocks that `ranks` does not divide, each after its key in the file."""
        heads = {"num_attention_heads": self.num_heads, "num_key_value_heads": self.num_kv_heads}
        return [(name, count) for name, count in heads.items() if count % ranks]


@dataclass(frozen=True)
class TextEncoderConfig:
    """The language model of Qwen3-VL: fields for keys of `text_encoder/config.json`."""

    hidden_size: int = _integer()
    intermediate_size: int = _integer()
    num_layers: int = _layers("num_hidden_layers")
    num_heads: int = _integer("num_attention_heads")
    num_kv_heads: int = _integer("num_key_value_heads")
    head_dim: int = _integer(multiple_of=2)
    vocab_size: int = _integer(most=1 << 24)
    norm_eps: float = _positive("rms_norm_eps", default=1e-6)
    rope_theta: float = _positive()


@dataclass(frozen=True)
class VAEConfig:
    """The Qwen-Image VAE: fields for keys of `vae/config.json`. latents_mean, latents_std: of each of z_dim channels.
    dim_mult: channels at each level, in units of base_dim."""

    base_dim: int = _integer(default=96)
    z_dim: int = _integer(default=16)
    dim_mult: tuple[int, ...] = json_field(JsonFields.integers, default=(1, 2, 4, 4), least=1)
    num_res_blocks: int = _layers(default=2)
    latents_mean: tuple[float, ...] = json_field(JsonFields.numbers)
    latents_std: tuple[float, ...] = json_field(JsonFields.numbers)

    @property
    def scale_factor(self) -> int:
        """Image pixels along one side of a latent pixel."""
        return 2 ** (len(self.dim_mult) - 1)


@dataclass(frozen=True)
class ScheduleConfig:
    """The shift `mu` of the noise schedule, linear in the image tokens between two points: fields for keys of
    `scheduler/scheduler_config.json`."""

    base_image_seq_len: int = _integer(default=256)
    max_image_seq_len: int = _integer(default=6400)
    base_shift: float = _shift(default=0.5)
    max_shift: float = _shift(default=1.15)
    num_train_timesteps: int = _integer(default=1000)


def read_transformer(config: JsonFields) -> TransformerConfig:
    """Read `transformer/config.json`. Raises `CheckpointError` for what does not fit, as all here do."""
    config.expect("_class_name", "Krea2Transformer2DModel")
    result = config.build(TransformerConfig)
    if sum(result.axes_dims_rope) != result.head_dim or any(axis % 2 for axis in result.axes_dims_rope):
        raise config.error(
            "axes_dims_rope", f"even numbers that add up to head_dim {result.head_dim}", result.axes_dims_rope
        )
    text_heads = result.text_num_heads
    config.expect_divisible("num_attention_heads", result.num_heads, "num_key_value_heads", result.num_kv_heads)
    config.expect_divisible("text_hidden_dim", result.text_hidden_size, "text_num_attention_heads", text_heads)
    config.expect_divisible(
        "text_num_attention_heads", text_heads, "text_num_key_value_heads", result.text_num_kv_heads
    )
    return result


def read_text_encoder(config: JsonFields) -> TextEncoderConfig:
    """Read `text_encoder/config.json`, of the whole Qwen3-VL or of its language model alone."""
    text = config.section("text_config", default=config)
    text.expect("model_type", "qwen3_vl_text")
    text.expect("hidden_act", "silu", default="silu")
    text.expect("attention_bias", False, default=False)
    # transformers 5 writes rope_parameters; version 4 wrote rope_theta beside rope_scaling.
    rope = text.section("rope_parameters", default=text)
    scaling = text.section("rope_scaling", default=rope)
    scaling.expect("rope_type", "default", default="default")
    head_dim = text.integer(
        "head_dim", text.integer("hidden_size") // text.integer("num_attention_heads") or 1, multiple_of=2
    )
    result = text.build(TextEncoderConfig, head_dim=head_dim, rope_theta=rope.number("rope_theta", above=0.0))
    text.expect_divisible("num_attention_heads", result.num_heads, "num_key_value_heads", result.num_kv_heads)
    return result


def read_vae(config: JsonFields) -> VAEConfig:
    """Read `vae/config.json`."""
    config.expect("_class_name", "AutoencoderKLQwenImage")
    config.expect("input_channels", 3, default=3)
    z_dim = config.integer("z_dim", default=16)
    mean, std = (config.numbers(key, length=z_dim) for key in ("latents_mean", "latents_std"))
    result = config.build(VAEConfig, z_dim=z_dim, latents_mean=mean, latents_std=std)
    dim_mult = result.dim_mult
    if not 2 <= len(dim_mult) <= 8:
        raise config.error("dim_mult", "2 to 8 numbers", dim_mult)
    temporal = config.booleans("temperal_downsample", default=(False, True, True))  # spelt so in the files
    if len(temporal) != len(dim_mult) - 1:
        raise config.error("temperal_downsample", f"{len(dim_mult) - 1} values, one fewer than dim_mult", temporal)
    # Each upsampling convolution halves its channels (diffusers' QwenImageResample), and the next level starts there.
    for level, multiplier in enumerate(dim_mult[1:], start=1):
        if result.base_dim * multiplier % 2:
            raise config.error("dim_mult", f"an even number of channels at level {level}", dim_mult)
    if not all(value > 0 for value in std):
        raise config.error("latents_std", "positive numbers", std)
    return result


def read_schedule(config: JsonFields) -> ScheduleConfig:
    """Read `scheduler/scheduler_config.json`, which may ask for nothing but what the sampler does."""
    config.expect("_class_name", "FlowMatchEulerDiscreteScheduler")
    config.expect("use_dynamic_shifting", True)
    config.expect("time_shift_type", "exponential", default="exponential")
    for kind in ("use_beta", "use_exponential", "use_karras", "invert"):
        config.expect(f"{kind}_sigmas", False, default=False)
    config.expect("stochastic_sampling", False, default=False)
    config.expect("shift_terminal", None, default=None)
    result = config.build(ScheduleConfig)
    if result.max_image_seq_len <= result.base_image_seq_len:
        raise config.error(
            "max_image_seq_len", f"more than base_image_seq_len {result.base_image_seq_len}", result.max_image_seq_len
        )
    slope = (result.max_shift - result.base_shift) / (result.max_image_seq_len - result.base_image_seq_len)
    if abs(slope) * _MOST_IMAGE_TOKENS > _LARGEST_SHIFT:
        raise config.error("max_shift", "a shift that stays small for large images", result.max_shift)
    return result
