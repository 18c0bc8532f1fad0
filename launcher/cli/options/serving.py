"""What the commands that serve have in common: options, and who they say can use them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from engine.errors import printable
from launcher.licence.notice import told_unfiltered
from launcher.messages.api_keys import others_can_read

if TYPE_CHECKING:
    from launcher.messages.configs import FrontendConfig, HttpConfig

api_key_option = click.option(
    "--api-key",
    "api_keys",
    multiple=True,
    envvar="KREA2_API_KEY",
    help="Ask HTTP clients for this key; may be repeated.  [default: $KREA2_API_KEY, or none]",
)


def _log_format(_context: click.Context, _option: click.Parameter, value: str) -> str:
    if value != "auto":
        return value
    return "text" if sys.stderr is not None and sys.stderr.isatty() else "json"


log_format_option = click.option(
    "--log-format",
    type=click.Choice(("auto", "json", "text")),
    default="auto",
    callback=_log_format,
    help="auto is text on a terminal, json elsewhere.",
)


def tell_access(config: HttpConfig, *, insecure: bool) -> None:
    """Warn on stderr of whoever can use a server, or its keys, unasked. Raises what `check_http` does."""
    from launcher.http.server_process import check_http

    if config.api_key_file is not None and others_can_read(config.api_key_file):
        click.echo(f"warning: every user of this machine can read {config.api_key_file}", err=True)
    if check_http(config, insecure=insecure):
        click.echo(f"warning: whoever reaches {config.host} can use this server", err=True)
    if "*" in config.allowed_origins and not (config.api_keys or config.file_keys):
        click.echo("warning: every web page that is open in a browser near this server can use it", err=True)


def tell_unfiltered(config: FrontendConfig, log_format: str) -> None:
    """Warn that weights whose licence asks for a content filter are served without one: in the log, or on stderr."""
    from launcher.logs import log_event

    told = told_unfiltered(config.engine.demo, config.filters)
    if told is None:
        return
    if log_format == "json":
        log_event("no content filter", level="warning", message=told)
    else:
        click.echo(printable(f"warning: {told}"), err=True)
