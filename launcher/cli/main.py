"""The command line: `krea2 generate`, `krea2 serve`, `krea2 info` and `krea2 keys`.

Files written and what was asked for go to stdout; progress, notes and errors to stderr, an error being one line.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click
import msgspec

import engine
from engine.config.engine_config import EngineConfig
from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, Krea2Error
from launcher.auto_mode.choice import is_auto
from launcher.auto_mode.prediction import Workload
from launcher.cli.convert import convert
from launcher.cli.options import configure_engine, engine_options, memory_options, memory_settings, part_options
from launcher.cli.output_files import numbered_paths, output_format, write_file
from launcher.cli.serve import serve
from launcher.messages.client_messages import Generate, LoraChoice, Progress
from launcher.messages.limits import Limits
from launcher.processes import exit_after, watch_parent
from launcher.ranks import torchrun
from launcher.setup.launch import ORDERLY_S, SIGNALS, launch_frontend

if TYPE_CHECKING:
    from launcher.client.async_client import AsyncClient

_REQUESTS_AHEAD = 32  # of a call with many prompts, sent before the first is done


def run() -> NoReturn:
    """The command line's whole life, from its arguments to its exit code."""
    for number in SIGNALS:
        signal.signal(number, _stop)
    if torchrun.external_ranks() is not None:
        watch_parent(_stop_without_rank)
    code = execute()
    _give_up_unwritable_stdout()
    for number in SIGNALS:  # all is done, and nobody would catch what `_stop` raises while Python ends
        signal.signal(number, signal.SIG_DFL)
    sys.exit(code)


def execute(arguments: Sequence[str] | None = None) -> int:
    """Run a command, by default this process' own. Returns the exit code; an error has been told, in one line."""
    try:
        return commands.main(arguments, prog_name="krea2", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as help_text:
        print(help_text.format_message(), file=sys.stderr)
        return help_text.exit_code
    except click.ClickException as error:
        return _complain(error.format_message(), ArgumentError.exit_code)
    except Krea2Error as error:
        return _complain(error.message, error.exit_code)
    except _Stopped as stopped:
        return 128 + stopped.number
    except Exception as error:
        return _complain(f"{type(error).__name__}: {error}", 1)


@click.group()
@click.version_option(engine.__version__)
def commands() -> None:
    """Generate images with Krea 2, on one GPU or several."""


commands.add_command(serve)
commands.add_command(convert)


@commands.command()
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT…")
@engine_options
@click.option("--steps", type=int, help="Denoise steps.  [default: the checkpoint's]")
@click.option("--guidance", type=float, help="Krea's scale: 0 is off.  [default: the checkpoint's]")
@click.option("--negative-prompt", help="What to steer away from; needs a guidance above 0.")
@click.option("--mu", type=float, help="The schedule's shift, instead of the checkpoint's own.")
@click.option("--width", type=int, help="In pixels, rounded up to a multiple of 16.  [default: the checkpoint's]")
@click.option("--height", type=int, help="In pixels, rounded up to a multiple of 16.  [default: the checkpoint's]")
@click.option("--num-images", type=int, default=1, help="For each prompt.", show_default=True)
@click.option("--seed", type=int, help="Image k of a call uses seed + k.  [default: drawn, and reported]")
@click.option(
    "--output", type=click.Path(path_type=Path), default="krea2.png", help="png, jpg or webp.", show_default=True
)
@click.option("--no-metadata", is_flag=True, help="Leave prompt, seed and settings out of the file.")
def generate(
    prompts: tuple[str, ...],
    *,
    num_images: int,
    seed: int | None,
    output: Path,
    no_metadata: bool,
    steps: int | None,
    guidance: float | None,
    negative_prompt: str | None,
    mu: float | None,
    width: int | None,
    height: int | None,
    **engine_options: Any,
) -> None:
    """Make images and write them to files."""
    from launcher.requests.plan import check

    def workload(model: ModelConfig, limits: Limits) -> Workload:
        request = Generate(
            request_id="size", prompt="", steps=steps, guidance=guidance, mu=mu, width=width, height=height
        )
        checked = check(request, model, limits, drawn_seed=0)
        return Workload(((checked.width, checked.height),), checked.guidance > 0)

    config, model = configure_engine(workload=workload, **engine_options)
    config = msgspec.structs.replace(config, warm_up=False)
    image_format = output_format(output)
    first_seed = secrets.randbelow(2**32) if seed is None else seed
    requests = [
        Generate(
            request_id=f"prompt-{index}",
            prompt=prompt,
            seed=first_seed + index * num_images,
            steps=steps,
            guidance=guidance,
            negative_prompt=negative_prompt,
            mu=mu,
            width=width,
            height=height,
            num_images=num_images,
            output_format=image_format,
            metadata=not no_metadata,
            loras=tuple(LoraChoice(name=lora.name) for lora in config.loras),
        )
        for index, prompt in enumerate(prompts)
    ]
    loras = {lora.name: lora.strength for lora in config.loras}
    checked = [check(request, model, config.limits, drawn_seed=0, loras=loras) for request in requests]
    paths = numbered_paths(output, len(requests) * num_images)
    with (
        _Progress(steps=sum(request.steps * request.num_images for request in checked)) as progress,
        launch_frontend(config, while_starting=progress.show) as client,
    ):
        if config.engine.memory_budget is not None:
            for line in ("memory plan:", *client.status().memory_plan):
                progress.print(line, sys.stderr)
        if seed is None:
            progress.print(f"seed: {first_seed}", sys.stderr)
        ahead = min(_REQUESTS_AHEAD, config.limits.max_queue)
        client.run(_make_images(client.asynchronous, requests, paths, progress, ahead=ahead))


@commands.command()
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


@commands.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--client", default="client", help="Whose keys to make.", show_default=True)
def keys(folder: Path, client: str) -> None:
    """Make the keys of a server, if FOLDER has none, and of a client. Prints the file that the client needs."""
    from launcher.messages.keys import make_keys

    click.echo(make_keys(folder, client))


async def _make_images(
    client: AsyncClient, requests: list[Generate], paths: list[Path], progress: _Progress, *, ahead: int
) -> None:
    """Send the requests, at most `ahead` of those that are done, and write every image as it comes."""
    from launcher.client.results import ImageFile, Result

    turn = asyncio.Semaphore(ahead)
    warnings: set[str] = set()

    async def make(request: Generate, request_paths: list[Path]) -> None:
        steps_done = 0
        async with turn:
            async for event in client.follow(request):
                if isinstance(event, Progress):
                    progress.advance(event.step - steps_done)
                    steps_done = event.step
                elif isinstance(event, ImageFile):
                    path = request_paths[event.index]
                    await asyncio.to_thread(write_file, path, event.file)
                    progress.print(str(path), sys.stdout)
                elif isinstance(event, Result):
                    for warning in event.warnings:
                        if warning not in warnings:
                            progress.print(f"warning: {warning}", sys.stderr)
                    warnings.update(event.warnings)

    await asyncio.gather(
        *(
            make(request, paths[index * request.num_images : (index + 1) * request.num_images])
            for index, request in enumerate(requests)
        )
    )


class _Progress:
    """A bar on stderr if that is a terminal, and nothing otherwise."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._bar: Any = None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self) -> None:
        if sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm  # here, it costs no time that anybody waits for

            self._bar = tqdm(total=self._steps, desc="loading", unit="step", leave=False)

    def advance(self, steps: int) -> None:
        if self._bar is not None:
            self._bar.set_description("denoising", refresh=False)
            self._bar.update(steps)

    def print(self, line: str, stream: TextIO) -> None:
        if self._bar is None:
            print(line, file=stream, flush=True)
        else:
            self._bar.write(line, file=stream)


class _Stopped(BaseException):
    """SIGINT, SIGTERM or SIGHUP: unwinds everything, so that no process and no file is left."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _stop(number: int, _: FrameType | None) -> None:
    for signal_number in SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)
    raise _Stopped(number)


def _stop_without_rank(_: bool) -> None:
    exit_after(ORDERLY_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _complain(message: str, code: int) -> int:
    if sys.stderr is not None:  # print would take stdout instead
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _give_up_unwritable_stdout() -> None:
    """Python would try once more to write what is left at exit, and complain in words of its own."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
