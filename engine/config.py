"""What a checkpoint is (`ModelConfig`, read from its json files) and how to run it (`EngineConfig`).

Imports no torch: the front-end and `krea2 info` need these numbers without waiting for it. Every size of the model
comes from here; none is a constant elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.errors import ArgumentError, CheckpointError
from engine.json_fields import JsonFields

DEMO_CHECKPOINT = Path(__file__).parent / "demo"
TENSOR_PARALLEL_DEGREES = (1, 2, 4)
DEVICES = ("auto", "cuda", "cpu")
DTYPES = ("auto", "bfloat16", "float32")
VARIANTS = ("raw", "turbo")
QUANTIZATIONS = ("auto", "none", "fp8", "int8")
ATTENTIONS = ("auto", "cudnn", "flash", "fa3", "fa4", "triton", "torch")

PIPELINE_CLASS = "Krea2Pipeline"
DEFAULT_TAPS = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)

# No real model comes near it; a config beyond it is damaged, and would otherwise ask for absurd memory.
_MOST_LAYERS = 1024
_LARGEST_SHIFT = 10.0  # exp of it scales the noise schedule
_MOST_IMAGE_TOKENS = 1 << 16  # twice those of the largest image


@dataclass(frozen=True)
class EngineConfig:
    """How to run the engine: which checkpoint, on what, over how many ranks. Raises `ArgumentError`."""

    model: str = "demo"
    tp: int = 1
    device: str = "auto"
    dtype: str = "auto"
    variant: str | None = None
    share_gpu: bool = False
    quantization: str = "auto"
    attention: str = "auto"
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise ArgumentError.of("model", "a checkpoint folder's path, or demo", self.model)
        for name in ("share_gpu", "cuda_graphs"):
            if not isinstance(getattr(self, name), bool):
                raise ArgumentError.of(name, "True or False", getattr(self, name))
        if self.device not in DEVICES:
            raise ArgumentError.of("device", f"one of {', '.join(DEVICES)}", self.device)
        if self.dtype not in DTYPES:
            raise ArgumentError.of("dtype", f"one of {', '.join(DTYPES)}", self.dtype)
        if self.quantization not in QUANTIZATIONS:
            raise ArgumentError.of("quantization", f"one of {', '.join(QUANTIZATIONS)}", self.quantization)
        if self.attention not in ATTENTIONS:
            raise ArgumentError.of("attention", f"one of {', '.join(ATTENTIONS)}", self.attention)
        if self.variant is not None and self.variant not in VARIANTS:
            raise ArgumentError.of("variant", f"one of {', '.join(VARIANTS)}", self.variant)
        if isinstance(self.tp, bool) or self.tp not in TENSOR_PARALLEL_DEGREES:
            allowed = ", ".join(map(str, TENSOR_PARALLEL_DEGREES))
            raise ArgumentError.of("tp", f"one of {allowed}", self.tp)

    def dtype_on(self, device_type: str) -> str:
        """bfloat16 or float32: what `dtype` stands for on "cuda" or "cpu"."""
        if self.dtype == "auto":
            return "bfloat16" if device_type == "cuda" else "float32"
        return self.dtype

    def checkpoint_folder(self) -> Path:
        return DEMO_CHECKPOINT if self.model == "demo" else Path(self.model)


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


@dataclass(frozen=True)
class ModelConfig:
    """A whole checkpoint in the diffusers layout, checked for consistency. Paths are not kept; see `checkpoint`."""

    transformer: TransformerConfig
    text_encoder: TextEncoderConfig
    vae: VAEConfig
    schedule: ScheduleConfig
    text_encoder_taps: tuple[int, ...]
    patch_size: int
    is_distilled: bool
    variant_is_assumed: bool
    default_width: int
    default_height: int

    @property
    def default_steps(self) -> int:
        return 8 if self.is_distilled else 52

    @property
    def default_guidance(self) -> float:
        return 0.0 if self.is_distilled else 3.5

    @property
    def size_multiple(self) -> int:
        """Image pixels along one side of a token: sizes are rounded up to a multiple of it."""
        return self.vae.scale_factor * self.patch_size

    @property
    def text_layers(self) -> int:
        """Layers of the text encoder that are needed: none above the last tap."""
        return max(self.text_encoder_taps)

    def image_tokens(self, width: int, height: int) -> int:
        return (width // self.size_multiple) * (height // self.size_multiple)

    def possible_tp(self) -> list[int]:
        """Tensor parallel degrees that divide everything that is split."""
        sizes = [size for _, size in self._split_sizes()]
        return [tp for tp in TENSOR_PARALLEL_DEGREES if all(size % tp == 0 for size in sizes)]

    def check_tp(self, tp: int) -> None:
        """Raise `ArgumentError` naming what does not divide and the degrees that would work."""
        for name, size in self._split_sizes():
            if size % tp:
                possible = ", ".join(map(str, self.possible_tp()))
                raise ArgumentError(
                    f"tp {tp} is not possible for this checkpoint: {name} is {size}, which {tp} does not divide; "
                    f"possible: {possible}",
                    parameter="tp",
                )

    def _split_sizes(self) -> list[tuple[str, int]]:
        dit, text = self.transformer, self.text_encoder
        return [
            ("num_attention_heads of the transformer", dit.num_heads),
            ("num_key_value_heads of the transformer", dit.num_kv_heads),
            ("intermediate_size of the transformer", dit.intermediate_size),
            ("text_num_attention_heads of the transformer", dit.text_num_heads),
            ("text_num_key_value_heads of the transformer", dit.text_num_kv_heads),
            ("text_intermediate_size of the transformer", dit.text_intermediate_size),
            ("num_attention_heads of the text encoder", text.num_heads),
            ("num_key_value_heads of the text encoder", text.num_kv_heads),
            ("intermediate_size of the text encoder", text.intermediate_size),
        ]

    @classmethod
    def from_folder(cls, folder: Path, variant: str | None = None) -> ModelConfig:
        """Read the json files of a diffusers-layout folder.

        `variant` ("raw" or "turbo") overrides the checkpoint's `is_distilled`. Raises `CheckpointError` naming the
        file, the key, what was expected and what was found.
        """
        if not folder.is_dir():
            raise CheckpointError.of(folder, "there is no such folder")
        index = JsonFields.read(folder / "model_index.json")
        index.expect("_class_name", PIPELINE_CLASS)
        transformer_json = JsonFields.read(folder / "transformer" / "config.json")
        transformer = _read_transformer(transformer_json)
        text_json = JsonFields.read(folder / "text_encoder" / "config.json")
        text_encoder = _read_text_encoder(text_json)
        vae_json = JsonFields.read(folder / "vae" / "config.json")
        vae = _read_vae(vae_json)
        schedule = _read_schedule(JsonFields.read(folder / "scheduler" / "scheduler_config.json"))
        patch_size = index.integer("patch_size", default=2, most=16)
        taps = index.integers("text_encoder_select_layers", default=DEFAULT_TAPS, least=0)

        if transformer.in_channels != vae.z_dim * patch_size**2:
            raise transformer_json.error(
                "in_channels", f"{vae.z_dim} latent channels × {patch_size}² patch pixels", transformer.in_channels
            )
        if transformer.text_hidden_size != text_encoder.hidden_size:
            raise transformer_json.error(
                "text_hidden_dim", f"the text encoder's {text_encoder.hidden_size}", transformer.text_hidden_size
            )
        if len(taps) != transformer.num_text_layers:
            raise index.error(
                "text_encoder_select_layers", f"{transformer.num_text_layers} layers, as num_text_layers says", taps
            )
        if max(taps) > text_encoder.num_layers:
            raise index.error("text_encoder_select_layers", f"layers 0 to {text_encoder.num_layers}", taps)

        distilled = index.boolean("is_distilled", default=None)
        if distilled is None:
            distilled = transformer_json.boolean("is_distilled", default=None)
        if variant is not None:
            distilled = variant == "turbo"
        multiple = vae.scale_factor * patch_size
        return cls(
            transformer=transformer,
            text_encoder=text_encoder,
            vae=vae,
            schedule=schedule,
            text_encoder_taps=taps,
            patch_size=patch_size,
            is_distilled=True if distilled is None else distilled,
            variant_is_assumed=distilled is None,
            default_width=index.integer("default_width", default=1024, multiple_of=multiple),
            default_height=index.integer("default_height", default=1024, multiple_of=multiple),
        )


def _read_transformer(config: JsonFields) -> TransformerConfig:
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


def _read_text_encoder(config: JsonFields) -> TextEncoderConfig:
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


def _read_vae(config: JsonFields) -> VAEConfig:
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


def _read_schedule(config: JsonFields) -> ScheduleConfig:
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
