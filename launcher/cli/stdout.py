"""Prints what was asked for to stdout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from engine.errors import Krea2Error


def say(line: str) -> None:
    """Print a line at once. Raises `Krea2Error` if it cannot be written, as to a full disk."""
    with stdout_named():
        click.echo(line)


@contextmanager
def stdout_named() -> Iterator[None]:
    """Name stdout where what is printed in a `with` block cannot be written: the system's error does not."""
    try:
        yield
    except OSError as error:
        raise Krea2Error(f"stdout cannot be written: {error.strerror or error}") from None
