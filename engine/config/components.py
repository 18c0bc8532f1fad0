"""What each component of a checkpoint is: sizes and constants, read from its config.json and checked.

Imports no torch: the front-end and `krea2 info` need these numbers without waiting for it. Every size of the model
comes from here; none is a constant elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.config.json_fields import JsonFields

# No real model comes near it; a config beyond it is damaged, and would otherwise ask for absurd memory.
_MOST_LAYERS = 1024
_LARGEST_SHIFT = 10.0  # exp of it scales the noise schedule
_MOST_IMAGE_TOKENS = 1 << 16  # twice those of the largest image


@dataclass(frozen=True)
class TransformerConfig:
    """`transformer/config.json`: the DiT and its text fusion."""

    in_channels: int
    num_layers: int
    head_dim: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    timestep_embed_dim: int
    text_hidden_size: int
    num_text_layers: int
    text_num_heads: int
    text_num_kv_heads: int
    text_intermediate_size: int
    num_layerwise_text_blocks: int
    num_refiner_text_blocks: int
    axes_dims_rope: tuple[int, int, int]
    rope_theta: float
    norm_eps: float

    @property
    def hidden_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def text_head_dim(self) -> int:
        return self.text_hidden_size // self.text_num_heads

    def undivided_heads(self, ranks: int) -> list[tuple[str, int]]:
        """Which of the blocks' heads so many ranks do not divide, by their names in the file, and how many they are."""
        heads = {"num_attention_heads": self.num_heads, "num_key_value_heads": self.num_kv_heads}
        return [(name, count) for name, count in heads.items() if count % ranks]


@dataclass(frozen=True)
class TextEncoderConfig:
    """`text_encoder/config.json`: the language model of Qwen3-VL."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    rope_theta: float


@dataclass(frozen=True)
class VAEConfig:
    """`vae/config.json`: the Qwen-Image VAE."""

    base_dim: int
    z_dim: int
    dim_mult: tuple[int, ...]
    num_res_blocks: int
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]

    @property
    def scale_factor(self) -> int:
        """Image pixels along one side of a latent pixel."""
        return 2 ** (len(self.dim_mult) - 1)


@dataclass(frozen=True)
class ScheduleConfig:
    """`scheduler/scheduler_config.json`: the resolution-dependent shift `mu`, linear in the image tokens."""

    base_image_seq_len: int
    max_image_seq_len: int
    base_shift: float
    max_shift: float
    num_train_timesteps: int


def read_transformer(config: JsonFields) -> TransformerConfig:
    config.expect("_class_name", "Krea2Transformer2DModel")
    result = TransformerConfig(
        in_channels=config.integer("in_channels", default=64),
        num_layers=config.integer("num_layers", default=28, most=_MOST_LAYERS),
        head_dim=config.integer("attention_head_dim", default=128, multiple_of=2),
        num_heads=config.integer("num_attention_heads", default=48),
        num_kv_heads=config.integer("num_key_value_heads", default=12),
        intermediate_size=config.integer("intermediate_size", default=16384),
        timestep_embed_dim=config.integer("timestep_embed_dim", default=256, multiple_of=2),
        text_hidden_size=config.integer("text_hidden_dim", default=2560),
        num_text_layers=config.integer("num_text_layers", default=12, most=_MOST_LAYERS),
        text_num_heads=config.integer("text_num_attention_heads", default=20),
        text_num_kv_heads=config.integer("text_num_key_value_heads", default=20),
        text_intermediate_size=config.integer("text_intermediate_size", default=6912),
        num_layerwise_text_blocks=config.integer("num_layerwise_text_blocks", default=2, least=0, most=_MOST_LAYERS),
        num_refiner_text_blocks=config.integer("num_refiner_text_blocks", default=2, least=0, most=_MOST_LAYERS),
        axes_dims_rope=config.three_integers("axes_dims_rope", default=(32, 48, 48)),
        rope_theta=config.number("rope_theta", default=1000.0, above=0.0),
        norm_eps=config.number("norm_eps", default=1e-5, above=0.0),
    )
    if sum(result.axes_dims_rope) != result.head_dim or any(axis % 2 for axis in result.axes_dims_rope):
        raise config.error(
            "axes_dims_rope", f"even numbers that add up to head_dim {result.head_dim}", result.axes_dims_rope
        )
    config.expect_divisible("num_attention_heads", result.num_heads, "num_key_value_heads", result.num_kv_heads)
    config.expect_divisible(
        "text_hidden_dim", result.text_hidden_size, "text_num_attention_heads", result.text_num_heads
    )
    config.expect_divisible(
        "text_num_attention_heads", result.text_num_heads, "text_num_key_value_heads", result.text_num_kv_heads
    )
    return result


def read_text_encoder(config: JsonFields) -> TextEncoderConfig:
    text = config.section("text_config", default=config)
    text.expect("model_type", "qwen3_vl_text")
    text.expect("hidden_act", "silu", default="silu")
    text.expect("attention_bias", False, default=False)
    # transformers 5 writes rope_parameters; version 4 wrote rope_theta beside rope_scaling.
    rope = text.section("rope_parameters", default=text)
    scaling = text.section("rope_scaling", default=rope)
    scaling.expect("rope_type", "default", default="default")
    hidden_size = text.integer("hidden_size")
    num_heads = text.integer("num_attention_heads")
    result = TextEncoderConfig(
        hidden_size=hidden_size,
        intermediate_size=text.integer("intermediate_size"),
        num_layers=text.integer("num_hidden_layers", most=_MOST_LAYERS),
        num_heads=num_heads,
        num_kv_heads=text.integer("num_key_value_heads"),
        head_dim=text.integer("head_dim", default=hidden_size // num_heads or 1, multiple_of=2),
        vocab_size=text.integer("vocab_size", most=1 << 24),
        norm_eps=text.number("rms_norm_eps", default=1e-6, above=0.0),
        rope_theta=rope.number("rope_theta", above=0.0),
    )
    text.expect_divisible("num_attention_heads", result.num_heads, "num_key_value_heads", result.num_kv_heads)
    return result


def read_vae(config: JsonFields) -> VAEConfig:
    config.expect("_class_name", "AutoencoderKLQwenImage")
    config.expect("input_channels", 3, default=3)
    z_dim = config.integer("z_dim", default=16)
    dim_mult = config.integers("dim_mult", default=(1, 2, 4, 4), least=1)
    if not 2 <= len(dim_mult) <= 8:
        raise config.error("dim_mult", "2 to 8 numbers", dim_mult)
    temporal = config.booleans("temperal_downsample", default=(False, True, True))  # spelt so in the files
    if len(temporal) != len(dim_mult) - 1:
        raise config.error("temperal_downsample", f"{len(dim_mult) - 1} values, one fewer than dim_mult", temporal)
    result = VAEConfig(
        base_dim=config.integer("base_dim", default=96),
        z_dim=z_dim,
        dim_mult=dim_mult,
        num_res_blocks=config.integer("num_res_blocks", default=2, most=_MOST_LAYERS),
        latents_mean=config.numbers("latents_mean", length=z_dim),
        latents_std=config.numbers("latents_std", length=z_dim),
    )
    # Each upsampling convolution halves its channels (diffusers' QwenImageResample), and the next level starts there.
    for level, multiplier in enumerate(dim_mult[1:]):
        if result.base_dim * multiplier % 2:
            raise config.error("dim_mult", f"an even number of channels at level {level + 1}", dim_mult)
    if not all(value > 0 for value in result.latents_std):
        raise config.error("latents_std", "positive numbers", result.latents_std)
    return result


def read_schedule(config: JsonFields) -> ScheduleConfig:
    config.expect("_class_name", "FlowMatchEulerDiscreteScheduler")
    config.expect("use_dynamic_shifting", True)
    config.expect("time_shift_type", "exponential", default="exponential")
    for unsupported in (
        "invert_sigmas",
        "stochastic_sampling",
        "use_beta_sigmas",
        "use_exponential_sigmas",
        "use_karras_sigmas",
    ):
        config.expect(unsupported, False, default=False)
    config.expect("shift_terminal", None, default=None)
    result = ScheduleConfig(
        base_image_seq_len=config.integer("base_image_seq_len", default=256),
        max_image_seq_len=config.integer("max_image_seq_len", default=6400),
        base_shift=config.number("base_shift", default=0.5, above=-_LARGEST_SHIFT, below=_LARGEST_SHIFT),
        max_shift=config.number("max_shift", default=1.15, above=-_LARGEST_SHIFT, below=_LARGEST_SHIFT),
        num_train_timesteps=config.integer("num_train_timesteps", default=1000),
    )
    if result.max_image_seq_len <= result.base_image_seq_len:
        raise config.error(
            "max_image_seq_len", f"more than base_image_seq_len {result.base_image_seq_len}", result.max_image_seq_len
        )
    slope = (result.max_shift - result.base_shift) / (result.max_image_seq_len - result.base_image_seq_len)
    if abs(slope) * _MOST_IMAGE_TOKENS > _LARGEST_SHIFT:
        raise config.error("max_shift", "a shift that stays small for large images", result.max_shift)
    return result
