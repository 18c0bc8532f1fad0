"""Prints what was asked for to stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from engine.errors import Krea2Error, printable


def say(lines: str) -> None:
    """Print lines at once, with what names in them may do to a terminal escaped.

    Raises `Krea2Error` if they cannot be written, as to a full disk.
    """
    with stdout_named():
        click.echo("\n".join(map(printable, lines.split("\n"))))


def say_path(path: Path) -> None:
    """Print the path of a written file: escaped to a terminal, as it is to a program. Raises what `say` does."""
    with stdout_named():
        shown = sys.stdout is not None and sys.stdout.isatty()
        click.echo(printable(str(path)) if shown else os.fsencode(path))


@contextmanager
def stdout_named() -> Iterator[None]:
    """Name stdout where what is printed in a `with` block cannot be written: the system's error does not."""
    try:
        yield
    except OSError as error:
        raise Krea2Error(f"stdout cannot be written: {error.strerror or error}") from None
