"""The judge of the demo's pictures, on the renderer's own and on damaged ones."""

from __future__ import annotations

import io
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from PIL import Image, ImageDraw, ImageFilter

from demo.captions import COLOURS, PLACES, RELATIONS, SHAPES, SIZES, Kind, Prompt, parse, random_prompt
from demo.judge import ATTRIBUTES, Seen, SeenObject, components, look, verdict
from demo.pictures import PALETTE, Placed, draw, outline, paint, pixels
from demo.pictures import SIZES as PICTURE_SIZES
from engine.config.demo_checkpoints import DEMO_CHECKPOINT

RED, BLUE, GREEN = PALETTE["red"], PALETTE["blue"], PALETTE["green"]
RED_CIRCLE = Prompt("blue", Kind("red", "circle"))


def wrong(prompt: Prompt, image: Image.Image) -> set[str]:
    """The attributes that are not as the prompt says."""
    return {name for name, right in verdict(prompt, look(image)).items() if not right}


def seen(*objects: SeenObject) -> Seen:
    return Seen("blue", objects, 200, 100)


def shape_seen(image: Image.Image) -> str:
    """The shape of a picture's only object."""
    (item,) = look(image).objects
    return item.shape


def asked(text: str) -> Prompt:
    prompt = parse(text)
    assert prompt is not None
    return prompt


def misjudged(count: int, seed: int) -> list[str]:
    """The prompts, of so many random ones at all sizes, whose pictures are judged wrong."""
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


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [13, 40])
def test_a_shape_with_a_piece_missing_or_too_much_is_none(shape: str, radius: float) -> None:
    """A square of a third of the radius, at several places of the outline."""
    size, middle = 128, 64.0
    corners = outline(shape)
    for u, v in corners[:: max(1, len(corners) // 5)]:
        image = paint([Placed(shape, middle, middle, radius, RED)], BLUE, size, size)
        length = math.hypot(u, v)
        for fill, depth in ((BLUE, length - 0.2), (RED, length + 0.18)):
            damaged = image.copy()
            x, y = (middle + radius * part / length * depth for part in (u, v))
            half = radius / 5
            ImageDraw.Draw(damaged).rectangle((x - half, y - half, x + half, y + half), fill=fill)
            assert [item.shape for item in look(damaged).objects] != [shape], (u, v, fill)


def polygon(points: list[tuple[float, float]], radius: float = 40, size: int = 128) -> Image.Image:
    image = Image.new("RGB", (size * 4, size * 4), BLUE)
    ImageDraw.Draw(image).polygon([(size * 2 + x * radius * 4, size * 2 + y * radius * 4) for x, y in points], RED)
    return image.reduce(4)


def round_points(power: float, height: float = 1.0) -> list[tuple[float, float]]:
    """An ellipse at power 2; at higher ones it nears a rectangle."""
    turns = (2 * math.pi * i / 120 for i in range(120))
    return [
        (
            math.copysign(abs(math.cos(t)) ** (2 / power), math.cos(t)),
            height * math.copysign(abs(math.sin(t)) ** (2 / power), math.sin(t)),
        )
        for t in turns
    ]


def turned(shape: str, degrees: float) -> list[tuple[float, float]]:
    angle = math.radians(degrees)
    sine, cosine = math.sin(angle), math.cos(angle)
    return [(x * cosine - y * sine, x * sine + y * cosine) for x, y in outline(shape)]


@pytest.mark.parametrize(
    "points",
    [
        pytest.param(round_points(4), id="between circle and square"),
        pytest.param(round_points(2, 0.8), id="ellipse"),
        pytest.param([(0.86 * x, y) for x, y in round_points(1.4)], id="between circle and diamond"),
        pytest.param([(x, y * 0.8) for x, y in outline("square")], id="rectangle"),
        pytest.param(
            [(math.sin(2 * math.pi * i / 5), -math.cos(2 * math.pi * i / 5)) for i in range(5)], id="pentagon"
        ),
        pytest.param(turned("triangle", 180), id="triangle upside down"),
        pytest.param(turned("heart", 180), id="heart upside down"),
        pytest.param(turned("star", 36), id="star upside down"),
        pytest.param(turned("square", 45), id="square on its corner"),
        pytest.param(turned("cross", 45), id="cross turned"),
        pytest.param([point for point in round_points(2) if point[0] < 0.01], id="half a circle"),
        pytest.param([(-0.5, -0.8), (0.5, -0.8), (0.9, 0.8), (-0.9, 0.8)], id="trapezium"),
    ],
)
@pytest.mark.parametrize("radius", [15, 40])
def test_other_shapes_are_none(points: list[tuple[float, float]], radius: float) -> None:
    assert shape_seen(polygon(points, radius)) == ""


def test_an_object_of_two_colours_has_no_shape() -> None:
    image = paint([Placed("circle", 48, 48, 30, RED)], BLUE, 96, 96)
    other = paint([Placed("circle", 48, 48, 30, PALETTE["orange"])], BLUE, 96, 96)
    image.paste(other.crop((52, 0, 96, 96)), (52, 0))
    assert wrong(RED_CIRCLE, image) == {"shape"}


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


@pytest.mark.parametrize("other", [RED, GREEN, PALETTE["purple"]])
@pytest.mark.parametrize("shape", ["circle", "square"])
def test_objects_that_touch_are_wrong(other: tuple[int, int, int], shape: str) -> None:
    reach = {"circle": 1.0, "square": 0.8}[shape] * 20
    for overlap in (0, 3):
        objects = [Placed(shape, 64 - reach + overlap, 64, 20, RED), Placed(shape, 64 + reach, 64, 20, other)]
        assert [item.shape for item in look(paint(objects, BLUE, 128, 128)).objects] != [shape, shape]


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


def noisy(image: Image.Image, deviation: float) -> Image.Image:
    values = np.asarray(image) + np.random.default_rng(0).normal(0, deviation, (image.height, image.width, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def speckled(image: Image.Image) -> Image.Image:
    source = random.Random(0)
    image = image.copy()
    for _ in range(10):
        image.paste(
            (128, 200, 0), (x := source.randrange(image.width), y := source.randrange(image.height), x + 2, y + 2)
        )
    return image


def compressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "jpeg", quality=75)
    return Image.open(file)


def faded(image: Image.Image) -> Image.Image:
    """Darker to the left, lighter to the right."""
    values = np.asarray(image) + np.linspace(-10, 10, image.width)[None, :, None]
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda image: noisy(image, 6), id="noise"),
        pytest.param(speckled, id="specks"),
        pytest.param(compressed, id="JPEG"),
        pytest.param(faded, id="drift"),
        pytest.param(lambda image: image.filter(ImageFilter.GaussianBlur(min(image.size) / 100)), id="blur"),
    ],
)
def test_light_damage_changes_nothing(damage) -> None:  # type: ignore[no-untyped-def]
    source = random.Random(4)
    for size in PICTURE_SIZES:
        prompt = random_prompt(source)
        assert not wrong(prompt, damage(draw(prompt, *size, source))), prompt.text()


def test_heavy_damage_is_wrong() -> None:
    source = random.Random(5)
    for size in PICTURE_SIZES[:4]:
        prompt = random_prompt(source)
        image = draw(prompt, *size, source)
        assert "background" in wrong(prompt, noisy(image, 30))
        square = replace(prompt, first=Kind(prompt.first.colour, "square"), second=None, count=1, size="", place="")
        blurred = draw(square, *size, source).filter(ImageFilter.GaussianBlur(min(size) / 12))
        assert wrong(square, blurred)


@pytest.mark.parametrize("upright", [False, True])
def test_a_long_bar_is_no_shape(upright: bool) -> None:
    """A triangle with a bar's area and centre of gravity would have its own centre outside of the bar."""
    image = Image.new("RGB", (192, 192), PALETTE["blue"])
    ImageDraw.Draw(image).rectangle((0, 0, 4, 192) if upright else (0, 0, 192, 4), PALETTE["yellow"])
    for shape in SHAPES:
        assert "shape" in wrong(asked(f"a yellow {shape} on a blue background"), image)


def test_most_outlined_objects_keep_their_number_and_colour() -> None:
    source = random.Random(6)
    right = 0
    for _ in range(30):
        prompt = random_prompt(source)
        right += not {"background", "number", "colour"} & wrong(prompt, draw(prompt, 192, 192, source, outlined=True))
    assert right > 15


def test_pictures_that_went_through_the_vae_are_judged_alike() -> None:
    vae = AutoencoderKLQwenImage.from_pretrained(DEMO_CHECKPOINT / "vae")
    source = random.Random(7)
    for text in (
        "a large black triangle at the top on a yellow background",
        "a large pink triangle at the right on a red background",
        "a green circle left of a blue diamond on a pink background",
    ):
        image = torch.from_numpy(pixels(draw(asked(text), 128, 128, source)))
        with torch.no_grad():
            decoded = vae.decode(vae.encode(image[None, :, None]).latent_dist.mode()).sample[0, :, 0]
        values = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte()
        returned = Image.fromarray(values.permute(1, 2, 0).numpy())
        assert not wrong(asked(text), returned), text
        other = text.replace("circle", "heart").replace("triangle", "ring")
        assert wrong(asked(other), returned) == {"shape"}


def test_parts_of_a_mask_are_numbered() -> None:
    picture = ["##..#", "#.#.#", "#.#.#", "###..", "....#"]
    mask = np.array([[pixel == "#" for pixel in row] for row in picture])
    labels = components(mask)
    assert (labels > 0).tolist() == mask.tolist()
    assert sorted(np.unique(labels)) == [0, 1, 2, 3]
    assert labels[0, 0] == labels[1, 2]
    assert labels[0, 4] == labels[2, 4] != labels[4, 4]
