"""A filter that does what prompts and pictures tell it to, in its own process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.filters.protocol import Picture, Prompt, Scores, Unavailable


class StandIn:
    """Finds the category `WORD` in `… finds:WORD=SCORE …`, and does what the first word says. The red of a picture's
    first pixel is its score of `red`. once: the path of a file, with which only the first process has faults."""

    thresholds: Mapping[str, float] = {"nude": 0.8, "red": 0.5}

    def __init__(self, once: str = "", fails: str = "") -> None:
        if fails == "raise":
            raise RuntimeError("there is no such model")
        if fails == "exit":
            os._exit(3)
        self.once = once

    def check_prompts(self, prompts: Sequence[Prompt]) -> Any:
        return [self._scores(prompt.text, prompt.negative or "") for prompt in prompts]

    def check_images(self, pictures: Sequence[Picture]) -> Any:
        return [{**self._scores(picture.prompt), "red": picture.rgb[0] / 255} for picture in pictures]

    def _scores(self, *texts: str) -> Scores:
        words = " ".join(texts).split()
        if words and words[0] in FAULTS and self._is_to_fail():
            FAULTS[words[0]]()
        if words and words[0] == "garbage" and self._is_to_fail():
            return "garbage"  # type: ignore[return-value]
        if words and words[0] == "nan" and self._is_to_fail():
            return {"nude": float("nan")}
        found = (word.removeprefix("finds:").split("=") for word in words if word.startswith("finds:"))
        return {category: float(score) for category, score in found}

    def _is_to_fail(self) -> bool:
        if not self.once:
            return True
        try:
            Path(self.once).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class Marker:
    """Marks pictures by making their first byte 7. fails: raise."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails

    def mark_images(self, pictures: Sequence[Picture]) -> Sequence[bytes]:
        if self.fails:
            raise Unavailable("no marks today")
        return [b"\7" + picture.rgb[1:] for picture in pictures]


class Nothing:
    """Is no filter."""


def _raise(error: Exception) -> None:
    raise error


FAULTS = {
    "dies": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crashes": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exits": lambda: os._exit(0),
    "stops": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "sleeps": lambda: time.sleep(3600),
    "memory": lambda: _raise(MemoryError()),
    "raises": lambda: _raise(RuntimeError("a bug in the filter")),
    "unavailable": lambda: _raise(Unavailable("429")),
}
