"""Goes on with the next variant, whatever happens to one of them."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from bench.measure.lost import DeviceLost, raise_if_lost
from bench.survive import Attempts


class Tries:
    """Compares one variant after the other, whatever happens to one of them."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self._attempts = Attempts()

    @contextmanager
    def telling(self, what: str) -> Iterator[None]:
        """Tell what fails in here, and go on after it. Raises `DeviceLost`."""
        try:
            yield
        except DeviceLost:
            raise
        except Exception as error:
            print(f"FAILED: {what}: {traceback.format_exc()}", flush=True)
            self.failures.append(what)
            raise_if_lost(error)

    def begin(self, what: str) -> bool:
        """Whether no earlier process began it."""
        return self._attempts.begin(what)
