"""`krea2 info`: shows what a model holds and what it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from engine.config.engine_config import PARTS
from engine.errors import ArgumentError
from launcher.auto_mode.choice import is_auto
from launcher.cli.options import MEMORY_OPTIONS, given, table_options
from launcher.setup.configure import engine_config


@click.command()
@click.argument("argument", metavar="[MODEL]", required=False)
@table_options("model", help="The same as MODEL.")
@table_options(*PARTS)
@table_options("tp", help="Ranks to split the checkpoint over.  [default: 1]")
@table_options("sp", help="Ranks to split the tokens of a step over.  [default: 1]")
@table_options("cfg_parallel", help="Twice as many ranks, for the two halves of guided images.")
@table_options("parallel", help="What would be chosen of these, and how long each mode's step takes.")
@click.option("--gpus", type=int, help="With --parallel auto: choose for so many H200s, not for this machine.")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="WIDTHxHEIGHT",
    help="With --parallel auto: of images to choose for; may be repeated.  [default: the checkpoint's]",
)
@table_options("device", help="With --parallel auto: auto, cuda or cpu.")
@table_options("dtype", default="bfloat16", help="bfloat16 or float32.")
@table_options("quantization", help="auto, none, fp8 or int8, as for serve.")
@table_options("variant", help="raw or turbo.")
@table_options(*MEMORY_OPTIONS)
@table_options("loras", help="A LoRA file to check, too. May be repeated.")
@table_options("lora_lenient", help="Skip what fits nothing in a LoRA file.")
def info(
    argument: str | None, *, gpus: int | None, sizes: tuple[str, ...], loras: tuple[str, ...], **engine_options: Any
) -> None:
    """Show what a model holds, in which files and formats, and the bytes of each rank; with --memory-budget or
    --offload also the plan of what lies where, with --parallel auto the time of each mode's step.

    MODEL and the options are as for serve; MODEL may also be a single file of any part of a model, by itself.
    """
    from launcher.cli.describe import check_lora, choose_for_sizes, describe_checkpoint, describe_file, is_lone_file
    from launcher.setup.hub import find_model

    options = given(engine_options)
    if argument is not None and "model" in options:
        raise ArgumentError("the model is given twice, as an argument and as --model", parameter="model")
    choose = is_auto(options)
    for name, value in (("gpus", gpus), ("size", sizes or None)):
        if value is not None and not choose:
            raise ArgumentError(f"{name} says what --parallel auto chooses for, which is not given", parameter=name)
    config = engine_config(options | {"model": find_model(argument or options.get("model"))})
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
