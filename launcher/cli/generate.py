"""`krea2 generate`: makes images and writes them to files."""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, Krea2Error
from launcher.auto_mode.prediction import Workload
from launcher.cli.options.as_typed import Command
from launcher.cli.options.engine_options import configure_engine, engine_options
from launcher.cli.options.numbers import NUMBER, WHOLE_NUMBER
from launcher.cli.progress import GenerateProgress
from launcher.messages.client_messages import Generate, LoraChoice, Progress
from launcher.messages.limits import Limits
from launcher.setup.launch import launch_frontend

if TYPE_CHECKING:
    from launcher.client.async_client import AsyncClient

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
_REQUESTS_AHEAD = 32  # of a call with many prompts, unfinished at a time


@click.command(cls=Command)
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT…")
@engine_options
@click.option("--steps", type=WHOLE_NUMBER, help="Denoise steps.  [default: the checkpoint's]")
@click.option("--guidance", type=NUMBER, help="Krea's scale: 0 is off.  [default: the checkpoint's]")
@click.option("--negative-prompt", help="What to steer away from; needs a guidance above 0.")
@click.option("--mu", type=NUMBER, help="The schedule's shift, instead of the checkpoint's own.")
@click.option(
    "--width", type=WHOLE_NUMBER, help="In pixels, rounded up to a multiple of 16.  [default: the checkpoint's]"
)
@click.option(
    "--height", type=WHOLE_NUMBER, help="In pixels, rounded up to a multiple of 16.  [default: the checkpoint's]"
)
@click.option("--num-images", type=WHOLE_NUMBER, default=1, help="For each prompt.")
@click.option("--seed", type=WHOLE_NUMBER, help="Image k of a call uses seed + k.  [default: drawn, and reported]")
@click.option("--output", type=click.Path(path_type=Path), default="krea2.png", help="png, jpg or webp.")
@click.option("--no-metadata", is_flag=True, help="Leave prompt, seed and settings out of the file.")
def generate(
    prompts: tuple[str, ...], *, num_images: int, seed: int | None, output: Path, no_metadata: bool, **options: Any
) -> None:
    """Make images and write them to files."""
    from launcher.requests.check import check

    settings = {name: options[name] for name in ("steps", "guidance", "negative_prompt", "mu", "width", "height")}

    def workload(model: ModelConfig, limits: Limits) -> Workload:
        request = Generate(request_id="size", prompt="", **settings | {"negative_prompt": None})
        checked = check(request, model, limits, drawn_seed=0)
        return Workload(((checked.width, checked.height),), checked.guidance > 0)

    config, model = configure_engine(options | {"warm_up": False}, workload)
    image_format = output_format(output)
    first_seed = secrets.randbelow(2**32) if seed is None else seed
    requests = [
        Generate(
            request_id=f"prompt-{index}",
            prompt=prompt,
            seed=first_seed + index * num_images,
            num_images=num_images,
            output_format=image_format,
            metadata=not no_metadata,
            loras=tuple(LoraChoice(name=lora.name) for lora in config.loras),
            **settings,
        )
        for index, prompt in enumerate(prompts)
    ]
    loras = {lora.name: lora.strength for lora in config.loras}
    checked = [check(request, model, config.limits, drawn_seed=0, loras=loras) for request in requests]
    paths = numbered_paths(output, len(requests) * num_images)
    with (
        closing(GenerateProgress(sum(request.steps * request.num_images for request in checked))) as progress,
        launch_frontend(config, while_starting=progress.show) as client,
    ):
        if config.engine.memory_budget is not None:
            for line in ("memory plan:", *client.status().memory_plan):
                progress.print(line)
        if seed is None:
            progress.print(f"seed: {first_seed}")
        ahead = min(_REQUESTS_AHEAD, config.limits.max_queue)
        client.run(_make_images(client.asynchronous, requests, paths, progress, ahead=ahead))


async def _make_images(
    client: AsyncClient, requests: list[Generate], paths: list[Path], progress: GenerateProgress, *, ahead: int
) -> None:
    """Send the requests, at most `ahead` at a time, and write every image to its path as it comes."""
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
                    progress.print_path(path)
                elif isinstance(event, Result):
                    for warning in event.warnings:
                        if warning not in warnings:
                            progress.print(f"warning: {warning}")
                    warnings.update(event.warnings)

    rest = iter(paths)
    await asyncio.gather(*(make(request, list(islice(rest, request.num_images))) for request in requests))


def output_format(path: Path) -> str:
    """Tell the image format that a path's suffix asks for. Raises `ArgumentError` if nothing can be written there."""
    image_format = FORMATS.get(path.suffix.lower())
    if image_format is None:
        raise ArgumentError.of("output", f"a path that ends in {', '.join(FORMATS)}", str(path))
    if os.path.isdir(path) or not os.access(path.parent, os.W_OK | os.X_OK):
        raise ArgumentError.of("output", "a file in a folder that exists and can be written", str(path))
    return image_format


def numbered_paths(path: Path, count: int) -> list[Path]:
    """Give `path` for one image, or several with `_0`, `_1`, … before the suffix. Raises `ArgumentError` for names that
    are too long."""
    paths = [path] if count == 1 else [path.with_stem(f"{path.stem}_{index}") for index in range(count)]
    try:
        os.lstat(max(paths, key=lambda path: len(path.name)))
    except FileNotFoundError:
        pass
    except OSError as error:
        allowed = f"a path that can be written ({error.strerror})"
        raise ArgumentError.of("output", allowed, str(path)) from None
    return paths


def write_file(path: Path, data: bytes) -> None:
    """Write a file that is either whole or not there. Raises `Krea2Error` if it cannot be written."""
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:  # which names no file if writing fails, as on a full disk
        raise Krea2Error(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)
