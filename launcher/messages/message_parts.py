"""What messages of clients and of the front-end hold: records of several fields. Sizes are in pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class LoraChoice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A loaded LoRA that an image is to be made with; strength None for the one that it was loaded with."""

    name: str
    strength: float | None = None


class LoadedLora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA that requests may choose. `file` is relative to the folder that clients may load from, or a bare name.

    strength: of requests that give none. family: what kind of file it is, for people. modules: layers, norms and
    modulation tables that it changes. bytes: of each rank.
    """

    name: str
    file: str
    strength: float
    family: str
    modules: int
    bytes: int


class MergedLora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA that is part of the weights, for every image."""

    file: str
    strength: float


class MadeFor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The steps that a LoRA needs, as its file says them, for requests that say none; null for the checkpoint's.

    sigmas: noise levels before mu shifts them, as many as steps. guidance: on Krea's scale.
    """

    steps: int | None = None
    sigmas: tuple[float, ...] | None = None
    mu: float | None = None
    guidance: float | None = None


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far an engine is on its way to images: `starting`, `loading` or `warming up`.

    done, total: bytes of weights that its ranks have read and that they are to read, all of them together, from the
    checkpoint's files; 0 before that is known.
    """

    name: str
    done: int = 0
    total: int = 0

    def describe(self) -> str:
        """Say it in a few words, as `loading 13.5 of 33.1 GB (40 %)`."""
        if self.name != "loading":
            return self.name
        unit, shown = (1e9, "GB") if self.total >= 1e9 else (1e6, "MB")
        read = f"{self.done / unit:.1f} of {self.total / unit:.1f} {shown}"
        return f"loading {read} ({100 * self.done // max(1, self.total)} %)"


class Outpaint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pixels by which a picture grows at each side."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


class CacheChoice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How steps of images may be saved: the fields of `StepCache`, each None for its default.

    threshold, first_blocks and last_blocks are of the method `blocks` alone.
    """

    method: str = "blocks"
    warmup_steps: int | None = None
    max_consecutive: int | None = None
    order: int | None = None
    max_cached: int | None = None
    first_blocks: int | None = None
    last_blocks: int | None = None
    threshold: float | None = None

    @classmethod
    def of(cls, said: str | Mapping[str, Any]) -> str | CacheChoice:
        """Make one of its fields; a name, as `fast`, is what it is."""
        return said if isinstance(said, str) else cls(**said)


class Computed(msgspec.Struct, frozen=True, kw_only=True):
    """What was computed for an image, of whose steps some may have been saved or left out.

    steps: by denoise step, how many of the transformer's blocks each half ran, the prompt's first and then the negative
    prompt's. blocks: how many there are.
    """

    steps: tuple[tuple[int, ...], ...]
    blocks: int

    @property
    def block_evaluations(self) -> int:
        """Count the blocks that were run, over all steps and halves."""
        return sum(map(sum, self.steps))

    @property
    def of(self) -> int:
        """Count the blocks that would have been run with nothing saved or left out."""
        return self.blocks * sum(map(len, self.steps))

    @property
    def saved(self) -> float:
        """The share of these that was not run, from 0 to 1."""
        return 1 - self.block_evaluations / self.of if self.of else 0.0
