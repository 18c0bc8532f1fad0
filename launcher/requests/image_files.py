"""Writes finished pixels as image files. Pillow is imported for the first one, in the thread that makes it."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

import msgspec

import engine
from launcher.disclosure.disclosure import Disclosure
from launcher.messages.message_parts import Computed
from launcher.pictures.prepared import PreparedPicture
from launcher.requests.check import CheckedRequest
from launcher.requests.image_metadata import save_options
from launcher.requests.schedule.described import describe_computed, saved_settings

# Pillow takes seconds over a picture of 4096², which must not keep a small one waiting. A thread of a pool that has
# nothing to do costs nothing, and none is started before there is a picture.
_SMALL = 1536 * 1024  # pixels at most
_THREADS = max(2, (os.cpu_count() or 2) // 2)
_small_pictures = ThreadPoolExecutor(_THREADS, thread_name_prefix="small pictures")
_large_pictures = ThreadPoolExecutor(_THREADS, thread_name_prefix="large pictures")

_DISCLOSED = Disclosure()

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(pixels: int, write: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call `write`, which works on so many pixels, in a thread where only what is as large goes before it."""
    pool = _small_pictures if pixels <= _SMALL else _large_pictures
    return await asyncio.wrap_future(pool.submit(write, *arguments, **named))


def encode_image(
    rgb: bytes,
    request: CheckedRequest,
    *,
    seed: int,
    made_with: Mapping[str, Any] = MappingProxyType({}),
    computed: Computed | None = None,
    disclosure: Disclosure = _DISCLOSED,
    finished: bool = False,
) -> bytes:
    """Write an RGB image of height · width · 3 bytes, put into the picture that it begins from, as a file in the
    request's format.

    It carries prompt, seed and settings, as `save_options` writes them, unless the request says otherwise.
    made_with: what else they say, and by LoRAs' names `lora_hashes`: see `MadeWith`. computed: where not all was.
    disclosure: what it says in any case. finished: the pixels are those of `finish_image`.
    """
    from PIL import Image

    if finished:
        image = Image.frombytes("RGB", request.answer_size, rgb)
    else:
        image = Image.frombytes("RGB", (request.width, request.height), rgb)
        if request.picture is not None:
            image = request.picture.finish(image)
    made = None
    if request.metadata:
        made = {"prompt": request.prompt, "seed": seed, **_settings(request, made_with, computed)}
    composite = request.picture is not None and request.picture.keeps_source
    source: dict[str, Any] = {
        "composite": composite, "model": made_with.get("model"), "metadata": request.metadata,
    }  # fmt: skip
    options = save_options(request.output_format, made, xmp=disclosure.packet(**source))
    if request.output_compression is not None and request.output_format != "png":
        options["quality"] = request.output_compression
    file = io.BytesIO()
    image.save(file, request.output_format, **options)
    return disclosure.signed(file.getvalue(), request.output_format, **source)


def finish_image(rgb: bytes, width: int, height: int, picture: PreparedPicture) -> bytes:
    """Put the pixels of a drawn image into the picture that it begins from. Returns those of the answer's size."""
    from PIL import Image

    return picture.finish(Image.frombytes("RGB", (width, height), rgb)).tobytes()


def finish_preview(rgb: bytes, width: int, height: int, picture: PreparedPicture) -> tuple[bytes, int, int]:
    """Put the pixels of a preview into a small one of the picture that the image begins from. Returns pixels, width and
    height."""
    from PIL import Image

    image = picture.finish_preview(Image.frombytes("RGB", (width, height), rgb))
    return image.tobytes(), image.width, image.height


def encode_preview(
    rgb: bytes,
    width: int,
    height: int,
    picture: PreparedPicture | None = None,
    *,
    disclosure: Disclosure = _DISCLOSED,
    finished: bool = False,
) -> bytes:
    """Write a small RGB picture of height · width · 3 bytes as a JPEG file. picture: what the image begins from.
    disclosure: what it says. finished: the pixels are those of `finish_preview`, as are width and height."""
    from PIL import Image

    image = Image.frombytes("RGB", (width, height), rgb)
    if picture is not None and not finished:
        image = picture.finish_preview(image)
    file = io.BytesIO()
    xmp = disclosure.packet(composite=picture is not None and picture.keeps_source, metadata=False)
    image.save(file, "jpeg", quality=85, **({} if xmp is None else {"xmp": xmp}))
    return file.getvalue()


def _settings(request: CheckedRequest, made_with: Mapping[str, Any], computed: Computed | None) -> dict[str, Any]:
    """List what else decides how the image looks."""
    width, height = request.answer_size
    settings: dict[str, Any] = {
        "negative_prompt": request.negative_prompt,
        "steps": request.asked_steps,
        "guidance": request.guidance,
        "mu": request.mu,
        **({} if request.sigmas is None else {"sigmas": list(request.sigmas)}),
        "width": width,
        "height": height,
    }
    if request.strength is not None:
        settings |= {"strength": request.strength, "strength_steps": request.strength_steps, "masked": request.masked}
        if request.outpaint is not None:
            settings["outpaint"] = msgspec.structs.asdict(request.outpaint)
        around = {"mask_crop": request.mask_crop, "mask_feather": request.mask_feather}
        settings |= {name: pixels for name, pixels in around.items() if pixels is not None}
    settings |= saved_settings(request.cache, request.guidance_window, request.guidance_outside)
    if computed is not None:
        settings["computed"] = describe_computed(computed)
    if request.loras:
        hashes = made_with.get("lora_hashes", {})
        settings["loras"] = [
            {"name": name, "strength": strength, **({"sha256": hashes[name]} if name in hashes else {})}
            for name, strength in request.loras
        ]
    model = {name: value for name, value in made_with.items() if name != "lora_hashes"}
    return {**settings, **model, "version": f"krea2-engine {engine.__version__}"}
