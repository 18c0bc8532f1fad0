"""`krea2 info`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from engine.config.engine_config import EngineConfig
from engine.errors import ArgumentError
from launcher.auto_mode.choice import is_auto
from launcher.cli.options import memory_options, memory_settings, part_options


@click.command()
@click.argument("argument", metavar="[MODEL]", required=False)
@click.option("--model", help="The same as MODEL.")
@part_options
@click.option("--tp", type=int, help="Ranks to split the checkpoint over.  [default: 1]")
@click.option("--sp", type=int, help="Ranks to split the tokens of a step over.  [default: 1]")
@click.option("--cfg-parallel", is_flag=True, help="Twice as many ranks, for the two halves of guided images.")
@click.option("--parallel", metavar="auto", help="What would be chosen of these, and how long each mode's step takes.")
@click.option("--gpus", type=int, help="With --parallel auto: choose for so many H200s, not for this machine.")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="WIDTHxHEIGHT",
    help="With --parallel auto: of images to choose for; may be repeated.  [default: the checkpoint's]",
)
@click.option("--device", default="auto", help="With --parallel auto: auto, cuda or cpu.", show_default=True)
@click.option("--dtype", default="bfloat16", help="bfloat16 or float32.", show_default=True)
@click.option("--quantization", default="auto", help="auto, none, fp8 or int8, as for serve.", show_default=True)
@click.option("--variant", help="raw or turbo.")
@memory_options
@click.option(
    "--lora",
    "loras",
    multiple=True,
    metavar="[NAME=]PATH[:STRENGTH]",
    help="A LoRA file to check, too. May be repeated.",
)
@click.option("--lora-lenient", is_flag=True, help="Skip what fits nothing in a LoRA file.")
def info(
    argument: str | None,
    *,
    model: str | None,
    tp: int | None,
    sp: int | None,
    cfg_parallel: bool,
    parallel: str | None,
    gpus: int | None,
    sizes: tuple[str, ...],
    loras: tuple[str, ...],
    offload: str,
    memory_budget: str | None,
    vae_memory: str | None,
    lora_memory: str | None,
    **engine_options: Any,
) -> None:
    """Show what a model holds, in which files and formats, and the bytes of each rank; with --memory-budget or
    --offload also the plan of what lies where, with --parallel auto the time of each mode's step.

    MODEL and the options are as for serve; MODEL may also be a single file of any part of a model, by itself.
    """
    from launcher.cli.describe import check_lora, choose_for_sizes, describe_checkpoint, describe_file, is_lone_file
    from launcher.setup.hub import find_model

    if argument is not None and model is not None:
        raise ArgumentError("the model is given twice, as an argument and as --model", parameter="model")
    memory = memory_settings(
        offload=offload, memory_budget=memory_budget, vae_memory=vae_memory, lora_memory=lora_memory
    )
    choose = is_auto(parallel, tp=tp, sp=sp, cfg_parallel=cfg_parallel)
    for name, given in (("gpus", gpus), ("size", sizes or None)):
        if given is not None and not choose:
            raise ArgumentError(f"{name} says what --parallel auto chooses for, which is not given", parameter=name)
    config = EngineConfig(
        model=find_model(argument or model),
        tp=1 if tp is None else tp,
        sp=1 if sp is None else sp,
        cfg_parallel=cfg_parallel,
        **memory,
        **engine_options,
    )
    if config.model is not None and not loras and is_lone_file(config):
        click.echo(describe_file(Path(config.model)))
        return
    checked = [check_lora(lora, config) for lora in loras]
    if checked and config.memory_budget is not None and config.lora_memory is None:
        config = replace(config, lora_memory=sum(size for _, size in checked))
    lines: tuple[str, ...] = ()
    if choose:
        choice = choose_for_sizes(config, sizes, gpus=gpus)
        config, lines = choice.engine, ("", *choice.lines)
    click.echo("\n".join((describe_checkpoint(config), *lines, *(line for line, _ in checked))))
