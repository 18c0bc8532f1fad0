"""Filters that block a word, and what is on a red ground, and keep all that they were shown, in their own process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from launcher.filters.protocol import Picture, Prompt, Scores

PLANTED, WORD = f"python:{__name__}:Planted", f"python:{__name__}:Word"
FORBIDDEN = "forbidden"  # word
BLOCKED_FROM = 0.3


class Planted:
    """Scores how much redder than anything else the upper and lower edge of a picture are. seen: a folder for what it
    was shown."""

    thresholds: Mapping[str, float] = {"red": BLOCKED_FROM}

    def __init__(self, seen: str) -> None:
        self._seen, self._count = Path(seen), 0

    def check_images(self, pictures: Sequence[Picture]) -> Sequence[Scores]:
        """See the class."""
        return [{"red": self._look(picture)} for picture in pictures]

    def _look(self, picture: Picture) -> float:
        rgb = np.frombuffer(picture.rgb, np.uint8).reshape(picture.height, picture.width, 3)
        redness = redness_of(rgb)
        self._count += 1
        name = f"{picture.kind}-{os.getpid()}-{self._count}"
        with open(self._seen / f".{name}", "wb") as file:
            np.savez(file, rgb=rgb, redness=redness, kind=picture.kind, prompt=picture.prompt)
        os.replace(self._seen / f".{name}", self._seen / f"{name}.npz")
        return redness


class Word:
    """Finds the forbidden word."""

    def check_prompts(self, prompts: Sequence[Prompt]) -> Sequence[Scores]:
        """See the class."""
        return [{"word": 1.0} if FORBIDDEN in f"{prompt.text} {prompt.negative}" else {} for prompt in prompts]


def redness_of(rgb: np.ndarray[Any, Any]) -> float:
    """Score a picture of (height, width, 3), 0 to 1."""
    red, green, blue = np.concatenate((rgb[0], rgb[-1])).mean(axis=0)
    return max(0.0, float(red - max(green, blue)) / 255)


class Seen(NamedTuple):
    """A picture that the filter was shown."""

    rgb: np.ndarray[Any, Any]
    kind: str
    prompt: str
    blocked: bool


def seen_in(folder: Path) -> list[Seen]:
    """List what the filter was shown."""
    shown = []
    for file in folder.glob("*.npz"):
        with np.load(file) as each:
            blocked = float(each["redness"]) >= BLOCKED_FROM
            shown.append(Seen(each["rgb"], str(each["kind"]), str(each["prompt"]), blocked))
    return shown
