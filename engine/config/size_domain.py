"""Reads and applies what model_index.json may say of the sizes that a checkpoint draws well."""

from __future__ import annotations

from dataclasses import dataclass

from engine.config.json_fields import JsonFields


@dataclass(frozen=True)
class SizeDomain:
    """The sides that the checkpoint was made for, in pixels, both ends included, and its own size, which is within."""

    least: int
    most: int
    width: int
    height: int

    def has(self, width: int, height: int) -> bool:
        """Whether the checkpoint was made for images of this size."""
        return self.least <= min(width, height) and max(width, height) <= self.most

    def warning(self, width: int, height: int) -> str | None:
        """Say what an image of this size is outside of; None if it is within."""
        return None if self.has(width, height) else f"{width} × {height} is outside of what {self.described()}"

    def described(self) -> str:
        """Put it into words."""
        return (
            f"the model was made for: sides from {self.least} to {self.most} pixels, by default "
            f"{self.width} × {self.height}"
        )

    def nearest(self, width: int, height: int, multiple: int) -> tuple[int, int]:
        """Give the size within that is nearest in shape to another, of about the checkpoint's own height and width: its
        shorter side is that of the checkpoint's own size, as long as the longer one finds room."""
        shorter = min(self.width, self.height)
        longer = shorter * max(width, height) / min(width, height)
        longer = min(round(longer / multiple) * multiple, self.most // multiple * multiple)
        return (longer, shorter) if width > height else (shorter, longer)


def read_size_domain(index: JsonFields, width: int, height: int) -> SizeDomain | None:
    """Read `good_sides`, the shortest and the longest; None if there are none. width, height: the checkpoint's own.

    Raises `CheckpointError` for a value that does not fit, or that the checkpoint's own size is outside of.
    """
    if not index.has("good_sides"):
        return None
    least, most = index.integers("good_sides", (), least=1, length=2)
    if not least <= min(width, height) <= max(width, height) <= most:
        expected = f"the shortest and the longest side, with the default {width} × {height} between them"
        raise index.error("good_sides", expected, [least, most])
    return SizeDomain(least, most, width, height)
