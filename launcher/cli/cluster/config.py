"""`krea2 cluster config`: writes and checks a config for Ray Serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from engine.errors import ArgumentError, printable
from launcher.cli.cluster.checking import Checked, check_arguments, check_file
from launcher.cli.cluster.document import write
from launcher.cli.cluster.needs import need_ray
from launcher.cli.cluster.options import ClusterCommand, arguments_of, cluster_options
from launcher.cli.options.engine_options import model_argument
from launcher.cli.options.numbers import WHOLE_NUMBER
from launcher.cli.stdout import say

_NEXT = """\
next, on the head of the Ray cluster, with RAY_AUTH_MODE=token and its token (docs/many-machines.md):
  serve deploy FILE     starts it, or brings what runs to what the file says now, a few engines at a time
  serve status          says RUNNING once all engines have loaded, and why one did not start
  serve shutdown -y     ends it, and cuts what runs: deploy the file with `applications: []` first, which lets that end
"""


@click.command("config", cls=ClusterCommand)
@model_argument
@cluster_options()
@click.option(
    "--replicas", default="1", metavar="N|MIN:MAX", help="How many engines; MIN:MAX is as many as there is work for."
)
@click.option("--port", type=WHOLE_NUMBER, default=30000, help="Where Serve's proxies listen.")
@click.option(
    "--check",
    "checked",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Say what is wrong with a config, and write none.",
)
@click.pass_context
def config(context: click.Context, /, *, port: int, checked: Path | None, **options: Any) -> None:
    """Write a config for many engines on a Ray cluster to stdout, to be deployed with Ray's own `serve deploy`.

    MODEL is the same as --model, a path that is the same on all nodes. What is here is checked as krea2 serve does.

    \b
    Examples:
      krea2 cluster config /models/Krea-2-Turbo --tp 4 --replicas 1:50 > krea2.yaml
      krea2 cluster config /models/Krea-2-Turbo --lora ink=/models/ink.safetensors --host 0.0.0.0 > krea2.yaml
      krea2 cluster config --check krea2.yaml
    """
    if checked is not None:
        _refuse_others(context)
        need_ray("krea2 cluster config --check")
        _tell(check_file(checked))
        click.echo(printable(f"{checked} is right"), err=True)
        return
    if not 1 <= port <= 65535:
        raise ArgumentError.of("port", "between 1 and 65535", port)
    args = arguments_of(options)
    found = check_arguments(args)
    host = options["host"]
    from launcher.messages.connections.sockets import is_loopback  # with zmq, which no other command is to wait for

    say(write(args, host=host, port=port).rstrip("\n"))
    _tell(found)
    if not (is_loopback(host) or options["insecure"] or options["api_key_file"]):
        _note(f"other machines reach {host}: no ingress starts on a node whose Ray has no KREA2_API_KEY")
    click.echo(_NEXT, err=True, nl=False)


def _refuse_others(context: click.Context) -> None:
    """A file says all by itself."""
    given = [
        option.opts[0]
        for option in context.command.params
        if option.name != "checked" and context.get_parameter_source(str(option.name)) == ParameterSource.COMMANDLINE
    ]
    if given:
        raise ArgumentError(f"with --check there is no use for {', '.join(given)}: the file says it")


def _tell(found: Checked) -> None:
    for warning in found.warnings:
        click.echo(printable(f"warning: {warning}"), err=True)
    for note in found.notes:
        _note(note)


def _note(text: str) -> None:
    click.echo(printable(f"note: {text}"), err=True)
