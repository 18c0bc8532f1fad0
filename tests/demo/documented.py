"""The pictures of the demo that documents, the Makefile and the page's samples ask for with a seed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from demo.captions import parse
from tests.launcher.http.page.samples import read_samples

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Example:
    """One picture. size: None for the model's own."""

    prompt: str
    seed: int
    size: tuple[int, int] | None = None
    lora: str | None = None


def examples() -> list[Example]:
    """All of them, once each: of commands, of HTTP bodies and of calls in Python whose prompt is of the grammar. Not
    those that are drawn from other pictures, which `test_pictures_document.py` has."""
    found = {Example(prompt, seed): None for prompt, seed in read_samples()}
    for file in (ROOT / "Makefile", ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = file.read_text().replace("\\\n", " ")
        for kind in (_commands, _bodies, _calls):
            found.update(dict.fromkeys(kind(text)))
    return [example for example in found if parse(example.prompt) is not None]


def _commands(text: str) -> Iterator[Example]:
    """Of `krea2 generate`: image k has the seed plus k."""
    for line in re.findall(r"^.*\bgenerate (?:--prompt )?\".* --seed \d.*$", text, re.MULTILINE):
        words = shlex.split(line.partition("generate ")[2], comments=True)
        prompts = [word for word in words if " " in word]
        given = {name: value for name, value in pairwise(words) if name.startswith("--")}
        if "--image" in given:
            continue
        size = (int(given["--width"]), int(given["--height"])) if "--width" in given else None
        images = int(given.get("--num-images", 1))
        for index, prompt in enumerate(prompt for prompt in prompts for _ in range(images)):
            yield Example(prompt, int(given["--seed"]) + index, size, given.get("--lora"))


def _bodies(text: str) -> Iterator[Example]:
    """Of `POST /v1/images/generations`."""
    for body in map(json.loads, re.findall(r"-d '(\{\"prompt\".*?\})'", text)):
        width, _, height = body.get("size", "").partition("x")
        for index in range(body.get("n", 1) if body.get("seed", -1) >= 0 else 0):
            yield Example(body["prompt"], body["seed"] + index, (int(width), int(height)) if height else None)


def _calls(text: str) -> Iterator[Example]:
    """Of `generate` and `stream` in Python."""
    for prompt, more in re.findall(r"\.(?:generate|stream)\((?:prompt=)?\"([^\"]+)\"(.*)", text):
        seed, images = re.search(r"\bseed\"?[=:] ?(\d+)", more), re.search(r"\b(?:n|num_images)=(\d+)", more)
        for index in range((int(images[1]) if images else 1) if seed and "image=" not in more else 0):
            lora = "demo-outlined" if "loras=" in more else None
            yield Example(prompt, int(seed[1]) + index if seed else 0, lora=lora)
