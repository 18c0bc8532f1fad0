"""Shows a person who waits for an engine how far its start is."""

from __future__ import annotations

from io import TextIOBase
from typing import Any, TextIO

from launcher.client.bars import make_bar
from launcher.messages.message_parts import Stage


class LoadingBar:
    """A bar for how an engine starts and its weights are read. Leaving its `with` block takes it away.

    file: the terminal that has it; None for a notebook, or else stderr.
    """

    def __init__(self, file: TextIO | TextIOBase | None = None) -> None:
        self._file = file
        self._bar: Any = None
        self._stage = ""

    def __enter__(self) -> LoadingBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def show_loading(self, done: int, total: int, what: str) -> None:
        """Show how far an engine is: see `launch_frontend`."""
        self.show(Stage(name=what, done=done, total=total))

    def show(self, stage: Stage) -> None:
        """Show what has been read now. To be called every second or two, also if that has not changed."""
        if self._bar is None or stage.name != self._stage:
            self.close()
            self._stage = stage.name
            if stage.name == "loading":
                self._bar = make_bar(file=self._file, total=stage.total, desc="loading", unit="B", unit_scale=True)
            else:  # of which nobody knows how long it takes
                self._bar = make_bar(file=self._file, total=1, desc=stage.name, bar_format="{desc} [{elapsed}]")
        self._bar.update(stage.done - self._bar.n if stage.name == "loading" else 0)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
