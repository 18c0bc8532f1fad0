"""The command line: `krea2 generate`, `krea2 serve`, `krea2 info` and `krea2 keys`.

Files written and what was asked for go to stdout; progress, notes and errors to stderr, an error being one line.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

import click
import msgspec

import engine
from engine.config import EngineConfig, ModelConfig
from engine.errors import ArgumentError, Krea2Error
from launcher import torchrun
from launcher.files import numbered_paths, output_format, write_file
from launcher.internal import FrontendConfig, HttpConfig
from launcher.process import exit_after, watch_parent
from launcher.protocol import Generate, Progress
from launcher.spawn import MAX_TIMEOUT_S, ORDERLY_S, SIGNALS, configure, launch_frontend, serve_until_stopped

if TYPE_CHECKING:
    from launcher.async_client import AsyncClient

_REQUESTS_AHEAD = 32  # of a call with many prompts, sent before the first is done

Command = TypeVar("Command", bound=Callable[..., Any])


def run() -> NoReturn:
    """The command line's whole life, from its arguments to its exit code."""
    for number in SIGNALS:
        signal.signal(number, _stop)
    if torchrun.external_ranks() is not None:
        watch_parent(_stop_without_rank)
    try:
        code = commands.main(prog_name="krea2", standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as help_text:
        print(help_text.format_message(), file=sys.stderr)
        code = help_text.exit_code
    except click.ClickException as error:
        code = _complain(error.format_message(), ArgumentError.exit_code)
    except Krea2Error as error:
        code = _complain(error.message, error.exit_code)
    except _Stopped as stopped:
        code = 128 + stopped.number
    except Exception as error:
        code = _complain(f"{type(error).__name__}: {error}", 1)
    _give_up_unwritable_stdout()
    sys.exit(code)


@click.group()
@click.version_option(engine.__version__)
def commands() -> None:
    """Generate images with Krea 2, tensor-parallel over the GPUs of one machine."""


def _engine_options(command: Command) -> Command:
    options = (
        click.option(
            "--model", default="demo", help="Checkpoint folder in the diffusers layout, or demo.", show_default=True
        ),
        click.option("--tp", type=int, help="Ranks: 1, 2 or 4.  [default: 1; under torchrun, all of its processes]"),
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


@commands.command()
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT…")
@_engine_options
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
    from launcher.requests import check

    config, model = _configure(**engine_options)
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
        )
        for index, prompt in enumerate(prompts)
    ]
    checked = [check(request, model, config.limits, drawn_seed=0) for request in requests]
    paths = numbered_paths(output, len(requests) * num_images)
    with (
        _Progress(steps=sum(request.steps * request.num_images for request in checked)) as progress,
        launch_frontend(config, while_starting=progress.show) as client,
    ):
        if seed is None:
            progress.print(f"seed: {first_seed}", sys.stderr)
        ahead = min(_REQUESTS_AHEAD, config.limits.max_queue)
        client.run(_make_images(client.asynchronous, requests, paths, progress, ahead=ahead))


@commands.command()
@_engine_options
@click.option("--host", default="127.0.0.1", help="Where HTTP listens.", show_default=True)
@click.option("--port", type=int, default=30000, help="0 takes a free one.", show_default=True)
@click.option("--no-http", is_flag=True, help="Serve RPC alone.")
@click.option(
    "--api-key",
    "api_keys",
    multiple=True,
    envvar="KREA2_API_KEY",
    help="Ask HTTP clients for this key; may be repeated.  [default: $KREA2_API_KEY, or none]",
)
@click.option(
    "--served-model-name",
    "model_names",
    multiple=True,
    help="What HTTP clients call the model; may be repeated.  [default: the checkpoint folder's name]",
)
@click.option(
    "--max-body-bytes", type=click.IntRange(min=1), default=2**20, help="Of an HTTP request.", show_default=True
)
@click.option("--rpc", metavar="ADDRESS", help="tcp://HOST:PORT or ipc:///PATH.  [default: a socket only you can use]")
@click.option("--rpc-keys", metavar="FOLDER", help="Serve only clients whose key is in there: see krea2 keys.")
@click.option("--insecure", is_flag=True, help="Allow a --host or --rpc that other machines can reach without a key.")
@click.option(
    "--drain-s", type=float, default=20.0, help="Seconds for what runs to be finished when stopped.", show_default=True
)
@click.option(
    "--log-format",
    type=click.Choice(("auto", "json", "text")),
    default="auto",
    help="auto is text on a terminal, json elsewhere.",
    show_default=True,
)
def serve(
    host: str,
    port: int,
    no_http: bool,
    api_keys: tuple[str, ...],
    model_names: tuple[str, ...],
    max_body_bytes: int,
    rpc: str | None,
    rpc_keys: str | None,
    insecure: bool,
    drain_s: float,
    log_format: str,
    **engine_options: Any,
) -> int:
    """Serve requests over HTTP and ZMQ RPC until stopped. Prints the addresses once the engine is ready."""
    from launcher.http_child import HttpServer, check_host, listen
    from launcher.logs import configure_logs

    config, _ = _configure(**engine_options)
    if not 0 <= drain_s <= MAX_TIMEOUT_S:
        raise ArgumentError.of("drain_s", f"between 0 and {MAX_TIMEOUT_S}", drain_s)
    if rpc is not None:
        from launcher.sockets import check_address

        if check_address(rpc, insecure=insecure, keys=rpc_keys is not None):
            click.echo(f"warning: whoever reaches {rpc} can use this server", err=True)
    key = None
    if rpc_keys is not None:
        from launcher.keys import SERVER_FILE, ServerKeys

        ServerKeys.load(rpc_keys)
        key = os.path.join(rpc_keys, SERVER_FILE)
    if log_format == "auto":
        log_format = "text" if sys.stderr is not None and sys.stderr.isatty() else "json"
    configure_logs(log_format)
    http = None
    if not no_http:
        if not all(api_keys):
            raise ArgumentError("api_key must not be empty", parameter="api_key")
        if check_host(host, has_keys=bool(api_keys), insecure=insecure):
            click.echo(f"warning: whoever reaches {host} can use this server", err=True)
        http_config = HttpConfig(
            engine=config.engine,
            limits=config.limits,
            host=host,
            model_names=model_names or (_model_name(config.engine.model),),
            api_keys=api_keys,
            max_body_bytes=max_body_bytes,
            log_format=log_format,
            rpc_key=key,
        )
        http = HttpServer(http_config, listen(host, port))

    def print_addresses(address: str) -> None:
        if http is not None:
            click.echo(f"http: {http.url}")
        click.echo(f"rpc: {address}")

    number = serve_until_stopped(
        msgspec.structs.replace(config, rpc=rpc, rpc_keys=rpc_keys, drain_s=drain_s),
        on_started=print_addresses,
        is_child=False,
        http=http,
    )
    return 0 if number is None else 128 + number


@commands.command()
@click.argument("folder")
@click.option("--tp", type=int, default=1, help="Ranks to split the checkpoint over.", show_default=True)
@click.option("--dtype", default="bfloat16", help="bfloat16 or float32.", show_default=True)
@click.option("--variant", help="raw or turbo.")
def info(folder: str, tp: int, dtype: str, variant: str | None) -> None:
    """Show what a checkpoint folder (or demo) holds, and the bytes of each rank."""
    from launcher.info import describe_checkpoint

    click.echo(describe_checkpoint(EngineConfig(model=folder, tp=tp, dtype=dtype, variant=variant)))


@commands.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--client", default="client", help="Whose keys to make.", show_default=True)
def keys(folder: Path, client: str) -> None:
    """Make the keys of a server, if FOLDER has none, and of a client. Prints the file that the client needs."""
    from launcher.keys import make_keys

    click.echo(make_keys(folder, client))


def _configure(
    *, tp: int | None, limits: tuple[str, ...], start_timeout_s: float, step_timeout_s: float, **engine_options: Any
) -> tuple[FrontendConfig, ModelConfig]:
    """The engine's options, checked as far as that goes without starting it."""
    folder, count = torchrun.external_ranks() or ("", 1)
    if folder and tp not in (None, count):
        raise ArgumentError.of("tp", f"{count}, the number of processes that torchrun started", tp)
    config, model = configure(
        EngineConfig(tp=count if tp is None else tp, **engine_options),
        _parse_limits(limits),
        start_timeout_s=start_timeout_s,
        step_timeout_s=step_timeout_s,
    )
    if model.variant_is_assumed:
        click.echo("note: the checkpoint does not say what it is, Turbo is assumed: see --variant", err=True)
    return msgspec.structs.replace(config, run_folder=folder, external_ranks=bool(folder)), model


def _model_name(model: str) -> str:
    return Path(model).resolve().name or model


def _parse_limits(assignments: tuple[str, ...]) -> dict[str, float]:
    values = {}
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        try:
            values[name] = float(value)
        except ValueError:
            raise ArgumentError.of("limit", "NAME=VALUE with a number", assignment) from None
    return values


async def _make_images(
    client: AsyncClient, requests: list[Generate], paths: list[Path], progress: _Progress, *, ahead: int
) -> None:
    """Send the requests, at most `ahead` of those that are done, and write every image as it comes."""
    from launcher.results import ImageFile, Result

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
                    for warning in set(event.warnings) - warnings:
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
