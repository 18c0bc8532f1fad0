"""What a checkpoint is (`ModelConfig`, from the configs of its components) and how to run it (`EngineConfig`).

Imports no torch: the front-end and `krea2 info` need these numbers without waiting for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from engine.component_config import (
    ScheduleConfig,
    TextEncoderConfig,
    TransformerConfig,
    VAEConfig,
    read_schedule,
    read_text_encoder,
    read_transformer,
    read_vae,
)
from engine.errors import ArgumentError, CheckpointError
from engine.json_fields import JsonFields
from engine.modes import Degrees
from engine.prompt_domain import PromptDomain, read_prompt_domain

__all__ = ["EngineConfig", "ModelConfig", "ScheduleConfig", "TextEncoderConfig", "TransformerConfig", "VAEConfig"]

_DEMO = Path(__file__).parent / "demo"
DEMO_CHECKPOINT = _DEMO / "turbo"
DEMO_CHECKPOINTS = {"demo": DEMO_CHECKPOINT, "demo-turbo": DEMO_CHECKPOINT, "demo-raw": _DEMO / "raw"}
DEMO_LORAS = {"demo-outlined": _DEMO / "outlined.safetensors"}
PARALLEL_DEGREES = (1, 2, 4)
MOST_RANKS = max(PARALLEL_DEGREES)
DEVICES = ("auto", "cuda", "cpu")
DTYPES = ("auto", "bfloat16", "float32")
VARIANTS = ("raw", "turbo")
QUANTIZATIONS = ("auto", "none", "fp8", "int8")
DIT_LAYERWISE, DIT, TEXT_ENCODER, VAE = OFFLOADS = ("dit-layerwise", "dit", "text-encoder", "vae")
ATTENTIONS = ("auto", "cudnn", "flash", "fa2", "fa3", "fa3-fp8", "fa4", "triton", "torch")
PARTS = ("transformer", "text_encoder", "vae", "tokenizer")

MOST_STEPS, MOST_GUIDANCE = 200, 20.0
_MOST_BYTES = 2**50  # of a device's memory: beyond it a size is a slip, and further beyond no message can carry it
PIPELINE_CLASS = "Krea2Pipeline"
DEFAULT_TAPS = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)


@dataclass(frozen=True)
class EngineConfig:
    """How to run the engine: which checkpoint, on what, over how many ranks. Raises `ArgumentError`.

    tp: ranks that every matrix is split over; sp: ranks that the tokens of a step are split over; cfg_parallel: two
    halves of so many step different segments, such as the two of a guided image. There are `ranks` of them.

    symmetric_memory: tensor parallel ranks on GPUs that reach each other's memory exchange rows while they multiply.

    offload: what lies in host memory until it is needed, of `OFFLOADS`. prefetch: how many blocks are copied ahead;
    None leaves it to the plan. memory_budget: bytes of a device that the engine may take. vae_memory: bytes of decoding
    above which an image is decoded in tiles. lora_memory: bytes that a budget's plan leaves to LoRAs. See
    docs/small-gpus.md.

    model: a folder in the diffusers layout, a transformer's file, or one of `DEMO_CHECKPOINTS`; None is "demo", unless
    parts are given. transformer, text_encoder, vae and tokenizer are parts that come from elsewhere: a file or a folder
    each.
    """

    model: str | None = None
    transformer: str | None = None
    text_encoder: str | None = None
    vae: str | None = None
    tokenizer: str | None = None
    tp: int = 1
    sp: int = 1
    cfg_parallel: bool = False
    device: str = "auto"
    dtype: str = "auto"
    variant: str | None = None
    share_gpu: bool = False
    symmetric_memory: bool = False
    quantization: str = "auto"
    attention: str = "auto"
    cuda_graphs: bool = True
    merge_loras: tuple[tuple[str, float], ...] = ()  # files, each with its strength
    lora_lenient: bool = False
    offload: tuple[str, ...] = ()
    prefetch: int | None = None
    memory_budget: int | None = None
    vae_memory: int | None = None
    lora_memory: int | None = None

    def __post_init__(self) -> None:
        models = f"the path of a checkpoint, or one of {', '.join(DEMO_CHECKPOINTS)}"
        for name, allowed in (("model", models), *((n, "a path") for n in PARTS)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value or "\0" in value):
                raise ArgumentError.of(name, allowed, value)
        for name in ("share_gpu", "symmetric_memory", "cuda_graphs", "lora_lenient", "cfg_parallel"):
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
        for path, strength in self.merge_loras:
            if not path or not math.isfinite(strength):
                raise ArgumentError.of("merge_loras", "files, each with a finite strength", f"{path}:{strength}")
        for name in ("tp", "sp"):
            value = getattr(self, name)
            if isinstance(value, bool) or value not in PARALLEL_DEGREES:
                raise ArgumentError.of(name, f"one of {', '.join(map(str, PARALLEL_DEGREES))}", value)
        halves = 1 + self.cfg_parallel
        if self.tp * halves > MOST_RANKS:
            raise ArgumentError.of("cfg_parallel", f"False with tp {self.tp}: at most {MOST_RANKS} ranks", True)
        if self.ranks > MOST_RANKS:
            beside = f"tp {self.tp}" + (" and cfg_parallel" if self.cfg_parallel else "")
            raise ArgumentError.of("sp", f"at most {MOST_RANKS // (self.tp * halves)} with {beside}", self.sp)
        if self.symmetric_memory and self.tp == 1:
            raise ArgumentError.of("symmetric_memory", "False with tp 1, which exchanges nothing that it is for", True)
        self._check_memory_options()

    @property
    def decodes_together(self) -> bool:
        """Whether all ranks have the decoder, and decode an image that is large enough together. Not with a budget, by
        which those of one machine may be told to decode in tiles, and those of another not."""
        return self.ranks > 1 and VAE not in self.offload and self.memory_budget is None

    def _check_memory_options(self) -> None:
        if not isinstance(self.offload, tuple) or set(self.offload) - set(OFFLOADS):
            given = ",".join(map(str, self.offload)) if isinstance(self.offload, tuple) else self.offload
            raise ArgumentError.of("offload", f"some of {', '.join(OFFLOADS)}", given)
        if DIT in self.offload and DIT_LAYERWISE in self.offload:
            raise ArgumentError.of("offload", f"{DIT} or {DIT_LAYERWISE}, not both", ",".join(self.offload))
        if self.prefetch is not None and (
            not isinstance(self.prefetch, int) or isinstance(self.prefetch, bool) or not 0 <= self.prefetch <= 64
        ):
            raise ArgumentError.of("prefetch", "between 0 and 64 blocks", self.prefetch)
        for name in ("memory_budget", "vae_memory", "lora_memory"):
            value = getattr(self, name)
            if value is not None and (
                not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _MOST_BYTES
            ):
                raise ArgumentError.of(name, f"a number of bytes from 1 to {_MOST_BYTES}, as 16GB", value)
        if self.prefetch is not None and not self.offload and self.memory_budget is None:
            raise ArgumentError("prefetch needs offload or memory_budget: nothing is copied", parameter="prefetch")
        if self.lora_memory is not None and self.memory_budget is None:
            raise ArgumentError("lora_memory needs memory_budget, which it is part of", parameter="lora_memory")

    @property
    def ranks(self) -> int:
        return self.degrees.ranks

    @property
    def degrees(self) -> Degrees:
        return Degrees(self.tp, self.sp, 1 + self.cfg_parallel)

    def dtype_on(self, device_type: str) -> str:
        """bfloat16 or float32: what `dtype` stands for on "cuda" or "cpu"."""
        if self.dtype == "auto":
            return "bfloat16" if device_type == "cuda" else "float32"
        return self.dtype

    @property
    def name(self) -> str:
        """What was asked for, for people: a path, or a demo's name."""
        return self.model or self.transformer or "demo"

    @property
    def demo(self) -> Path | None:
        """The folder of the demo that `model` names, or that is meant since no part is given; None if there is none."""
        if self.model is None and not any(getattr(self, part) for part in PARTS):
            return DEMO_CHECKPOINT
        return None if self.model is None else DEMO_CHECKPOINTS.get(self.model)


@dataclass(frozen=True)
class ModelConfig:
    """A whole checkpoint in the diffusers layout, checked for consistency. Paths are not kept; see `checkpoint`.

    stated_steps, stated_guidance: the checkpoint's own defaults, None where its kind's hold. prompt_domain: None if it
    draws any prompt.
    """

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
    stated_steps: int | None = None
    stated_guidance: float | None = None
    prompt_domain: PromptDomain | None = None

    @property
    def default_steps(self) -> int:
        if self.stated_steps is not None:
            return self.stated_steps
        return 8 if self.is_distilled else 52

    @property
    def default_guidance(self) -> float:
        if self.stated_guidance is not None:
            return self.stated_guidance
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
        return [tp for tp in PARALLEL_DEGREES if all(size % tp == 0 for size in sizes)]

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

    def possible_sp(self, tp: int) -> list[int]:
        """Sequence parallel degrees beside tp: attention splits the heads of a tensor parallel rank once more."""
        fitting = (sp for sp in PARALLEL_DEGREES if tp * sp <= MOST_RANKS)
        return [sp for sp in fitting if not self.transformer.undivided_heads(tp * sp)]

    def check_parallel(self, tp: int, sp: int) -> None:
        """Raise `ArgumentError` naming what does not divide and the degrees that would work."""
        self.check_tp(tp)
        for name, heads in self.transformer.undivided_heads(tp * sp):
            possible = ", ".join(map(str, self.possible_sp(tp)))
            raise ArgumentError(
                f"sp {sp} is not possible for this checkpoint with tp {tp}: {name} of the transformer is {heads}, "
                f"which {tp * sp} does not divide; possible: {possible}",
                parameter="sp",
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
        transformer, text_encoder, vae = (
            JsonFields.read(folder / component / "config.json") for component in ("transformer", "text_encoder", "vae")
        )
        schedule = JsonFields.read(folder / "scheduler" / "scheduler_config.json")
        stated = index.boolean("is_distilled", default=None)
        if stated is None:
            stated = transformer.boolean("is_distilled", default=None)
        return cls.build(index, transformer, text_encoder, vae, schedule, variant=variant, stated=stated)

    @classmethod
    def build(
        cls,
        index: JsonFields,
        transformer_json: JsonFields,
        text_json: JsonFields,
        vae_json: JsonFields,
        schedule_json: JsonFields,
        *,
        variant: str | None,
        stated: bool | None,
        guess: bool = True,
    ) -> ModelConfig:
        """Put together what model_index.json and the components' configs say, wherever they come from.

        It is Turbo if `variant` says so; without one, if the checkpoint's `is_distilled`, which is `stated`, says so;
        without that, by `guess`. Raises `CheckpointError` for a config that is wrong or does not fit the others.
        """
        index.expect("_class_name", PIPELINE_CLASS)
        transformer, text_encoder = read_transformer(transformer_json), read_text_encoder(text_json)
        vae, schedule = read_vae(vae_json), read_schedule(schedule_json)
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

        multiple = vae.scale_factor * patch_size
        distilled = guess if stated is None else stated
        is_distilled = distilled if variant is None else variant == "turbo"
        stated_steps, stated_guidance = _read_defaults(index, is_distilled)
        return cls(
            transformer=transformer,
            text_encoder=text_encoder,
            vae=vae,
            schedule=schedule,
            text_encoder_taps=taps,
            patch_size=patch_size,
            is_distilled=is_distilled,
            variant_is_assumed=variant is None and stated is None,
            default_width=index.integer("default_width", default=1024, multiple_of=multiple),
            default_height=index.integer("default_height", default=1024, multiple_of=multiple),
            stated_steps=stated_steps,
            stated_guidance=stated_guidance,
            prompt_domain=read_prompt_domain(index),
        )


def _read_defaults(index: JsonFields, is_distilled: bool) -> tuple[int | None, float | None]:
    """Steps and guidance that model_index.json states, unless it speaks of the other kind: of Raw where this is Turbo,
    since an option or another transformer says so."""
    steps = index.integer("default_steps", most=MOST_STEPS) if index.has("default_steps") else None
    guidance = index.number("default_guidance") if index.has("default_guidance") else None
    if guidance is not None and not 0 <= guidance <= MOST_GUIDANCE:
        raise index.error("default_guidance", f"a number from 0 to {MOST_GUIDANCE:g}", guidance)
    if index.boolean("is_distilled", default=None) not in (None, is_distilled):
        return None, None
    return steps, guidance
