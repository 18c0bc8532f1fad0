"""Pictures to be changed by a prompt, of the demo's held-out prompts, and whether the change is right."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from bench.adherence.rates import Case
from demo.captions import COLOURS, SHAPES, Kind, Prompt, prompts
from demo.judge import Seen, SeenObject, look, verdict
from demo.pictures import PALETTE, SIZES, Placed, paint, place_objects

TASKS = ("inpaint", "img2img")
CLEAN = "clean"  # how many outlines are, which is no part of what is right: docs/demo.md says how often they are at all
FEATHER = 8  # pixels that the engine fades over by default
_MARGIN = 4  # pixels around the object that is repainted
_NEAR = 10.0  # pixels, half the radius of most objects: an object that is no farther from a place is there
_PROMPTS_EACH = 4  # of which at least one is of the kind that a task is for
_LEAST_SIDE = 128  # in smaller pictures one of two objects lies where the other one's mask fades


@dataclass(frozen=True)
class Edit:
    """A picture to be drawn from another. case: what it is to be; before: what the other shows; changed: the object of
    both prompts that differs, by its index. masked: whether only that one is drawn anew."""

    case: Case
    before: Prompt
    changed: int
    masked: bool

    def source(self) -> Image.Image:
        """What it is drawn from, RGB, by the renderer."""
        return paint(self.placed, PALETTE[self.before.background], self.case.width, self.case.height)

    @property
    def placed(self) -> list[Placed]:
        """The source's objects, of which a single one without a place is in one of five."""
        return place_objects(self.before, self.case.width, self.case.height, random.Random(self.case.seed))

    def mask(self) -> Image.Image | None:
        """White over the changed object, in a box with a margin; None where all is drawn anew."""
        if not self.masked:
            return None
        at = self.placed[self.changed]
        reach = at.radius + _MARGIN
        mask = Image.new("L", (self.case.width, self.case.height))
        ImageDraw.Draw(mask).rectangle((at.x - reach, at.y - reach, at.x + reach - 1, at.y + reach - 1), fill=255)
        return mask


@dataclass(frozen=True)
class JudgedEdit:
    """What the judge saw in the picture, and what of it is right, by attribute; `CLEAN` is one of them."""

    edit: Edit
    seen: Seen
    verdict: dict[str, bool]

    @property
    def right(self) -> bool:
        return not self.wrong

    @property
    def wrong(self) -> list[str]:
        return [name for name, right in self.verdict.items() if not right and name != CLEAN]


def edits(task: str, count: int, size: tuple[int, int] | None) -> list[Edit]:
    """The first `count` of a fixed sequence. inpaint: one of two objects becomes another; img2img: the colour of the
    only object changes. size: width and height of all; None for those of training in turn, without the smallest."""
    sizes = [each for each in SIZES if min(each) >= _LEAST_SIDE] if size is None else [size]
    fits: Callable[[Prompt], bool] = _has_two_kinds if task == "inpaint" else _has_one_object
    found: list[Edit] = []
    for prompt in filter(fits, prompts(0, count * _PROMPTS_EACH, kept_out=True)):
        seed = len(found)
        source = random.Random(f"{task}/{seed}")
        case = Case(prompt, *sizes[seed % len(sizes)], seed=seed)
        found.append(_repainting(case, source) if task == "inpaint" else _recolouring(case, source))
        if len(found) == count:
            break
    return found


def judge(edit: Edit, picture: Image.Image) -> JudgedEdit:
    """Look at a picture, RGB, that was drawn for an edit. Attributes, in this order:

    kept: with a mask, what lies outside of it and of what fades around it is the source's, to the byte; other: the
    object that was to stay is as it was. new: the changed object is of its colour and shape, and where it was. And
    background, number and, where the prompt states them, size, place and relation, as `demo.judge` has them.
    """
    told, clean = look(picture, clean=False), look(picture)
    stated = verdict(edit.case.prompt, told)
    placed = edit.placed
    wanted, at = edit.case.prompt.objects[edit.changed], placed[edit.changed]
    found: dict[str, bool] = {}
    if (mask := edit.mask()) is not None:
        found["kept"] = _is_kept(edit.source(), picture, mask)
        other = 1 - edit.changed
        found["other"] = _is_there(clean, edit.before.objects[other], placed[other])
    found["new"] = _is_there(told, wanted, at)
    found |= {name: right for name, right in stated.items() if name not in ("colour", "shape")}
    return JudgedEdit(edit, told, {**found, CLEAN: _is_there(clean, wanted, at)})


def _has_two_kinds(prompt: Prompt) -> bool:
    return prompt.second is not None


def _has_one_object(prompt: Prompt) -> bool:
    return len(prompt.objects) == 1


def _repainting(case: Case, source: random.Random) -> Edit:
    """What was one of the two objects, before it is repainted, has another colour and another shape."""
    changed, prompt = source.randrange(2), case.prompt
    new = prompt.objects[changed]
    old = Kind(_other_colour(prompt, source), source.choice([shape for shape in SHAPES if shape != new.shape]))
    before = replace(prompt, first=old) if changed == 0 else replace(prompt, second=old)
    return Edit(case, before, changed, masked=True)


def _recolouring(case: Case, source: random.Random) -> Edit:
    old = Kind(_other_colour(case.prompt, source), case.prompt.first.shape)
    return Edit(case, replace(case.prompt, first=old), 0, masked=False)


def _other_colour(prompt: Prompt, source: random.Random) -> str:
    used = {prompt.background, *(kind.colour for kind in prompt.objects)}
    return source.choice([colour for colour in COLOURS if colour not in used])


def _is_there(seen: Seen, kind: Kind, at: Placed) -> bool:
    """Whether an object of this kind, and no other, is at a place."""
    there = [item for item in seen.objects if _distance(item, at) <= _NEAR]
    return len(there) == 1 and (there[0].colour, there[0].shape) == (kind.colour, kind.shape)


def _distance(item: SeenObject, at: Placed) -> float:
    return float(np.hypot(item.x - at.x, item.y - at.y))


def _is_kept(source: Image.Image, picture: Image.Image, mask: Image.Image) -> bool:
    if picture.size != source.size:
        return False
    touched = mask.filter(ImageFilter.MaxFilter(2 * FEATHER + 1))
    changed = ImageChops.difference(source, picture)
    changed.paste((0, 0, 0), mask=touched)
    return changed.getbbox() is None
