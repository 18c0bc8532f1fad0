"""What becomes known of a request before it is taken: the picture that it begins from, and what filters say of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from launcher.filters.checks import Judged
from launcher.filters.protocol import Picture
from launcher.pictures.prepared import PreparedPicture


@dataclass(frozen=True)
class Examined:
    """A request that can be taken, if it fits.

    read, filtered: when its picture had been read and its filters had answered, by the monotonic clock; None where
    there was nothing to wait for.
    """

    picture: PreparedPicture | None = None
    judged: Judged | None = None
    read: float | None = None
    filtered: float | None = None

    def filter_s(self, came: float) -> float:
        """Seconds that the filters took of a request that came then."""
        return 0.0 if self.filtered is None else self.filtered - (came if self.read is None else self.read)


def uploads_of(picture: PreparedPicture, prompt: str) -> Iterator[Picture]:
    """List what a client sent as its filters are to see it: all of it and, where a part is drawn larger, that, too."""
    patch = picture.patch
    if patch is not None and patch.source is not None:
        yield Picture(*picture.answer_size, patch.source, "upload", prompt)
    yield Picture(picture.width, picture.height, picture.pixels.rgb, "upload", prompt)
