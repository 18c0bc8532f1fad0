"""Holds the engine's options: which checkpoint, on what, over how many ranks. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine.config.degrees import MOST_RANKS, PARALLEL_DEGREES, Degrees
from engine.config.demo_checkpoints import DEMO_CHECKPOINT, DEMO_CHECKPOINTS
from engine.config.options import check_options, one_of, option, path, switch, whole_number
from engine.errors import ArgumentError

DEVICES = ("auto", "cuda", "cpu")
DTYPES = ("auto", "bfloat16", "float32")
VARIANTS = ("raw", "turbo")
QUANTIZATIONS = ("auto", "none", "fp8", "int8")
DIT_LAYERWISE, DIT, TEXT_ENCODER, VAE = OFFLOADS = ("dit-layerwise", "dit", "text-encoder", "vae")
ATTENTIONS = ("auto", "cudnn", "flash", "fa2", "fa3", "fa3-fp8", "fa4", "triton", "torch")
PARTS = ("transformer", "text_encoder", "vae", "tokenizer")

_MOST_BYTES = 2**50  # of a device's memory: more is a mistake, and beyond 64 bits no message can carry it
_bytes = partial(whole_number, 1, _MOST_BYTES, f"a number of bytes from 1 to {_MOST_BYTES}, as 16GB", metavar="SIZE")
_part = partial(path, metavar="PATH")


@dataclass(frozen=True)
class EngineConfig:
    """How to run the engine: which checkpoint, on what, over how many ranks. Raises `ArgumentError` for a bad value.

    Its fields are options of `krea2` and `launch`, flat as those are, so there are 23. A new one is added here and in
    the signature of `launch`.

    model: None is "demo", unless parts are given. tp, sp, cfg_parallel: as in `Degrees`. merge_loras: files, each with
    its strength. offload: of `OFFLOADS`. memory_budget: bytes of each device that may be taken; vae_memory: bytes above
    which an image is decoded in tiles; lora_memory: bytes that a budget leaves to LoRAs. See docs/small-gpus.md.
    """

    model: str | None = path(
        "Checkpoint folder in the diffusers layout, a file of a transformer or of several parts, a Hugging Face "
        f"repository, or one of {', '.join(DEMO_CHECKPOINTS)}.  [default: demo, if no part of a model is given]",
        f"the path of a checkpoint, or one of {', '.join(DEMO_CHECKPOINTS)}",
    )
    transformer: str | None = _part("Transformer: a file (safetensors or GGUF, whole or quantised) or a folder.")
    text_encoder: str | None = _part("Text encoder, Qwen3-VL-4B: a file or a folder.")
    vae: str | None = _part("Qwen-Image VAE: a file or a folder.")
    tokenizer: str | None = _part(
        "Tokenizer of the text encoder: tokenizer.json, or vocab.json beside merges.txt, or the folder of either."
    )
    tp: int = one_of(
        PARALLEL_DEGREES,
        1,
        "Ranks that every matrix is split over: 1, 2 or 4.  [default: 1; under torchrun, what others leave]",
    )
    sp: int = one_of(
        PARALLEL_DEGREES,
        1,
        "Ranks that the tokens of a step are split over: 1, 2 or 4. There are tp · sp.  [default: 1]",
    )
    cfg_parallel: bool = switch(
        False,
        "Twice as many ranks, whose halves step different parts of a batch: the prompt's and the negative prompt's of "
        "a guided image, or different images.",
    )
    device: str = one_of(DEVICES, "auto", "auto, cuda or cpu.")
    dtype: str = one_of(DTYPES, "auto", "auto, bfloat16 or float32; auto is bfloat16 on CUDA, float32 elsewhere.")
    variant: str | None = one_of(VARIANTS, None, "raw or turbo, where the checkpoint does not say or you know better.")
    share_gpu: bool = switch(False, "Let ranks share GPUs (slow).")
    quantization: str = one_of(
        QUANTIZATIONS,
        "auto",
        "auto: what the checkpoint has in 8 bits stays so. fp8: the transformer blocks' matrices and what they "
        "multiply as 8-bit numbers; int8: the matrices alone. none: nothing in 8 bits.",
    )
    attention: str = one_of(
        ATTENTIONS,
        "auto",
        "auto (a server measures which is fastest here), cudnn, flash, fa2, fa3, fa3-fp8 (less exact, by how much is "
        "not measured yet), fa4, triton or torch.",
    )
    cuda_graphs: bool = switch(
        True,
        "When a server starts on a GPU, record steps of few tokens as CUDA graphs: launched at once.",
        flag="--cuda-graphs/--no-cuda-graphs",
    )
    image_input: bool = switch(
        True,
        "Load what pictures of people's own need to be drawn from: the VAE's encoder.",
        flag="--image-input/--no-image-input",
    )
    merge_loras: tuple[tuple[str, float], ...] = ()
    lora_lenient: bool = switch(False, "Skip what fits nothing in a LoRA file, with a warning, and use the rest.")
    offload: tuple[str, ...] = option(
        (),
        "What lies in host memory until it is needed: some of dit-layerwise or dit, text-encoder and vae, with commas "
        "between them.",
        metavar="PARTS",
    )
    prefetch: int | None = whole_number(
        0,
        64,
        "between 0 and 64 blocks",
        "Blocks copied ahead of their use.  [default: 1, or what --memory-budget allows]",
        kind=int,
    )
    memory_budget: int | None = _bytes("What to take of each device's memory, as 16GB: offloads as little as it can.")
    vae_memory: int | None = _bytes(
        "Decode images in tiles that would take more, as 2GB.  [default: no tiles, or what the plan of --memory-budget "
        "says, at most what the default size takes]"
    )
    lora_memory: int | None = _bytes(
        "What --memory-budget leaves to LoRAs, as 500MB.  [default: what those of --lora take]"
    )

    def __post_init__(self) -> None:
        check_options(self)
        for file, strength in self.merge_loras:
            if not file or not math.isfinite(strength):
                raise ArgumentError.of("merge_loras", "files, each with a finite strength", f"{file}:{strength}")
        if self.tp * (1 + self.cfg_parallel) > MOST_RANKS:
            raise ArgumentError.of("cfg_parallel", f"False with tp {self.tp}: at most {MOST_RANKS} ranks", True)
        if self.ranks > MOST_RANKS:
            beside = f"tp {self.tp}" + (" and cfg_parallel" if self.cfg_parallel else "")
            raise ArgumentError.of("sp", f"at most {MOST_RANKS * self.sp // self.ranks} with {beside}", self.sp)
        offload = ",".join(map(str, self.offload)) if isinstance(self.offload, tuple) else self.offload
        if not isinstance(self.offload, tuple) or set(self.offload) - set(OFFLOADS):
            raise ArgumentError.of("offload", f"some of {', '.join(OFFLOADS)}", offload)
        if DIT in self.offload and DIT_LAYERWISE in self.offload:
            raise ArgumentError.of("offload", f"{DIT} or {DIT_LAYERWISE}, not both", offload)
        if self.prefetch is not None and not self.offload and self.memory_budget is None:
            raise ArgumentError("prefetch needs offload or memory_budget: nothing is copied", parameter="prefetch")
        if self.lora_memory is not None and self.memory_budget is None:
            raise ArgumentError("lora_memory needs memory_budget, which it is part of", parameter="lora_memory")

    @property
    def degrees(self) -> Degrees:
        return Degrees(self.tp, self.sp, 1 + self.cfg_parallel)

    @property
    def ranks(self) -> int:
        return self.degrees.ranks

    @property
    def decodes_together(self) -> bool:
        """Whether all ranks have the decoder, and decode an image that is large enough together. Not with a budget, by
        which those of one machine may be told to decode in tiles, and those of another not."""
        return self.ranks > 1 and VAE not in self.offload and self.memory_budget is None

    def dtype_on(self, device_type: str) -> str:
        """Tell what `dtype` stands for on "cuda" or "cpu": bfloat16 or float32."""
        return self.dtype if self.dtype != "auto" else "bfloat16" if device_type == "cuda" else "float32"

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
