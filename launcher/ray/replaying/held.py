"""The pictures that a request begins from, while it may be sent to another engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Held:
    """Files that another attempt may need; `on_forgotten` hears how large those are that are no longer held."""

    files: list[bytes]
    on_forgotten: Callable[[int], None]

    def forget(self) -> None:
        """Hold them no longer."""
        files, self.files = self.files, []
        self.on_forgotten(sum(map(len, files)))
