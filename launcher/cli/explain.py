"""`--explain`: where the time of each request went, as a table on stderr, or of all as a trace in a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engine.errors import ArgumentError
from launcher.cli.options.command import Command
from launcher.requests.output_files import check_paths

if TYPE_CHECKING:
    from launcher.client.explanation import ResultExplanation
    from launcher.client.results import Result

_FLAG, _SUFFIX = "--explain", ".json"


class ExplainedCommand(Command):
    """A command with `explain_option`, whose value may be left out: what follows it is one if it ends in .json, and is
    else a prompt or another option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments. Raises click's errors."""
        own = args[: args.index("--")] if "--" in args else args
        for index, arg in enumerate(own):
            if arg == _FLAG and not "".join(own[index + 1 : index + 2]).endswith(_SUFFIX):
                args = [*args[:index], f"{_FLAG}=", *args[index + 1 :]]
        return super().parse_args(ctx, args)


def _check(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if not value:
        return value
    path = Path(value)
    if path.suffix != _SUFFIX or os.path.isdir(path):
        raise ArgumentError.of(_FLAG, f"a file that ends in {_SUFFIX}, or be left without one for a table", value)
    check_paths([path], _FLAG)
    return value


explain_option: Callable[[Any], Any] = click.option(
    _FLAG,
    metavar="[FILE.json]",
    callback=_check,
    help="Where the time went: a table on stderr, or a trace for ui.perfetto.dev in a file.",
)


class Explaining:
    """Shows results' explanations, if that is asked for: each as a table at once, or all in a file at the end. value:
    of the option, None if it is not given. say: shows a line."""

    def __init__(self, value: str | None, say: Callable[[str], None]) -> None:
        self._value, self._say = value, say
        self._explanations: list[ResultExplanation] = []

    def add(self, result: Result) -> None:
        """Show or keep a result's explanation."""
        if result.explanation is not None:
            self._explanations.append(result.explanation)
            if not self._value:
                for line in str(result.explanation).splitlines():
                    self._say(line)

    def close(self) -> None:
        """Write the file, of what there is. Raises `Krea2Error` if it cannot be written."""
        if self._value and self._explanations:
            from launcher.client import trace

            trace.save(self._value, self._explanations)
            self._say(f"trace: {self._value} (open it at https://ui.perfetto.dev)")
