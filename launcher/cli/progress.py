"""Shows on stderr how far a command is."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import click

from engine.errors import printable
from launcher.cli.stdout import say_path


class GenerateProgress:
    """A bar on stderr, of denoise steps, if that is a terminal; nothing otherwise."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._bar: Any = None

    def show(self) -> None:
        if sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm  # here, it costs no time that anybody waits for

            self._bar = tqdm(total=self._steps, desc="loading", unit="step", leave=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, steps: int) -> None:
        if self._bar is not None:
            self._bar.set_description("denoising", refresh=False)
            self._bar.update(steps)

    def print(self, line: str) -> None:
        """To stderr."""
        with self._aside():
            click.echo(printable(line), err=True)

    def print_path(self, path: Path) -> None:
        """To stdout."""
        with self._aside():
            say_path(path)

    def _aside(self) -> AbstractContextManager[None]:
        """Take the bar away meanwhile."""
        return nullcontext() if self._bar is None else self._bar.external_write_mode()
