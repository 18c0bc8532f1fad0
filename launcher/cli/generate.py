"""`krea2 generate`: makes images and writes them to files."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import replace

from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, FilterUnavailableError, ModerationBlockedError
from launcher.auto_mode.prediction import Workload
from launcher.cli.explain import ExplainedCommand, Explaining, explain_option
from launcher.cli.options.as_typed import LineError
from launcher.cli.options.engine_options import configure_engine, engine_options
from launcher.cli.options.numbers import WHOLE_NUMBER
from launcher.cli.options.schedule import schedule_fields, schedule_options
from launcher.cli.pictures import Pictures, picture_options
from launcher.cli.progress import GenerateProgress
from launcher.cli.prompts import Asked, collect
from launcher.messages.client_messages import MODERATIONS, Accepted, Generate, Progress
from launcher.messages.limits import Limits
from launcher.messages.message_parts import LoraChoice
from launcher.messages.parameter_names import RANDOM_SEED, describe_seed, draw_seed, in_own_names, usable_seed
from launcher.requests.output_files import DEFAULT, OutputName, check_paths, made_folders, write_file
from launcher.requests.schedule.noise_levels import LoraSchedules
from launcher.setup.launch import launch_frontend

if TYPE_CHECKING:
    from launcher.client.async_client import AsyncClient
    from launcher.requests.check import CheckedRequest

_REQUESTS_AHEAD = 32  # of a call with many prompts, unfinished at a time
_SETTINGS = ("width", "height", "output_compression", "moderation", "user")  # of all prompts


@click.command(cls=ExplainedCommand)
@click.argument("prompts", nargs=-1, metavar="[PROMPT]…")
@click.option("--prompt", multiple=True, help="As PROMPT, whatever it looks like; may be repeated.")
@click.option(
    "--prompts",
    "prompts_file",
    metavar="FILE",
    help="Prompts, a line each, or an object in JSON on each line, with the prompt and other parameters; - is stdin.",
)
@engine_options
@schedule_options
@click.option(
    "--width", type=WHOLE_NUMBER, help="In pixels, rounded up to a multiple of 16.  [default: the checkpoint's]"
)
@click.option(
    "--height", type=WHOLE_NUMBER, help="In pixels, rounded up to a multiple of 16.  [default: the checkpoint's]"
)
@click.option("--size", metavar="WIDTHxHEIGHT", help="Both in one, as 1024x768; a number alone is a square.")
@picture_options
@click.option("--num-images", type=WHOLE_NUMBER, default=1, help="For each prompt.")
@click.option(
    "--seed", type=WHOLE_NUMBER, help="Image k of a call uses seed + k; -1 draws one.  [default: drawn, and reported]"
)
@click.option(
    "--output",
    "-o",
    default=DEFAULT,
    metavar="PATH",
    help="png, jpg or webp, or a folder/. May have {index}, {seed} and {prompt} in it; folders are made.",
)
@click.option(
    "--output-compression", type=WHOLE_NUMBER, help="The quality of jpg and webp: 0 to 100, the best.  [default: high]"
)
@click.option("--no-metadata", is_flag=True, help="Leave prompt, seed and settings out of the file.")
@click.option(
    "--moderation", type=click.Choice(MODERATIONS), default="auto", help="Which thresholds a --filter is to apply."
)
@click.option("--user", help="Whom the images are for, for an --audit-log.")
@explain_option
def generate(
    prompts: tuple[str, ...],
    *,
    prompt: tuple[str, ...],
    prompts_file: str | None,
    size: str | None,
    num_images: int,
    seed: int | None,
    output: str,
    no_metadata: bool,
    explain: str | None,
    **options: Any,
) -> None:
    """Make images and write them to files.

    \b
    Examples:
      krea2 generate "a red heart on a white background"
      krea2 generate "a fox" "an owl" --model krea/Krea-2-Turbo --size 1024x768 -o images/{prompt}.png
      krea2 generate "a red fox" --model krea/Krea-2-Turbo --image fox.jpg --mask mask.png
      krea2 generate --prompts prompts.txt -o images/{index:03}-{seed}.jpg
    """
    asked = collect(prompts, prompt, prompts_file)
    settings = {name: options[name] for name in _SETTINGS} | schedule_fields(options)
    settings |= {"num_images": num_images, "metadata": not no_metadata, "explain": explain is not None}
    pictures = Pictures(options, [each.pictures for each in asked], prompts_file)
    if size is not None:
        given = {"size": size, "width": options["width"], "height": options["height"]}
        try:
            settings |= in_own_names(given)[0]
        except ArgumentError as error:
            raise ArgumentError(error.message.replace(" size,", " --size,"), parameter=error.parameter) from None
    name = OutputName(output)
    names = [each.name_images(name) for each in asked]
    asked_seed = draw_seed() if seed is None or seed == RANDOM_SEED else seed

    def workload(model: ModelConfig, limits: Limits) -> Workload:
        requests = _make_requests(asked, names, pictures, settings, usable_seed(asked_seed, limits), loras=())
        checked = _check(requests, asked, pictures, size, model, limits)
        sizes = dict.fromkeys((each.width, each.height) for each in checked)
        return Workload(tuple(sizes), any(each.guidance > 0 for each in checked))

    config, model = configure_engine(options | {"warm_up": False, "image_input": pictures.loads_encoder}, workload)
    first_seed = usable_seed(asked_seed, config.limits)
    reduced = () if first_seed == asked_seed else (describe_seed(asked_seed, first_seed, config.limits),)
    loaded = {lora.name: lora.strength for lora in config.loras}
    requests = _make_requests(asked, names, pictures, settings, first_seed, loras=tuple(loaded))
    made_for = LoraSchedules()
    if config.loras or config.engine.merge_loras:
        from launcher.requests.lora_files import read_schedules  # which takes long to import, often in vain

        made_for = read_schedules(config, model)
    with closing(pictures):
        checked = _check(requests, asked, pictures, size, model, config.limits, loaded, made_for)
    requests = [replace(request, seed=each.seed) for request, each in zip(requests, checked, strict=True)]
    paths = _name_images(requests, asked, names)
    try:
        check_paths(paths)
    except ArgumentError as error:
        if all(each.output is None for each in asked):
            raise
        raise LineError(error.message, parameter="output") from None  # not of --output, perhaps
    if len(prompts) > 1 and not any(" " in each for each in prompts):
        click.echo(f"note: these are {len(prompts)} prompts; one of several words is to be in quotes", err=True)
    with (
        made_folders(paths),
        closing(GenerateProgress([each.steps for each in checked for _ in range(each.num_images)])) as progress,
    ):
        for warnings in [reduced] + [each.warnings for each in asked] + [each.warnings for each in checked]:
            progress.warn(warnings)  # before anything is loaded
        with (
            closing(Explaining(explain, progress.print)) as explaining,
            launch_frontend(config, on_loading=progress.show_loading) as client,
        ):
            progress.begin()
            if config.engine.memory_budget is not None:
                for line in ("memory plan:", *client.status().memory_plan):
                    progress.print(line)
            for one, request in zip(asked, requests, strict=True):
                if one.parameters.get("seed") == RANDOM_SEED:
                    progress.print(f"seed of {one.where}: {request.seed}")
            ahead = min(_REQUESTS_AHEAD, config.limits.max_queue)
            wheres = [one.where or f"prompt {number}" for number, one in enumerate(asked, 1)]
            making = _make_images(
                client.asynchronous, requests, wheres, pictures, paths, progress, explaining, ahead=ahead
            )
            seeds, held_back = client.run(making)
            progress.end(seeds)
    if held_back:
        raise ModerationBlockedError(f"content filters held back {held_back} of {len(requests)} prompts, as told above")


def _make_requests(
    asked: Sequence[Asked],
    names: Sequence[OutputName],
    pictures: Pictures,
    settings: Mapping[str, Any],
    seed: int,
    *,
    loras: Sequence[str],
) -> list[Generate]:
    """Make a request of each prompt. Images have the seeds from `seed` on, but for those whose line names one."""
    requests: list[Generate] = []
    images = 0
    for index, (each, name) in enumerate(zip(asked, names, strict=True)):
        own = {"loras": tuple(LoraChoice(name=lora) for lora in loras), "seed": seed + images}
        fields: dict[str, Any] = {**own, **settings, **pictures.parameters(index), **each.parameters}
        if each.parameters.get("seed") == RANDOM_SEED:
            fields["seed"] = draw_seed()
        requests.append(Generate(request_id=f"prompt-{index}", prompt=each.prompt, output_format=name.format, **fields))
        images += requests[-1].num_images
    return requests


def _check(
    requests: Sequence[Generate],
    asked: Sequence[Asked],
    pictures: Pictures,
    size: str | None,
    model: ModelConfig,
    limits: Limits,
    loras: Mapping[str, float] | None = None,
    made_for: LoraSchedules | None = None,
) -> list[CheckedRequest]:
    """Check all requests. Raises `ArgumentError`, in the words of whoever said what is wrong."""
    from launcher.requests.check import check

    made_for = LoraSchedules() if made_for is None else made_for
    checked = []
    for index, (request, each) in enumerate(zip(requests, asked, strict=True)):
        try:
            check(request, model, limits, drawn_seed=0, loras=loras, made_for=made_for)  # before a picture is looked at
            picture = pictures.lay_out(index, request, model, limits)
            checked.append(check(request, model, limits, drawn_seed=0, loras=loras, made_for=made_for, picture=picture))
        except ArgumentError as error:
            said = each.explain(error)
            if said is error and size is not None and error.parameter in ("width", "height"):
                said = ArgumentError(f"size {size}: {error.message}", parameter="size")
            raise said from None
    return checked


def _name_images(requests: Sequence[Generate], asked: Sequence[Asked], names: Sequence[OutputName]) -> list[Path]:
    """Name the files of all images, request by request."""
    shared = sum(request.num_images for request, each in zip(requests, asked, strict=True) if each.output is None)
    paths: list[Path] = []
    for request, each, name in zip(requests, asked, names, strict=True):
        for index in range(request.num_images):
            number = len(paths) if each.output is None else index
            one = (shared if each.output is None else request.num_images) == 1
            assert request.seed is not None
            paths.append(
                name.of(
                    index=len(paths),
                    seed=request.seed + index,
                    prompt=request.prompt,
                    number=None if one else number,
                )
            )
    return paths


async def _make_images(
    client: AsyncClient,
    requests: list[Generate],
    wheres: Sequence[str],
    pictures: Pictures,
    paths: list[Path],
    progress: GenerateProgress,
    explaining: Explaining,
    *,
    ahead: int,
) -> tuple[list[int], int]:
    """Send the requests, at most `ahead` at a time, and write every image to its path as it comes.

    Returns the seeds of the images, and of how many requests content filters held some back, which ends no other.
    wheres: what each request is called then.
    """
    from launcher.client.results import ImageFile, Result

    turn = asyncio.Semaphore(ahead)
    made: list[list[int]] = [[] for _ in requests]  # seeds, by request

    async def make(index: int, request: Generate, request_paths: list[Path]) -> None:
        steps_done, accepted = 0, tuple[str, ...]()
        async with turn:
            async for event in client.follow(request, await asyncio.to_thread(pictures.read, index)):
                if isinstance(event, Accepted):
                    accepted = event.warnings
                    progress.warn(accepted)
                elif isinstance(event, Progress):
                    progress.advance(event.step - steps_done)
                    steps_done = event.step
                elif isinstance(event, ImageFile):
                    path = request_paths[event.index]
                    await asyncio.to_thread(write_file, path, event.file)
                    progress.image_done(path, event.computed)
                    made[index].append(event.seed)
                elif isinstance(event, Result):
                    of = f"{wheres[index]}: " if len(requests) > 1 else ""
                    progress.warn(of + each for each in event.warnings if each not in accepted)
                    explaining.add(event)

    async def make_unless_held_back(index: int, request: Generate, request_paths: list[Path]) -> bool:
        try:
            await make(index, request, request_paths)
        except (ModerationBlockedError, FilterUnavailableError) as error:
            if len(requests) == 1:
                raise
            progress.print(f"error: {wheres[index]}: {error.message}")
            return False
        return True

    rest = iter(paths)
    each = (make_unless_held_back(index, one, list(islice(rest, one.num_images))) for index, one in enumerate(requests))
    done = await asyncio.gather(*each)
    return [seed for seeds in made for seed in sorted(seeds)], done.count(False)
