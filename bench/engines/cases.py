"""The cases of a benchmark: square images of one size in one step, or arriving at once."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import ArgumentError


@dataclass(frozen=True)
class Case:
    """Square images in one step: how many, and their side in pixels."""

    images: int
    side: int

    def __str__(self) -> str:
        return f"{self.images}×{self.side}²" if self.images > 1 else f"{self.side}²"


def parse_cases(name: str, text: str, multiple: int) -> list[Case]:
    """Raises `ArgumentError`."""
    cases = []
    for word in text.split(","):
        images, _, side = word.rpartition("x")
        try:
            case = Case(int(images or 1), int(side))
        except ValueError:
            case = Case(0, 0)
        if case.images < 1 or case.side < multiple or case.side % multiple:
            raise ArgumentError.of(name, f"SIDE or IMAGESxSIDE, sides being multiples of {multiple}", text)
        cases.append(case)
    return cases
