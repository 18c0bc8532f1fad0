"""Shows on stderr how far a command is: a bar on a terminal; elsewhere a line now and then of what takes long."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from io import TextIOBase
from pathlib import Path
from typing import Any, TextIO

import click

from engine.errors import printable
from launcher.cli.stdout import say_path
from launcher.client.bars import make_bar
from launcher.messages.message_parts import Computed, Stage
from launcher.requests.schedule.described import describe_evaluations
from launcher.setup.loading_bar import LoadingBar

_SHOWN_SEEDS = 10
LINE_S = 10.0  # between lines about loading where there is no terminal


class LoadingProgress:
    """Shows how an engine starts and its weights are read.

    file: the terminal that has the bar; None where there is none, so that `say` gets a line every `LINE_S` seconds.
    clock: in seconds.
    """

    def __init__(
        self,
        file: TextIO | TextIOBase | None,
        say: Callable[[Stage, float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bar = None if file is None else LoadingBar(file)
        self._say, self._clock = say, clock
        self._began: float | None = None
        self._lines = 0

    def show(self, stage: Stage) -> None:
        """Show what has been read now. To be called every second or two, also if that has not changed."""
        if self._bar is not None:
            self._bar.show(stage)
            return
        now = self._clock()
        self._began = now if self._began is None else self._began
        if now - self._began >= (self._lines + 1) * LINE_S:
            self._lines = int((now - self._began) / LINE_S)
            self._say(stage, now - self._began)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


class GenerateProgress:
    """What `generate` shows: how its engine loads, how far the denoise steps of all its images are, and its lines.

    steps: of each image.
    """

    def __init__(self, steps: Sequence[int], clock: Callable[[], float] = time.monotonic) -> None:
        self._steps, self._images, self._clock = sum(steps), len(steps), clock
        self._done = 0  # images
        self._launched = self._began = clock()
        self._terminal = sys.stderr if sys.stderr is not None and sys.stderr.isatty() else None
        self._loading = LoadingProgress(self._terminal, lambda stage, seconds: self.print(describe(stage, seconds)))
        self._bar: Any = None
        self._warned: set[str] = set()
        self._computed: list[Computed] = []

    def show_loading(self, done: int, total: int, what: str) -> None:
        """Show how far an engine is: see `launch_frontend`."""
        self._loading.show(Stage(name=what, done=done, total=total))

    def begin(self) -> None:
        """Show steps from now on, whose rate counts from here."""
        self._began = self._clock()
        self._loading.close()
        if self._terminal is not None:
            self._bar = make_bar(file=self._terminal, total=self._steps, desc=self._which(), unit="step")

    def end(self, seeds: Sequence[int]) -> None:
        """Say in a last line what was made, from which seeds, and how long that took; and in one more what was saved
        of the images' steps, if that is known."""
        self.close()
        images = "1 image" if len(seeds) == 1 else f"{len(seeds)} images"
        took = f"{self._clock() - self._began:.1f} s, after {self._began - self._launched:.1f} s of loading"
        self.print(f"{images} in {took}; {_shown_seeds(seeds)}" if seeds else f"no image in {took}")
        if self._computed:
            self.print(describe_evaluations(self._computed))

    def close(self) -> None:
        """Take away what is shown."""
        self._loading.close()
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def advance(self, steps: int) -> None:
        """Count steps; fewer than none when an image starts over."""
        if self._bar is not None:
            self._bar.update(steps)

    def image_done(self, path: Path, computed: Computed | None = None) -> None:
        """Print the path of an image to stdout. computed: of its steps, where not all was."""
        with self._aside():
            say_path(path)
        self._done += 1
        self._computed += [] if computed is None else [computed]
        if self._bar is not None:
            self._bar.set_description(self._which(), refresh=False)

    def warn(self, warnings: Iterable[str]) -> None:
        """Print each warning that has not been printed yet to stderr."""
        for warning in warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                self.print(f"warning: {warning}")

    def print(self, line: str) -> None:
        """Print a line to stderr."""
        with self._aside():
            click.echo(printable(line), err=True)

    def _which(self) -> str:
        if self._images == 1:
            return "denoising"
        return f"image {min(self._done + 1, self._images)} of {self._images}"

    def _aside(self) -> AbstractContextManager[None]:
        """Take the bar away meanwhile."""
        return nullcontext() if self._terminal is None or self._bar is None else self._bar.external_write_mode()


class ConvertProgress:
    """Shows how many tensors are written: a bar on a terminal, elsewhere a line each minute, since quantising the real
    model may take many. Leaving its `with` block takes the bar away.

    total: tensors. clock: in seconds.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._clock, self._began = total, clock, clock()
        self._done = self._lines = 0
        shown = sys.stderr is not None and sys.stderr.isatty()
        self._bar = make_bar(file=sys.stderr, total=total, unit="tensor") if shown else None

    def __enter__(self) -> ConvertProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self) -> None:
        """Count a tensor."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        elif (seconds := self._clock() - self._began) >= (self._lines + 1) * 60:
            self._lines = int(seconds / 60)
            click.echo(f"{self._done} of {self._total} tensors, after {seconds:.0f} s", err=True)


def describe(stage: Stage, seconds: float) -> str:
    """Say in a line how far an engine is, after so many seconds."""
    return f"{stage.describe()}, after {seconds:.0f} s"


def _shown_seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds[:_SHOWN_SEEDS]))}{', …' if len(seeds) > _SHOWN_SEEDS else ''}"
