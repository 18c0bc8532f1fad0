"""The judge of the demo's pictures, on the renderer's own and on wrong ones."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from demo.captions import COLOURS, PLACES, RELATIONS, SHAPES, SIZES, Kind, Prompt, random_prompt
from demo.judge import ATTRIBUTES, Seen, SeenObject, components, look, verdict
from demo.pictures import PALETTE, Placed, draw, paint
from demo.pictures import SIZES as PICTURE_SIZES
from tests.demo.judge.judged import BLUE, RED, RED_CIRCLE, asked, wrong


def seen(*objects: SeenObject) -> Seen:
    return Seen("blue", objects, 200, 100)


def misjudged(count: int, seed: int) -> list[str]:
    """The prompts, of `count` random ones at all sizes, whose pictures are judged wrong."""
    source = random.Random(seed)
    prompts = [random_prompt(source) for _ in range(count)]
    return [
        f"{prompt.text()} at {width} × {height}"
        for i, prompt in enumerate(prompts)
        for width, height in [PICTURE_SIZES[i % len(PICTURE_SIZES)]]
        if wrong(prompt, draw(prompt, width, height, source))
    ]


def test_pictures_of_the_renderer_are_right() -> None:
    assert misjudged(100, seed=0) == []


@pytest.mark.slow
def test_of_2000_pictures_of_the_renderer_at_most_10_are_judged_wrong() -> None:
    assert len(misjudged(2000, seed=1)) <= 10


def another(source: random.Random, choices: tuple[str, ...], *taken: str) -> str:
    return source.choice([choice for choice in choices if choice not in taken])


def changed(prompt: Prompt, attribute: str, source: random.Random) -> Prompt:
    """The prompt with this attribute, which it states, changed alone."""
    kinds = [kind for kind in (prompt.first, prompt.second) if kind is not None]
    if attribute in ("colour", "shape"):
        choices = COLOURS if attribute == "colour" else SHAPES
        taken = [prompt.background, *(getattr(kind, attribute) for kind in kinds)]
        which = source.randrange(len(kinds))
        kinds[which] = replace(kinds[which], **{attribute: another(source, choices, *taken)})
        return replace(prompt, first=kinds[0], second=kinds[1] if len(kinds) == 2 else None)
    if attribute == "background":
        return replace(prompt, background=another(source, COLOURS, prompt.background, *(kind.colour for kind in kinds)))
    if attribute == "number":
        return replace(prompt, count=5 - prompt.count if prompt.count > 1 else 2)
    choices = {"size": SIZES, "place": PLACES, "relation": RELATIONS}[attribute]
    return replace(prompt, **{attribute: another(source, choices, getattr(prompt, attribute))})


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_what_is_changed_alone_is_alone_wrong(attribute: str) -> None:
    source = random.Random(attribute)
    tried = 0
    while tried < 8:
        prompt = random_prompt(source)
        if attribute not in verdict(prompt, seen()):
            continue
        if attribute == "number" and (prompt.second or prompt.size or prompt.place):
            continue
        image = draw(changed(prompt, attribute, source), *source.choice(PICTURE_SIZES), source)
        assert wrong(prompt, image) == {attribute}, prompt.text()
        tried += 1


def test_kinds_that_are_swapped_are_a_wrong_relation() -> None:
    source = random.Random(0)
    prompt = asked("a red circle above a green star on a white background")
    for text in ("a green star above a red circle", "a green circle above a red star"):
        assert wrong(prompt, draw(asked(f"{text} on a white background"), 128, 128, source)) == {"relation"}


def test_only_what_the_prompt_states_is_judged() -> None:
    source = random.Random(0)
    stated = {
        "a red circle on a blue background": set(),
        "a large red circle on a blue background": {"size"},
        "a small red circle at the top on a blue background": {"size", "place"},
        "two red circles on a blue background": set(),
        "a red circle below a green ring on a blue background": {"relation"},
    }
    for text, more in stated.items():
        right = verdict(asked(text), look(draw(asked(text), 96, 128, source)))
        assert right.keys() == {"background", "number", "colour", "shape"} | more
        assert all(right.values())


def test_a_relation_holds_along_its_direction_and_not_on_the_diagonal() -> None:
    prompt = asked("a red circle left of a green star on a blue background")
    star = SeenObject("green", "star", 120, 50, 15)
    places = {(60, 50): True, (60, 75): True, (60, 85): False, (150, 50): False, (120, 20): False}
    for (x, y), right in places.items():
        assert verdict(prompt, seen(SeenObject("red", "circle", x, y, 15), star))["relation"] is right
    assert not verdict(prompt, seen(star))["relation"]


def test_a_place_is_at_the_middle_of_its_edge() -> None:
    prompt = asked("a red circle at the left on a blue background")
    for (x, y), right in {(25, 50): True, (25, 20): False, (40, 50): False, (100, 50): False}.items():
        assert verdict(prompt, seen(SeenObject("red", "circle", x, y, 20)))["place"] is right
    assert not verdict(prompt, seen())["place"]


@pytest.mark.parametrize("shape", SHAPES)
def test_where_an_object_is_and_how_large(shape: str) -> None:
    image = paint([Placed(shape, 60.3, 41.8, 19.6, RED)], BLUE, 128, 96)
    (item,) = look(image).objects
    assert (item.colour, item.shape) == ("red", shape)
    assert (item.x, item.y, item.radius) == pytest.approx((60.3, 41.8, 19.6), abs=0.4)


def test_halves_of_two_pictures_are_wrong() -> None:
    source = random.Random(2)
    for _ in range(6):
        prompts = [Prompt(*kind) for kind in (("blue", Kind("red", "circle")), ("blue", Kind("red", "square")))]
        left, right = (draw(prompt, 128, 128, source) for prompt in prompts)
        left.paste(right.crop((64, 0, 128, 128)), (64, 0))
        assert all("shape" in wrong(prompt, left) for prompt in prompts)
    left = draw(RED_CIRCLE, 128, 128, source)
    right = draw(replace(RED_CIRCLE, background="green"), 128, 128, source)
    left.paste(right.crop((64, 0, 128, 128)), (64, 0))
    assert {"background", "number", "shape"} <= wrong(RED_CIRCLE, left)


def test_pictures_of_nothing_are_wrong() -> None:
    source = np.random.default_rng(0)
    noise = source.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    coarse = np.kron(noise[:12, :16], np.ones((8, 8, 1), dtype=np.uint8))
    for picture in (noise, coarse):
        assert {"background", "colour", "shape"} <= wrong(RED_CIRCLE, Image.fromarray(picture))
    assert wrong(RED_CIRCLE, Image.new("RGB", (96, 96), BLUE)) == {"number", "colour", "shape"}
    assert wrong(RED_CIRCLE, Image.new("RGB", (96, 96), (90, 110, 90))) == {"background", "number", "colour", "shape"}


def test_one_object_too_many_or_too_few_is_a_wrong_number() -> None:
    circle, small = Placed("circle", 64, 64, 25, RED), Placed("circle", 110, 20, 6, RED)
    assert wrong(RED_CIRCLE, paint([circle, small], BLUE, 128, 128)) == {"number"}
    pair = asked("a red circle left of a green star on a blue background")
    assert "number" in wrong(pair, paint([circle], BLUE, 128, 128))
    inside = [Placed("ring", 64, 64, 40, RED), Placed("circle", 64, 64, 10, RED)]
    assert "number" in wrong(replace(RED_CIRCLE, first=Kind("red", "ring")), paint(inside, BLUE, 128, 128))


def test_colours_between_those_of_the_palette_have_no_name() -> None:
    between = tuple((a + b) // 2 for a, b in zip(PALETTE["orange"], PALETTE["yellow"], strict=True))
    image = paint([Placed("circle", 48, 48, 20, (between[0], between[1], between[2]))], BLUE, 96, 96)
    for colour in ("orange", "yellow"):
        assert wrong(replace(RED_CIRCLE, first=Kind(colour, "circle")), image) == {"colour"}


def test_parts_of_a_mask_are_numbered() -> None:
    picture = ["##..#", "#.#.#", "#.#.#", "###..", "....#"]
    mask = np.array([[pixel == "#" for pixel in row] for row in picture])
    labels = components(mask)
    assert (labels > 0).tolist() == mask.tolist()
    assert sorted(np.unique(labels)) == [0, 1, 2, 3]
    assert labels[0, 0] == labels[1, 2]
    assert labels[0, 4] == labels[2, 4] != labels[4, 4]
