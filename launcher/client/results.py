"""What clients get: the events of a request, and its result. attempt: from 1, one more whenever it starts over."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from launcher.messages.client_messages import Accepted, Progress

if TYPE_CHECKING:
    from PIL import Image as PIL


@dataclass(frozen=True)
class ImageFile:
    """One finished image of a request, `width` × `height` pixels, as a file in `format`: png, jpeg or webp."""

    request_id: str
    attempt: int
    index: int
    seed: int
    width: int
    height: int
    format: str
    file: bytes = field(repr=False)


@dataclass(frozen=True)
class PreviewFile:
    """What image `index` may become, after `step` of its `steps`: a small JPEG file."""

    request_id: str
    attempt: int
    index: int
    step: int
    steps: int
    file: bytes = field(repr=False)


@dataclass(frozen=True)
class Result:
    """All images of a request, in order; sizes in pixels, timings in seconds, by stage and in total."""

    request_id: str
    attempt: int
    files: list[bytes] = field(repr=False)
    seeds: list[int]
    width: int
    height: int
    format: str
    timings: dict[str, float]
    warnings: tuple[str, ...]

    @property
    def seed(self) -> int:
        """The seed of the first image; image i has seed + i."""
        return self.seeds[0]

    @cached_property
    def images(self) -> list[PIL.Image]:
        """The images as Pillow's, opened when first asked for."""
        from PIL import Image as PIL

        return [PIL.open(io.BytesIO(file)) for file in self.files]


Event = Accepted | Progress | PreviewFile | ImageFile | Result
