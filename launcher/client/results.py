"""What clients get: the events of a request, and its result, and how these come of replies.

attempt: from 1, one more whenever it starts over.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

import msgspec

from launcher.client.pictures import open_picture, save_pictures, write_html
from launcher.messages import client_messages as messages
from launcher.messages.client_messages import Accepted, Progress
from launcher.messages.message_parts import Computed, MadeFor

if TYPE_CHECKING:
    from PIL import Image as PIL

    from launcher.client.explanation import ResultExplanation


@dataclass(frozen=True)
class Usage:
    """Tokens that were made use of: of text, in prompt and negative prompt as they were written, and of images."""

    text_tokens: int = 0
    image_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """All of them."""
        return self.text_tokens + self.image_tokens


@dataclass(frozen=True)
class ImageFile:
    """One finished image of a request, `width` × `height` pixels, as a file in `format`: png, jpeg or webp.

    computed: which steps were, where some may have been saved or left out: by step, the blocks that each half ran.
    made_for: as in `Result`.
    """

    request_id: str
    attempt: int
    index: int
    seed: int
    width: int
    height: int
    format: str
    file: bytes = field(repr=False)
    prompt: str = ""
    usage: Usage = Usage()
    computed: Computed | None = None
    made_for: MadeFor | None = None

    @cached_property
    def image(self) -> PIL.Image:
        """The image as one of Pillow's, as in `Result.images`."""
        return open_picture(self.file, self.format)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the image to a file, as `Result.save` does; `{index}` is its own. Returns its path."""
        (path,) = save_pictures(path, [self.file], self.format, seeds=[self.seed], prompt=self.prompt, first=self.index)
        return path

    def _repr_html_(self) -> str:
        return write_html([(self.file, self.format, f"seed {self.seed}")])


@dataclass(frozen=True)
class PreviewFile:
    """What image `index` may become, after `step` of its `steps`: a small JPEG file."""

    request_id: str
    attempt: int
    index: int
    step: int
    steps: int
    file: bytes = field(repr=False)

    @cached_property
    def image(self) -> PIL.Image:
        """The preview as one of Pillow's images, whose `info` has its `index`, `step` and `steps`."""
        image = open_picture(self.file, "jpeg")
        image.info |= {"index": self.index, "step": self.step, "steps": self.steps}
        return image

    def _repr_html_(self) -> str:
        return write_html([(self.file, "jpeg", f"step {self.step} of {self.steps}")])


@dataclass(frozen=True, repr=False)
class Result:
    """All images of a request, in order; sizes in pixels, timings in seconds, by stage and in total. explanation: where
    the time went, if the request asked for it with `explain`. usage: tokens of its prompts, and of all its images.
    computed: of each image, which steps were, where some may have been saved or left out. made_for: what LoRAs have
    decided of the steps and the guidance, which the request did not say.

    In a notebook, a result at the end of a cell shows its images.
    """

    request_id: str
    attempt: int
    files: list[bytes]
    seeds: list[int]
    width: int
    height: int
    format: str
    timings: dict[str, float]
    warnings: tuple[str, ...]
    prompt: str = ""
    explanation: ResultExplanation | None = None
    usage: Usage = Usage()
    computed: list[Computed | None] = field(default_factory=list)
    made_for: MadeFor | None = None

    @property
    def seed(self) -> int:
        """The seed of the first image; image i has seed + i."""
        return self.seeds[0]

    @cached_property
    def images(self) -> list[PIL.Image]:
        """The images as Pillow's, opened when first asked for. Their `save` keeps prompt and seed in the file."""
        return [open_picture(file, self.format) for file in self.files]

    @property
    def image(self) -> PIL.Image:
        """The first of the images."""
        return self.images[0]

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Write the images to files, and return their paths: several have _0, _1, … before the suffix.

        The suffix is the format: .png, .jpg or .webp. `{seed}`, `{index}` and `{prompt}` in the path are filled in, and
        a folder, as "images/", is enough. Folders that are not there are made. Each file carries prompt, seed and
        settings, unless `metadata` was False, or the result is of JPEG files, which carry none. Raises `ArgumentError`
        for a path that cannot be, and `Krea2Error` if a file cannot be written.
        """
        return save_pictures(path, self.files, self.format, seeds=self.seeds, prompt=self.prompt)

    def told(self, warnings: tuple[str, ...] = ()) -> dict[str, object]:
        """What the server told of the whole request, by name; warnings: besides its own."""
        told: dict[str, object] = {"timings": self.timings, "warnings": self.warnings + warnings}
        if self.made_for is not None:
            told["made_for"] = msgspec.structs.asdict(self.made_for)
        return told if self.explanation is None else {**told, "explanation": self.explanation.told}

    def __repr__(self) -> str:
        images = "1 image" if len(self.seeds) == 1 else f"{len(self.seeds)} images"
        seeds = f"seed {self.seed}" if len(self.seeds) == 1 else f"seeds {self.seed} to {self.seeds[-1]}"
        took = f", {self.timings['total']:.2f} s" if "total" in self.timings else ""
        warnings = "".join(f"; warning: {shorten(warning, 100, placeholder=' …')}" for warning in self.warnings)
        return f"<Result: {images} of {self.width} × {self.height}, {self.format}, {seeds}{took}{warnings}>"

    def _repr_html_(self) -> str:
        captions = [f"seed {seed}" for seed in self.seeds]
        pictures = zip(self.files, [self.format] * len(self.files), captions, strict=True)
        return write_html(pictures, [f"warning: {warning}" for warning in self.warnings])


Event = Accepted | Progress | PreviewFile | ImageFile | Result


class Following:
    """A request on its way: `hear` its replies in turn until it has `ended`.

    warnings: what `Accepted` and the result have besides their own.
    """

    def __init__(self, request: messages.Generate, warnings: tuple[str, ...] = ()) -> None:
        self._request, self._warnings = request, warnings
        self._sent, self._accepted = time.monotonic(), 0.0
        self._images: dict[int, ImageFile] = {}
        self._told: dict[str, None] = {}  # warnings of images
        self.ended = False

    def hear(self, reply: messages.Reply, file: bytes) -> list[Event]:
        """Make events of a reply and the file behind it: none of an image that was there already."""
        match reply:
            case messages.Accepted() | messages.Progress():
                self._accepted = self._accepted or time.monotonic()
                if self._warnings and isinstance(reply, messages.Accepted):
                    reply = msgspec.structs.replace(reply, warnings=self._warnings + reply.warnings)
                return [reply]
            case messages.Preview() as it:
                return [PreviewFile(it.request_id, it.attempt, it.index, it.step, it.steps, file)]
            case messages.Image() as it if it.index not in self._images:  # it may have been sent again
                image = self._images[it.index] = ImageFile(
                    it.request_id, it.attempt, it.index, it.seed, it.width, it.height, it.output_format, file,
                    self._request.prompt, Usage(it.text_tokens, it.image_tokens), it.computed, it.made_for,
                )  # fmt: skip
                self._told |= dict.fromkeys(it.warnings)
                self.ended = len(self._images) == it.num_images
                return [image, self._result(it)] if self.ended else [image]
        return []

    def _result(self, last: messages.Image) -> Result:
        came = time.monotonic()
        done = [self._images[index] for index in sorted(self._images)]
        explanation = None
        if last.explanation is not None:
            from launcher.client.explanation import ResultExplanation  # which few ask for

            explanation = ResultExplanation.of(
                last.request_id, last.explanation, sent=self._sent, accepted=self._accepted or None, ended=came
            )
        return Result(
            last.request_id, last.attempt, [image.file for image in done], [image.seed for image in done],
            last.width, last.height, last.output_format, last.timings, (*self._warnings, *self._told),
            self._request.prompt, explanation, Usage(last.text_tokens, last.image_tokens * len(done)),
            [image.computed for image in done], last.made_for,
        )  # fmt: skip
