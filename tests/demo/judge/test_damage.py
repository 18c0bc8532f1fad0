"""The judge of the demo's pictures, on damaged ones."""

from __future__ import annotations

import io
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from PIL import Image, ImageFilter

from demo.captions import Kind, random_prompt
from demo.pictures import SIZES as PICTURE_SIZES
from demo.pictures import draw, pixels
from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from tests.demo.judge.judged import asked, wrong


def noisy(image: Image.Image, deviation: float) -> Image.Image:
    values = np.asarray(image) + np.random.default_rng(0).normal(0, deviation, (image.height, image.width, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def speckled(image: Image.Image) -> Image.Image:
    source = random.Random(0)
    image = image.copy()
    for _ in range(10):
        image.paste(
            (128, 200, 0), (x := source.randrange(image.width), y := source.randrange(image.height), x + 1, y + 1)
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
