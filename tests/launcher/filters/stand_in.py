"""A filter that does what prompts and pictures tell it to, in its own process."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.filters.protocol import Picture, Prompt, Unavailable

STAND_IN = f"python:{__name__}:StandIn"
IMAGES = f"python:{__name__}:ImageFaults"
MARKER = f"python:{__name__}:Marker"


class StandIn:
    """Finds the category `WORD` in `… finds:WORD=SCORE …`, and has the fault that the first word says, if it does. The
    red of a picture's first pixel is its score of `red`.

    faults: a folder that has a file for each fault that has begun; most: of these. gone: the path of a file whose
    presence keeps it from being made. fails: how it is never made.
    """

    thresholds: Mapping[str, float] = {"nude": 0.8, "red": 0.5}

    def __init__(self, faults: str = "", most: str = "1000", gone: str = "", fails: str = "") -> None:
        if fails == "raise" or (gone and os.path.exists(gone)):
            raise RuntimeError("there is no such model")
        if fails == "exit":
            os._exit(3)
        self.faults, self.most = faults, int(most)

    def check_prompts(self, prompts: Sequence[Prompt]) -> Any:
        """See the class."""
        return [self._scores(prompt.text, prompt.negative or "") for prompt in prompts]

    def check_images(self, pictures: Sequence[Picture]) -> Any:
        """See the class."""
        return [{**self._scores(picture.prompt), "red": picture.rgb[0] / 255} for picture in pictures]

    def _scores(self, *texts: str) -> Any:
        words = " ".join(texts).split()
        if words and words[0] in FAULTS and len(begun := os.listdir(self.faults)) < self.most:
            Path(self.faults, str(len(begun))).touch()
            return FAULTS[words[0]]()
        found = (word.removeprefix("finds:").split("=") for word in words if word.startswith("finds:"))
        return {category: float(score) for category, score in found}


class ImageFaults(StandIn):
    """Has the faults of what begins with `image`, over pictures."""

    def check_images(self, pictures: Sequence[Picture]) -> Any:
        """See the class."""
        return [self._scores(picture.prompt.removeprefix("image ")) for picture in pictures]


class Marker:
    """Marks pictures by making their first byte 7. fails: it says that it cannot."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails

    def mark_images(self, pictures: Sequence[Picture]) -> Sequence[bytes]:
        """See the class."""
        if self.fails:
            raise Unavailable("no marks today")
        return [b"\7" + picture.rgb[1:] for picture in pictures]


class Nothing:
    """Is no filter."""


def _raise(error: Exception) -> None:
    raise error


def _write_to_sockets() -> None:
    """Answer in place of the process, with what is no message."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                os.write(int(name), b"\xff" * 100)
        except OSError:
            continue


FAULTS: dict[str, Callable[[], Any]] = {
    "dies": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crashes": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exits": lambda: os._exit(0),
    "stops": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "sleeps": lambda: time.sleep(3600),
    "memory": lambda: _raise(MemoryError()),
    "raises": lambda: _raise(RuntimeError("a bug in the filter")),
    "unavailable": lambda: _raise(Unavailable("429")),
    "garbage": lambda: "garbage",
    "nan": lambda: {"nude": float("nan")},
    "noise": _write_to_sockets,
}
HANG = ("stops", "sleeps")
