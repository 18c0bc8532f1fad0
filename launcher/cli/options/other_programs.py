"""The options of other programs: which of ours each of them is, or what is said where there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click

from engine.config.engine_config import DIT, DIT_LAYERWISE, TEXT_ENCODER, VAE
from engine.errors import ArgumentError
from launcher.messages.parameter_names import GUIDANCE_IS_OFF, in_own_names
from launcher.parameters.other_programs import less
from launcher.parameters.table import OTHERS

YES, NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
Parameters = Mapping[str, Any]  # of a command, by name, with the options of this table that come earlier


@dataclass(frozen=True)
class OtherOption:
    """An option of other programs, under each of its `flags`.

    here: what to write, or what becomes of it, as a phrase. option: the name of ours that it is; else it is refused, or
    where `needless` passed over, with that phrase. switch: whether nothing may follow it, or true or false. values:
    what ours gets for theirs, or makes it of theirs and the command's parameters; None is as without the option.
    unless: the value with which it asks for nothing. note: what is told of a value that ours gets.
    """

    flags: tuple[str, ...]
    programs: str
    here: str
    option: str | None = None
    needless: bool = False
    switch: bool = False
    values: Mapping[str, Any] | Callable[[Any, Parameters], Any] | None = None
    unless: str | None = None
    note: Callable[[Any], str | None] = lambda _: None

    @property
    def said(self) -> str:
        """`here` on a terminal."""
        return self.here.replace("`", "")

    def read(self, flag: str, value: Any, parameters: Parameters) -> Any:
        """Make our value of theirs; None is as without the option. Raises `ArgumentError` if there is none."""
        text = str(value).lower()
        if self.switch and text not in YES + NO:
            raise ArgumentError.of(flag, "true or false", value)
        if text == self.unless or (self.switch and text in NO):
            return None
        if self.option is None and not self.needless:
            raise ArgumentError(f"there is no {flag} here: {self.said}")
        if callable(self.values):
            return self.values(value, parameters)
        if self.values is None:
            return value
        if self.switch:
            return self.values["true"]
        if text not in self.values:
            raise ArgumentError.of(flag, f"one of {', '.join(self.values)}", value)
        return self.values[text]


def _guidance(value: float, _: Parameters) -> float:
    own: float = in_own_names({"guidance_scale": value})[0]["guidance"]
    return own


def _scale(value: float, _: Parameters) -> float:
    return less("cfg scale", value)


def _note_of_guidance(value: float) -> str | None:
    if value == 1:
        return f"warning: {GUIDANCE_IS_OFF.replace('guidance', '--guidance').replace('_', '-')}"
    scales = "Krea's own scale, as in diffusers; SGLang's is 1 more: its 4.5 is --guidance 3.5"
    return f"note: --guidance-scale is {scales}" if value else None


def _all_gpus(value: int, parameters: Parameters) -> int | None:
    """As SGLang, let GPUs that no other option has taken split the tokens."""
    tp, sp = parameters.get("tp") or 1, parameters.get("sp") or 1
    rest = tp * (1 + bool(parameters.get("cfg_parallel")))
    if parameters.get("parallel"):
        instead = "info's --gpus" if "gpus" in parameters else "CUDA_VISIBLE_DEVICES"
        click.echo(
            f"note: --num-gpus changes nothing: --parallel auto looks at all GPUs; {instead} says at which", err=True
        )
        return None
    if value == rest * sp:
        return None
    if sp > 1 or value % rest or value < 1:
        raise ArgumentError(
            f"--num-gpus {value} contradicts the other options, which take {rest * sp}; say how GPUs share the work "
            "with --tp, --sp and --cfg-parallel, or --parallel auto"
        )
    return value // rest


def _attention(value: str, _: Parameters) -> str:
    theirs = value.lower().replace("-", "_")
    same = {"torch_sdpa": "torch", "sdpa": "torch", "native": "torch", "fa": "auto", "flash_attn": "auto"}
    return same.get(theirs, value)


_SGLANG, _VLLM, _DIFFUSERS, _KREA = "SGLang", "vLLM-Omni", "diffusers", "Krea's script"
_BOTH = f"{_SGLANG}, {_VLLM}"
_MODELS = {"oss_turbo": "krea/Krea-2-Turbo", "oss_raw": "krea/Krea-2-Raw"}
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # of a path that is a file's all the same
_TRUE = {"true": True}

OTHER_OPTIONS = (
    OtherOption(("--model-path",), _SGLANG, "`--model`", "model"),
    OtherOption(("--pretrained-model-name-or-path",), _DIFFUSERS, "`--model`", "model"),
    OtherOption(
        ("--checkpoint",), _KREA, "`--model`: `oss_turbo` is `krea/Krea-2-Turbo`, `oss_raw` `krea/Krea-2-Raw`", "model",
        values=_MODELS,
    ),
    OtherOption(("--transformer-path", "--transformer-weights-path"), _SGLANG, "`--transformer`", "transformer"),
    OtherOption(("--text-encoder-path",), _SGLANG, "`--text-encoder`", "text_encoder"),
    OtherOption(("--vae-path",), _SGLANG, "`--vae`", "vae"),
    OtherOption(("--tokenizer-path",), _SGLANG, "`--tokenizer`", "tokenizer"),
    OtherOption(("--tp-size", "--tensor-parallel-size"), _BOTH, "`--tp`", "tp"),
    OtherOption(("--sp-degree", "--sp-size", "--ulysses-degree"), _BOTH, "`--sp`", "sp"),
    OtherOption(("--enable-cfg-parallel",), _SGLANG, "`--cfg-parallel`", "cfg_parallel", switch=True, values=_TRUE),
    OtherOption(
        ("--cfg-parallel-size",), _VLLM, "2 is `--cfg-parallel`", "cfg_parallel", values={"2": True}, unless="1"
    ),
    OtherOption(
        ("--num-gpus",), _SGLANG, "`--sp`, as there, of what `--tp` and `--cfg-parallel` leave; `--parallel auto` "
        "chooses by prediction", "sp", values=_all_gpus,
    ),
    OtherOption(("--ring-degree",), _BOTH, "write `--sp`, which exchanges heads", unless="1"),
    OtherOption(
        ("--dp-size", "--data-parallel-size"), _BOTH, "`krea2 cluster run --replicas 2` starts an engine for each, "
        "behind one address", unless="1",
    ),
    OtherOption(
        ("--performance-mode",), _SGLANG, "`--parallel auto` chooses how GPUs share the work, `--memory-budget` what "
        "is offloaded", unless="auto",
    ),
    OtherOption(("--torch-dtype", "--dit-precision", "--precision"), f"{_DIFFUSERS}, {_SGLANG}", "`--dtype`", "dtype"),
    OtherOption(
        ("--attention-backend",), _SGLANG, "`--attention`: `torch_sdpa` is `torch`, `fa` is `auto`", "attention",
        values=_attention,
    ),
    OtherOption(
        ("--enforce-eager",), _VLLM, "`--no-cuda-graphs`", "cuda_graphs", switch=True, values={"true": False}
    ),
    OtherOption(
        ("--enable-torch-compile",), _SGLANG, "kernels are compiled as they are: nothing to ask for", needless=True,
        switch=True,
    ),
    OtherOption(("--trust-remote-code",), _BOTH, "no code of a checkpoint is ever run", needless=True, switch=True),
    OtherOption(
        ("--warmup", "--enable-warmup"), _SGLANG, "`serve` prepares a GPU, unasked", needless=True, switch=True
    ),
    OtherOption(("--backend", "--model-type"), _SGLANG, "there is one engine, for Krea 2", needless=True),
    OtherOption(("--omni",), _VLLM, "there is one engine, for Krea 2", needless=True, switch=True),
    OtherOption(
        ("--dit-layerwise-offload", "--enable-layerwise-offload"), _BOTH, "`--offload dit-layerwise`", "offload",
        switch=True, values={"true": (DIT_LAYERWISE,)},
    ),
    OtherOption(
        ("--dit-cpu-offload",), _SGLANG, "`--offload dit`", "offload", switch=True, values={"true": (DIT,)}
    ),
    OtherOption(
        ("--text-encoder-cpu-offload",), _SGLANG, "`--offload text-encoder`", "offload", switch=True,
        values={"true": (TEXT_ENCODER,)},
    ),
    OtherOption(
        ("--vae-cpu-offload",), _SGLANG, "`--offload vae`", "offload", switch=True, values={"true": (VAE,)}
    ),
    OtherOption(
        ("--enable-cpu-offload", "--enable-model-cpu-offload"), f"{_VLLM}, {_DIFFUSERS}",
        "`--offload dit,text-encoder,vae`", "offload", switch=True, values={"true": (DIT, TEXT_ENCODER, VAE)},
    ),
    OtherOption(
        ("--enable-sequential-cpu-offload",), _DIFFUSERS, "`--offload dit-layerwise,text-encoder,vae`", "offload",
        switch=True, values={"true": (DIT_LAYERWISE, TEXT_ENCODER, VAE)},
    ),
    OtherOption(
        ("--pin-cpu-memory",), _SGLANG, "what is offloaded is pinned, as far as it can be", needless=True, switch=True
    ),
    OtherOption(
        ("--layerwise-offload-components",), _SGLANG, "write `--offload dit-layerwise,text-encoder,vae`, or what of it "
        "is to be offloaded",
    ),
    OtherOption(
        ("--gpu-memory-utilization", "--mem-fraction-static"), "vLLM, SGLang", "write `--memory-budget 16GB`, the "
        "bytes of each GPU",
    ),
    OtherOption(
        ("--vae-tiling", "--vae-slicing", "--vae-use-tiling", "--vae-use-slicing"), _BOTH,
        "`--vae-memory 2GB` decodes in tiles what would take more", switch=True,
    ),
    OtherOption(("--lora-path",), _BOTH, "`--lora`", "loras", values=lambda value, _: (value,)),
    OtherOption(("--lora-scale",), _BOTH, "it goes behind the path: `--lora FILE:0.8`"),
    OtherOption(("--lora-nickname",), _SGLANG, "it goes before the path: `--lora NAME=FILE`"),
    OtherOption(("--init-timeout", "--stage-init-timeout"), _VLLM, "`--start-timeout`", "start_timeout_s"),
    OtherOption(("--revision",), _BOTH, "it goes behind the repository: `--model OWNER/NAME@REVISION`"),
    OtherOption(("--download-dir",), "vLLM", "`HF_HOME` says where the cache is"),
    OtherOption(("--log-level",), _BOTH, "there is one; `--log-format` says how", needless=True),
    OtherOption(
        ("--num-inference-steps", "--sampling-steps", "--inference-steps"), f"{_SGLANG}, {_VLLM}, {_DIFFUSERS}",
        "`--steps`", "steps",
    ),
    OtherOption(
        ("--guidance-scale",), f"{_SGLANG}, {_VLLM}, {_DIFFUSERS}", "`--guidance`, whose scale is that of diffusers "
        "and 1 less than SGLang's; 1 is off, with a warning", "guidance", values=_guidance, note=_note_of_guidance,
    ),
    OtherOption(("--cfg",), _KREA, "`--guidance`", "guidance"),
    OtherOption(
        ("--cfg-scale", "--true-cfg-scale"), f"{_VLLM}, {_DIFFUSERS}", "`--guidance`, which is 1 less: 1 is off, and "
        "4.5 is 3.5", "guidance", values=_scale,
    ),
    OtherOption(("--y1", "--y2"), _KREA, "`--mu` pins the shift, as in that script"),
    OtherOption(
        ("--enable-teacache",), _SGLANG, "`--cache quality`", "cache", switch=True, values={"true": "quality"}
    ),
    OtherOption(
        ("--cache-backend",), _VLLM, "`--cache`: `cache_dit` and `tea_cache` are `quality`", "cache",
        values={"cache_dit": "quality", "tea_cache": "quality", "none": None},
    ),
    OtherOption(
        ("--num-images-per-prompt", "--num-outputs-per-prompt", "--num-outputs", "--n"),
        f"{_VLLM}, {_SGLANG}, {_DIFFUSERS}", "`--num-images`", "num_images",
    ),
    OtherOption(("--neg-prompt",), "LightX2V", "`--negative-prompt`", "negative_prompt"),
    OtherOption(
        ("--output-quality",), _SGLANG, "`--output-compression`: `maximum` is 100, `high` 90, `medium` 55, `low` 35",
        "output_compression", values={"default": None, "maximum": 100, "high": 90, "medium": 55, "low": 35},
    ),
    OtherOption(("--prompt-path", "--prompt-file-path", "--txt-prompts"), _BOTH, "`--prompts`", "prompts_file"),
    OtherOption(
        ("--output-path", "--output-dir"), f"{_SGLANG}, {_DIFFUSERS}", "`--output FOLDER/`", "output",
        values=lambda value, _: value if value.lower().endswith(_SUFFIXES) else f"{value.rstrip('/')}/",
    ),
    OtherOption(("--output-file-name",), _SGLANG, "write folder and name in one: `--output FOLDER/NAME.png`"),
    OtherOption(("--save-output",), _SGLANG, "images are written in any case", needless=True, switch=True),
    OtherOption(("--image-path", "--input-image", "--init-image"), f"{_SGLANG}, {_DIFFUSERS}", "`--image`", "image"),
    OtherOption(("--mask-image", "--mask-path"), f"{_DIFFUSERS}, {_VLLM}", "`--mask`", "mask"),
    OtherOption(("--denoising-strength", "--denoise"), "A1111, ComfyUI", "`--strength`", "strength"),
    OtherOption(
        ("--image-strength", "--init-image-strength"), "MLX", "`--strength` is 1 less it: for 0.35 write "
        "`--strength 0.65`",
    ),
    OtherOption(("--padding-mask-crop",), _DIFFUSERS, "`--mask-crop`", "mask_crop"),
    OtherOption(("--mask-blur",), "A1111", "`--mask-feather`", "mask_feather"),
    OtherOption(("--num-frames", "--fps"), _SGLANG, OTHERS["num_frames"].here, unless="1"),
)  # fmt: skip
