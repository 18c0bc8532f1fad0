"""How to run the engine: which checkpoint, on what, over how many ranks. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from engine.config.degrees import MOST_RANKS, PARALLEL_DEGREES, Degrees
from engine.config.demo_checkpoints import DEMO_CHECKPOINT, DEMO_CHECKPOINTS
from engine.errors import ArgumentError

DEVICES = ("auto", "cuda", "cpu")
DTYPES = ("auto", "bfloat16", "float32")
VARIANTS = ("raw", "turbo")
QUANTIZATIONS = ("auto", "none", "fp8", "int8")
DIT_LAYERWISE, DIT, TEXT_ENCODER, VAE = OFFLOADS = ("dit-layerwise", "dit", "text-encoder", "vae")
ATTENTIONS = ("auto", "cudnn", "flash", "fa2", "fa3", "fa3-fp8", "fa4", "triton", "torch")
PARTS = ("transformer", "text_encoder", "vae", "tokenizer")

_MOST_BYTES = 2**50  # of a device's memory: beyond it a size is a slip, and further beyond no message can carry it


@dataclass(frozen=True)
class EngineConfig:
    """How to run the engine: which checkpoint, on what, over how many ranks. Raises `ArgumentError`.

    tp: ranks that every matrix is split over; sp: ranks that the tokens of a step are split over; cfg_parallel: two
    halves of so many step different segments, such as the two of a guided image. There are `ranks` of them.

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
        for name in ("share_gpu", "cuda_graphs", "lora_lenient", "cfg_parallel"):
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
