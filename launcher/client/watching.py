"""Tells those who wait for a request how far it is: a callback, and a person by a bar."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.errors import ArgumentError, printable
from launcher.client.bars import make_bar
from launcher.client.results import Event, PreviewFile, Result
from launcher.messages.client_messages import Accepted, Progress

if TYPE_CHECKING:
    from PIL import Image as PIL

Callback = Callable[[int, int, "PIL.Image | None"], object]  # step, steps, preview


def check_callback(callback: Callback | None, *, may_be_async: bool = True) -> None:
    """Raise `ArgumentError` for what cannot be called as a callback is."""
    if callback is None:
        return
    allowed = "a function that is called as callback(step, steps, preview)"
    if not callable(callback):
        raise ArgumentError.of("callback", allowed, callback)
    if inspect.iscoroutinefunction(callback) and not may_be_async:
        raise ArgumentError("callback must be no coroutine function, which AsyncClient takes", parameter="callback")
    try:
        signature = inspect.signature(callback)
    except ValueError:  # as of some that are written in C
        return
    try:
        signature.bind(0, 1, None)
    except TypeError:
        name = getattr(callback, "__name__", callback)
        raise ArgumentError(f"callback must be {allowed}, got {name}{signature}", parameter="callback") from None


class Watching:
    """Calls the callback, and shows the bar if it is to, for the events of one request."""

    def __init__(self, callback: Callback | None, show: bool) -> None:
        check_callback(callback)
        self._callback = callback
        self._bar = make_bar(desc="waiting", unit="step") if show else None
        self._progress: Progress | None = None
        self._preview: PIL.Image | None = None  # that the callback has not had
        self._warned: set[str] = set()

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def hear(self, event: Event) -> object:
        """Tell of an event. Returns what the callback does, to be awaited, perhaps."""
        if self._bar is not None:
            self._show(event)
        if self._callback is None:
            return None
        if isinstance(event, Progress):
            self._progress = event
        elif isinstance(event, PreviewFile):
            self._preview = event.image
        if self._progress is None or not isinstance(event, Progress | PreviewFile):
            return None  # a preview that has overtaken the first progress waits for it
        preview, self._preview = self._preview, None
        return self._callback(self._progress.step, self._progress.steps, preview)

    def _show(self, event: Event) -> None:
        assert self._bar is not None
        if isinstance(event, Accepted | Result):
            for warning in event.warnings:
                if warning not in self._warned:
                    self._bar.write(printable(f"warning: {warning}"), file=sys.stderr)
            self._warned |= {*event.warnings}
        if isinstance(event, Accepted) and event.position:
            self._bar.set_description_str(f"behind {event.position} images")
        elif isinstance(event, Progress):
            if self._bar.total != event.steps or event.step < self._bar.n:  # it begins, or begins anew
                self._bar.reset(total=event.steps)
            self._bar.set_description_str("decoding" if event.step == event.steps else "denoising", refresh=False)
            self._bar.update(event.step - self._bar.n)
