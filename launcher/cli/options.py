"""The options of an engine, which the commands that start one share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
import msgspec

from engine.config.demo_checkpoints import DEMO_CHECKPOINTS
from engine.config.engine_config import PARTS, EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError
from launcher.auto_mode.choice import is_auto
from launcher.auto_mode.prediction import Workload
from launcher.messages.configs import FrontendConfig
from launcher.messages.limits import Limits, parse_bytes
from launcher.ranks import torchrun
from launcher.setup.configure import add_loras, choose_parallel, configure

Command = TypeVar("Command", bound=Callable[..., Any])


def engine_options(command: Command) -> Command:
    """Add them to a command, which hands what it gets to `configure_engine`."""
    options = (
        click.option(
            "--model",
            help="Checkpoint folder in the diffusers layout, a transformer's file, a Hugging Face repository, or one "
            f"of {', '.join(DEMO_CHECKPOINTS)}.  [default: demo, if no part of a model is given]",
        ),
        part_options,
        click.option(
            "--tp",
            type=int,
            help="Ranks that every matrix is split over: 1, 2 or 4.  [default: 1; under torchrun, what others leave]",
        ),
        click.option(
            "--sp",
            type=int,
            help="Ranks that the tokens of a step are split over: 1, 2 or 4. There are tp · sp.  [default: 1]",
        ),
        click.option(
            "--cfg-parallel",
            is_flag=True,
            help="Twice as many ranks, whose halves step different parts of a batch: the prompt's and the negative "
            "prompt's of a guided image, or different images.",
        ),
        click.option(
            "--parallel",
            metavar="auto",
            help="Choose --tp, --sp and --cfg-parallel: the fastest by prediction that fits into this machine's GPUs.",
        ),
        click.option("--device", default="auto", help="auto, cuda or cpu.", show_default=True),
        click.option(
            "--dtype",
            default="auto",
            help="auto, bfloat16 or float32; auto is bfloat16 on CUDA, float32 elsewhere.",
            show_default=True,
        ),
        click.option("--variant", help="raw or turbo, where the checkpoint does not say or you know better."),
        click.option("--share-gpu", is_flag=True, help="Let ranks share GPUs (slow)."),
        click.option(
            "--quantization",
            default="auto",
            help="auto: what the checkpoint has in 8 bits stays so. fp8: the transformer blocks' matrices and what "
            "they multiply as 8-bit numbers; int8: the matrices alone. none: nothing in 8 bits.",
            show_default=True,
        ),
        click.option(
            "--attention",
            default="auto",
            help="auto (a server measures which is fastest here), cudnn, flash, fa2, fa3, fa3-fp8 (less exact, "
            "by how much is not measured yet), fa4, triton or torch.",
            show_default=True,
        ),
        click.option(
            "--cuda-graphs/--no-cuda-graphs",
            default=True,
            help="When a server starts on a GPU, record steps of few tokens as CUDA graphs: launched at once.",
            show_default=True,
        ),
        click.option(
            "--lora",
            "loras",
            multiple=True,
            metavar="[NAME=]PATH[:STRENGTH]",
            help="A LoRA file, or demo-outlined: generate uses it for every image, serve lets requests choose it by "
            "NAME, which is the file's if there is none. May be repeated.",
        ),
        click.option(
            "--lora-lenient",
            is_flag=True,
            help="Skip what fits nothing in a LoRA file, with a warning, and use the rest.",
        ),
        click.option(
            "--merge-lora",
            is_flag=True,
            help="Add the --lora files to the weights as these are loaded: for every image, and at no cost afterwards.",
        ),
        memory_options,
        click.option(
            "--limit", "limits", multiple=True, metavar="NAME=VALUE", help="Change a limit, as max_side=2048."
        ),
        click.option(
            "--start-timeout",
            "start_timeout_s",
            type=float,
            default=600.0,
            help="Seconds for ranks to load.",
            show_default=True,
        ),
        click.option(
            "--step-timeout",
            "step_timeout_s",
            type=float,
            default=300.0,
            help="Seconds for one step.",
            show_default=True,
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def part_options(command: Command) -> Command:
    """Add those that name parts of a model that come from elsewhere."""
    helps = {
        "transformer": "Transformer: a file (safetensors or GGUF, whole or quantised) or a folder.",
        "text_encoder": "Text encoder, Qwen3-VL-4B: a file or a folder.",
        "vae": "Qwen-Image VAE: a file or a folder.",
        "tokenizer": "Tokenizer of the text encoder: tokenizer.json or its folder.",
    }
    for part in reversed(PARTS):
        command = click.option(f"--{part.replace('_', '-')}", metavar="PATH", help=helps[part])(command)
    return command


def memory_options(command: Command) -> Command:
    """Add those that say what lies where, which `memory_settings` reads."""
    options = (
        click.option(
            "--offload",
            default="",
            metavar="PARTS",
            help="What lies in host memory until it is needed: some of dit-layerwise or dit, text-encoder and "
            "vae, with commas between them.",
        ),
        click.option(
            "--prefetch",
            type=int,
            help="Blocks copied ahead of their use.  [default: 1, or what --memory-budget allows]",
        ),
        click.option(
            "--memory-budget",
            metavar="SIZE",
            help="What to take of each device's memory, as 16GB: offloads as little as it can.",
        ),
        click.option(
            "--lora-memory",
            metavar="SIZE",
            help="What --memory-budget leaves to LoRAs, as 500MB.  [default: what those of --lora take]",
        ),
        click.option(
            "--vae-memory",
            metavar="SIZE",
            help="Decode images in tiles that would take more, as 2GB.  [default: no tiles, or what the plan of "
            "--memory-budget says, at most what the default size takes]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def memory_settings(
    *, offload: str, memory_budget: str | None, vae_memory: str | None, lora_memory: str | None
) -> dict[str, Any]:
    """The fields of `EngineConfig` that the texts of `memory_options` stand for. Raises `ArgumentError`."""
    return {
        "offload": tuple(part.strip().replace("_", "-") for part in offload.split(",")) if offload else (),
        "memory_budget": parse_bytes("memory_budget", memory_budget),
        "vae_memory": parse_bytes("vae_memory", vae_memory),
        "lora_memory": parse_bytes("lora_memory", lora_memory),
    }


def configure_engine(
    *,
    tp: int | None,
    sp: int | None,
    cfg_parallel: bool,
    parallel: str | None,
    workload: Callable[[ModelConfig, Limits], Workload],
    limits: tuple[str, ...],
    start_timeout_s: float,
    step_timeout_s: float,
    loras: tuple[str, ...],
    merge_lora: bool,
    lora_dir: str | None = None,
    offload: str,
    memory_budget: str | None,
    vae_memory: str | None,
    lora_memory: str | None,
    **engine_options: Any,
) -> tuple[FrontendConfig, ModelConfig]:
    """The engine's options, checked as far as that goes without starting it. workload: what a mode is chosen for."""
    choose = is_auto(parallel, tp=tp, sp=sp, cfg_parallel=cfg_parallel)
    ranks = torchrun.external_ranks()
    count = 1 if ranks is None else ranks.total
    sp = 1 if sp is None else sp
    beside = sp * (1 + cfg_parallel)
    if tp is None:
        tp = max(1, count // beside) if sp > 0 and not choose else 1
    if ranks is not None and tp * beside != count and not choose:
        product, got = ("tp · sp · 2", f"{tp} · {sp} · 2") if cfg_parallel else ("tp · sp", f"{tp} · {sp}")
        raise ArgumentError(
            f"{product} must be {count}, the number of processes that torchrun started, got {got}", parameter="tp"
        )
    config, model = configure(
        EngineConfig(
            tp=tp,
            sp=sp,
            cfg_parallel=cfg_parallel,
            **memory_settings(
                offload=offload, memory_budget=memory_budget, vae_memory=vae_memory, lora_memory=lora_memory
            ),
            **engine_options,
        ),
        _parse_limits(limits),
        start_timeout_s=start_timeout_s,
        step_timeout_s=step_timeout_s,
    )
    if choose:
        config, lines = choose_parallel(config, workload(model, config.limits), ranks=None if ranks is None else count)
        click.echo("\n".join(lines), err=True)
    config, warnings = add_loras(config, model, loras, lora_dir=lora_dir, merge=merge_lora)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    if model.variant_is_assumed:
        kind = "Turbo" if model.is_distilled else "Raw"
        click.echo(f"note: the checkpoint does not say what it is, {kind} is assumed: see --variant", err=True)
    if ranks is None:
        return config, model
    if (advice := torchrun.tp_warning(config.engine.tp, ranks)) is not None:
        click.echo(f"warning: {advice}", err=True)
    host = ranks.host if ranks.local < ranks.total else None
    return msgspec.structs.replace(config, run_folder=ranks.run_folder, external_ranks=True, ranks_host=host), model


def _parse_limits(assignments: tuple[str, ...]) -> dict[str, float]:
    values = {}
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        try:
            values[name] = float(value)
        except ValueError:
            raise ArgumentError.of("limit", "NAME=VALUE with a number", assignment) from None
    return values
