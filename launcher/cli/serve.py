"""`krea2 serve`: serves requests until it is stopped."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec
from click.core import ParameterSource

from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, printable
from launcher.auto_mode.measurements import keep_speed
from launcher.auto_mode.prediction import Workload
from launcher.cli.options.command import Command
from launcher.cli.options.engine_options import configure_engine, engine_options, model_argument, table_options
from launcher.cli.options.numbers import NUMBER, WHOLE_NUMBER, WholeRange
from launcher.cli.options.serving import api_key_option, log_format_option, tell_access, tell_unfiltered
from launcher.cli.progress import LoadingProgress
from launcher.cli.stdout import say_path
from launcher.frontend.process import serve_until_stopped
from launcher.hub.names import model_name
from launcher.messages.api_keys import read_keys
from launcher.messages.configs import MAX_WORKERS, HttpConfig
from launcher.messages.limits import Limits
from launcher.messages.rank_messages import Ready
from launcher.setup.configure import MAX_TIMEOUT_S

# Options that are for HTTP alone.
_FOR_HTTP = (
    "host", "port", "api_keys", "api_key_file", "model_names", "any_model", "allowed_hosts", "allowed_origins",
    "public_url", "max_body_bytes", "http_workers",
)  # fmt: skip


@click.command(cls=Command)
@model_argument
@engine_options
@click.option("--host", default="127.0.0.1", help="Where HTTP listens.")
@click.option("--port", type=WHOLE_NUMBER, default=30000, help="0 takes a free one.")
@click.option("--no-http", is_flag=True, help="Serve RPC alone.")
@api_key_option
@click.option(
    "--api-key-file",
    metavar="FILE",
    help="More keys, a line each: NAME KEY, or KEY alone. Read again on SIGHUP.",
)
@click.option(
    "--key-limits",
    metavar="FILE",
    help="How much each key may have, in TOML: see docs/operations.md. Read again on SIGHUP.",
)
@click.option(
    "--served-model-name",
    "model_names",
    multiple=True,
    callback=lambda _context, _option, texts: tuple(name.strip() for text in texts for name in text.split(",")),
    help="What HTTP clients call the model; may be repeated, or have commas.  [default: the checkpoint folder's name]",
)
@click.option("--any-model", is_flag=True, help="Serve HTTP clients the model whatever they call it.")
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Another name that Host may have where --host is loopback, for a reverse proxy; may be repeated.",
)
@click.option(
    "--allow-origin",
    "allowed_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let the web pages of another origin, scheme://host[:port], use the server from a browser; * is all pages; "
    "may be repeated.",
)
@click.option(
    "--public-url",
    metavar="URL",
    help="Where clients find the server through a reverse proxy; links begin with it, and Host may name it.  "
    "[default: as they ask]",
)
@click.option("--max-body-bytes", type=WholeRange(min=1), default=2**20, help="Of an HTTP request.")
@click.option(
    "--http-workers",
    type=WholeRange(1, MAX_WORKERS),
    default=1,
    help="HTTP processes, so that the death of one leaves the others serving.",
)
@table_options("lora_dir")
@click.option("--rpc", metavar="ADDRESS", help="tcp://HOST:PORT or ipc:///PATH.  [default: a socket only you can use]")
@click.option("--rpc-keys", metavar="FOLDER", help="Serve only clients whose key is in there: see krea2 keys.")
@click.option("--insecure", is_flag=True, help="Allow a --host or --rpc that other machines can reach without a key.")
@click.option("--drain-s", type=NUMBER, default=20.0, help="Seconds for what runs to be finished when stopped.")
@click.option(
    "--warm-up",
    "warm_up",
    multiple=True,
    metavar="WIDTHxHEIGHT",
    help="A size to prepare a GPU for besides the checkpoint's default, so that its first image is not slow; may be "
    "repeated.",
)
@log_format_option
def serve(
    *,
    port: int,
    no_http: bool,
    http_workers: int,
    rpc: str | None,
    rpc_keys: str | None,
    api_key_file: str | None,
    key_limits: str | None,
    insecure: bool,
    drain_s: float,
    warm_up: tuple[str, ...],
    log_format: str,
    **options: Any,
) -> int:
    """Serve requests over HTTP and ZMQ RPC until stopped. Prints the addresses once the ranks have loaded.

    MODEL is the same as --model.

    \b
    Examples:
      krea2 serve
      krea2 serve krea/Krea-2-Turbo --tp 4
      krea2 serve path/to/Krea-2-Turbo --memory-budget 16GB --port 8000
    """
    from launcher.cli.server_summary import ServerSummary
    from launcher.http.server_process import HttpServer, listen
    from launcher.logs import configure_logs, end_logs, flush_stderr, log_event, status_stream
    from launcher.requests.check import parse_size

    def workload(model: ModelConfig, limits: Limits) -> Workload:
        return Workload.default(model, *(parse_size("warm_up", size, model, limits) for size in warm_up))

    if no_http:
        _warn_of_unused()
    config, model = configure_engine(options, workload)
    sizes = tuple(parse_size("warm_up", size, model, config.limits) for size in warm_up)
    if not 0 <= drain_s <= MAX_TIMEOUT_S:
        raise ArgumentError.of("drain_s", f"between 0 and {MAX_TIMEOUT_S}", drain_s)
    if rpc is not None:
        from launcher.messages.connections.sockets import check_address

        if check_address(rpc, insecure=insecure, keys=rpc_keys is not None):
            click.echo(f"warning: whoever reaches {rpc} can use this server", err=True)
    key = None
    if rpc_keys is not None:
        from launcher.messages.keys import SERVER_FILE, ServerKeys

        ServerKeys.load(rpc_keys)
        key = os.path.join(rpc_keys, SERVER_FILE)
    if key_limits is not None:
        from launcher.frontend.admission.key_limits import KeyLimits

        KeyLimits.read(key_limits)
    http = http_config = None
    if not no_http:
        names = (
            "host", "api_keys", "model_names", "any_model", "allowed_hosts", "allowed_origins", "public_url",
            "max_body_bytes",
        )  # fmt: skip
        own = {name: options[name] for name in names}
        own["model_names"] = own["model_names"] or (model_name(options["model"] or options["transformer"] or "demo"),)
        if api_key_file is not None:
            own |= {"api_key_file": api_key_file, "file_keys": read_keys(api_key_file)}
        own |= {"audit_log": config.audit_log, "audit_content": config.audit_content}
        http_config = HttpConfig(engine=config.engine, limits=config.limits, log_format=log_format, rpc_key=key, **own)
        tell_access(http_config, insecure=insecure)
        http = HttpServer(http_config, listen(http_config.host, port), workers=http_workers)

    began = time.monotonic()
    config = msgspec.structs.replace(
        config,
        rpc=rpc,
        rpc_keys=rpc_keys,
        key_limits=key_limits,
        drain_s=drain_s,
        warm_up_sizes=sizes,
        hash_files=True,
    )
    configure_logs(log_format)
    tell_unfiltered(config, log_format)
    loading = LoadingProgress(status_stream(), lambda stage, _: log_event("loading", **msgspec.structs.asdict(stage)))

    def print_addresses(address: str, ranks: Sequence[Ready]) -> None:
        loading.close()
        flush_stderr()  # or a terminal has the bar before the first address
        if http is not None:
            click.echo(f"http: {http.url}")
        click.echo(f"rpc: {address}")
        url = None if http is None else http.url
        server = ServerSummary(config, model, http_config, url, address, ranks, time.monotonic() - began)
        if log_format == "json":
            log_event("serving", level="info", **server.fields())
        else:
            lines = server.lines(addresses=sys.stdout is None or not sys.stdout.isatty())
            click.echo("\n".join(map(printable, lines)), err=True)

    try:
        number = serve_until_stopped(
            config,
            on_started=print_addresses,
            on_stage=loading.show,
            is_child=False,
            http=http,
            after_warm_up=keep_speed,
        )
    finally:
        loading.close()
        end_logs()
    return 0 if number is None else 128 + number  # the exit status, as a shell gives it for a signal


def _warn_of_unused() -> None:
    """Say which options on the command line are for HTTP, where there is none."""
    context = click.get_current_context()
    given = [
        option.opts[0]
        for option in context.command.params
        if option.name in _FOR_HTTP and context.get_parameter_source(option.name) == ParameterSource.COMMANDLINE
    ]
    if given:
        click.echo(f"warning: with --no-http there is no use for {', '.join(given)}", err=True)


@click.command(cls=Command)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--client", default="client", help="Whose keys to make.")
def keys(folder: Path, client: str) -> None:
    """Make the keys of a server, if FOLDER has none, and of a client. Prints the file that the client needs."""
    from launcher.messages.keys import make_keys

    say_path(make_keys(folder, client))
