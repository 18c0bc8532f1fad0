"""Image files."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import engine
from engine.pictures.pixels import Pixels
from engine.step_cache.settings import PRESETS
from launcher.messages.message_parts import Computed, Outpaint
from launcher.pictures.prepared import Patch, PreparedPicture
from launcher.requests.check import CheckedRequest
from launcher.requests.image_files import encode_image, encode_preview, finish_image, finish_preview, in_thread
from launcher.requests.image_metadata import read_infotext, read_made
from launcher.requests.infotext import infotext
from tests.launcher.processes import PATIENCE_S

REQUEST = CheckedRequest(
    prompt='a "fox" 🦊\nin the snow',
    negative_prompt=None,
    seed=7,
    steps=8,
    asked_steps=8,
    guidance=0.0,
    mu=None,
    width=32,
    height=16,
    num_images=2,
    priority=0,
    timeout_s=None,
    output_format="png",
    metadata=True,
    preview_every=None,
    loras=(),
    warnings=(),
)
PIXELS = np.linspace(0, 255, 16 * 32 * 3).astype(np.uint8).reshape(16, 32, 3)
SETTINGS = {
    "negative_prompt": None, "steps": 8, "guidance": 0.0, "mu": None, "width": 32, "height": 16,
    "version": f"krea2-engine {engine.__version__}",
}  # fmt: skip


def written(output_format: str, metadata: bool = True, **fields: Any) -> Image.Image:
    request = replace(REQUEST, output_format=output_format, metadata=metadata, **fields)
    image = Image.open(io.BytesIO(encode_image(PIXELS.tobytes(), request, seed=8)))
    image.load()
    return image


@pytest.mark.parametrize(("output_format", "tolerance"), [("png", 0), ("jpeg", 8), ("webp", 16)])
def test_a_file_shows_the_pixels(output_format: str, tolerance: int) -> None:
    image = written(output_format)
    assert (image.format, image.size) == (output_format.upper(), (32, 16))
    difference = np.asarray(image).astype(int) - PIXELS
    assert abs(difference).max() <= tolerance


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_a_file_of_less_quality_is_smaller_and_one_of_the_best_larger(output_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, PIXELS.shape, np.uint8).tobytes()

    def size(compression: int | None) -> int:
        request = replace(REQUEST, output_format=output_format, output_compression=compression)
        return len(encode_image(noise, request, seed=8))

    assert size(0) < size(50) < size(None) < size(100)


def test_a_png_carries_what_made_it() -> None:
    image, made = written("png"), {"prompt": REQUEST.prompt, "seed": 8, **SETTINGS}
    said = {name: value for name, value in image.info.items() if "xmp" not in name}
    assert said == {"parameters": infotext(made), "krea2": json.dumps(made)}


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_a_jpeg_and_a_webp_carry_what_made_them(output_format: str) -> None:
    image, made = written(output_format), {"prompt": REQUEST.prompt, "seed": 8, **SETTINGS}
    assert json.loads(image.getexif()[0x010E]) == made
    assert read_infotext(image) == infotext(made)


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_nothing_is_carried_when_that_is_asked(output_format: str) -> None:
    image = written(output_format, metadata=False)
    assert {*getattr(image, "text", {})} <= {"XML:com.adobe.xmp"}
    assert not image.getexif()
    assert read_made(image) is read_infotext(image) is None
    assert b"fox" not in image.info["xmp"]


def test_loras_are_carried_with_their_strengths() -> None:
    request = replace(REQUEST, loras=(("ink", 0.5), ("öl", -1.0)))
    info = Image.open(io.BytesIO(encode_image(PIXELS.tobytes(), request, seed=8))).info
    loras = [{"name": "ink", "strength": 0.5}, {"name": "öl", "strength": -1.0}]
    assert json.loads(info["krea2"]) == {"prompt": REQUEST.prompt, "seed": 8, **SETTINGS, "loras": loras}
    assert "<lora:ink:0.5> <lora:öl:-1>\n" in info["parameters"]


def test_sigmas_are_carried() -> None:
    request = replace(REQUEST, sigmas=(1.0, 0.5), mu=0.0)
    info = Image.open(io.BytesIO(encode_image(PIXELS.tobytes(), request, seed=8))).info
    assert json.loads(info["krea2"]) == {"prompt": REQUEST.prompt, "seed": 8, **SETTINGS, "mu": 0, "sigmas": [1, 0.5]}
    assert 'Mu: 0.0, Sigmas: "1, 0.5", ' in info["parameters"]


def test_saved_steps_are_carried_with_what_was_computed() -> None:
    request = replace(REQUEST, cache=PRESETS["fast"], guidance_window=(0.0, 0.5), guidance_outside="last")
    computed = Computed(steps=((4, 4), (4, 0), (1, 0), (4, 0)), blocks=4)
    info = Image.open(io.BytesIO(encode_image(PIXELS.tobytes(), request, seed=8, computed=computed))).info
    made = json.loads(info["krea2"])
    assert {name: made[name] for name in made.keys() - {*SETTINGS, "prompt", "seed"}} == {
        "cache": "fast", "guidance_from": 0.0, "guidance_until": 0.5, "guidance_outside": "last",
        "computed": {"prompt": "1-2,4", "negative_prompt": "1", "block_evaluations": "17 of 32"},
    }  # fmt: skip
    assert "Block evaluations: 17 of 32" in info["parameters"]


def test_a_small_picture_does_not_wait_for_large_ones() -> None:
    may_end = threading.Event()

    def write_large() -> bytes:
        assert may_end.wait(PATIENCE_S)
        return b"large"

    async def test() -> None:
        large = [asyncio.create_task(in_thread(4096 * 4096, write_large)) for _ in range(64)]
        try:
            assert await in_thread(64 * 64, lambda: b"small") == b"small"
            assert not any(task.done() for task in large)
        finally:
            may_end.set()
        assert await asyncio.gather(*large) == [b"large"] * 64

    asyncio.run(asyncio.wait_for(test(), PATIENCE_S))


@pytest.mark.parametrize("output_format", ["png", "webp"])
def test_a_file_that_began_from_a_picture_says_how_and_has_the_answer_s_size(output_format: str) -> None:
    drawn = Pixels(32, 16, bytes(32 * 16 * 3), bytes(4 * 2))
    patch = Patch((32, 16), (8, 0, 40, 16), bytes(32 * 16), bytes([9]) * (40 * 16 * 3))
    picture = PreparedPicture((40, 16), drawn, patch)
    fields = {"masked": True, "outpaint": Outpaint(left=8), "mask_crop": None, "mask_feather": 4, "picture": picture}
    image = written(output_format, asked_steps=8, steps=4, skipped_steps=4, strength=0.5, **fields)
    assert image.size == (40, 16)
    made = read_made(image)
    assert made is not None
    told = {"steps": 8, "strength": 0.5, "strength_steps": "partial", "masked": True, "mask_feather": 4}
    told |= {"outpaint": {"left": 8, "top": 0, "right": 0, "bottom": 0}, "width": 40, "height": 16}
    assert {name: made.get(name) for name in told} == told
    assert "mask_crop" not in made
    assert ", Denoising strength: 0.5, " in infotext(made)
    request = replace(REQUEST, output_format=output_format, strength=0.5, **fields)
    finished = encode_image(finish_image(PIXELS.tobytes(), 32, 16, picture), request, seed=8, finished=True)
    assert finished == encode_image(PIXELS.tobytes(), request, seed=8)  # in two steps as in one
    preview = encode_preview(*finish_preview(PIXELS.tobytes(), 32, 16, picture), picture, finished=True)
    assert preview == encode_preview(PIXELS.tobytes(), 32, 16, picture)


def test_what_is_pasted_into_a_large_picture_counts_as_one() -> None:
    """So that it is written where large ones are."""
    small = replace(REQUEST, width=64, height=48)
    assert small.pixels == 64 * 48
    pixels = Pixels(64, 48, b"")
    assert replace(small, picture=PreparedPicture((4000, 2000), pixels)).pixels == 4000 * 2000
    assert replace(small, picture=PreparedPicture((50, 40), pixels)).pixels == 64 * 48
