"""The answer to `POST /sdapi/v1/txt2img` and `/sdapi/v1/img2img`."""

from __future__ import annotations

import re
import struct
import time
from dataclasses import replace

import msgspec

import engine
from launcher.client.results import Result
from launcher.http.answers.computed import of_all
from launcher.http.answers.drawing import Drawing
from launcher.http.apis.automatic1111.body import Txt2ImgBody
from launcher.http.apis.automatic1111.meaning import SAMPLER, SCHEDULER
from launcher.messages.message_parts import MadeFor
from launcher.requests.check import CheckedRequest
from launcher.requests.infotext import infotext
from launcher.requests.schedule.described import saved_settings

VERSION = f"krea2-engine {engine.__version__}"


def answer(
    body: Txt2ImgBody, drawing: Drawing, result: Result, warnings: list[str], model_name: str
) -> dict[str, object]:
    """Put a result into the object that A1111 answers. warnings: besides the result's own and the drawing's."""
    count = len(result.seeds)
    checked = _with_schedule(drawing.checked, result.made_for)
    told = result.told((*drawing.warnings, *warnings))
    prompt, negative = body.prompt or "", body.negative_prompt or ""
    texts = [_text_of(file, checked, seed) for file, seed in zip(result.files, result.seeds, strict=True)]
    model_hash = re.search(r"^Steps: .*\bModel hash: (\w+)", texts[0], re.MULTILINE)
    info = {
        "prompt": prompt,
        "all_prompts": [prompt] * count,
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * count,
        "seed": result.seed,
        "all_seeds": result.seeds,
        "subseed": result.seed,
        "all_subseeds": result.seeds,
        "subseed_strength": 0,
        "width": result.width,
        "height": result.height,
        "sampler_name": SAMPLER,
        "scheduler": SCHEDULER,
        "cfg_scale": checked.guidance + 1,
        "guidance": checked.guidance,
        "steps": checked.asked_steps,
        "batch_size": count,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model_name,
        "sd_model_hash": model_hash and model_hash[1],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": checked.strength,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": VERSION,
        "request_id": drawing.request_id,
        **of_all(result.computed),
        **told,
    }
    return {
        "images": result.files if body.send_images is not False else [],
        "parameters": body.echo(),
        "info": msgspec.json.encode(info).decode(),
        "warnings": told["warnings"],
    }


def _with_schedule(checked: CheckedRequest, made_for: MadeFor | None) -> CheckedRequest:
    """Give a request the steps and the guidance that LoRAs have decided, which only the engine knows."""
    if made_for is None:
        return checked
    said = {name: value for name, value in msgspec.structs.asdict(made_for).items() if value is not None}
    return replace(checked, **said, asked_steps=made_for.steps or checked.asked_steps)


def _text_of(file: bytes, checked: CheckedRequest, seed: int) -> str:
    """A1111's text: that of the file, or of one that has none what would be in it, without the model and its hashes."""
    if file.startswith(b"\x89PNG"):
        text = _png_text(file)
    else:
        text = _exif_of(file).partition(b"UNICODE\0")[2].decode("utf-16-be")
    if text:
        return text
    names = ("prompt", "negative_prompt", "steps", "guidance", "mu", "sigmas", "width", "height")
    made = {name: getattr(checked, name) for name in names}
    made |= saved_settings(checked.cache, checked.guidance_window, checked.guidance_outside)
    loras = [{"name": name, "strength": strength} for name, strength in checked.loras]
    return infotext(made | {"seed": seed, "loras": loras, "version": VERSION})


def _png_text(file: bytes) -> str | None:
    """The text of a PNG file."""
    offset = 8
    while offset < len(file):
        length, kind = struct.unpack_from(">I4s", file, offset)
        name, _, value = file[offset + 8 : offset + 8 + length].partition(b"\0")
        if kind == b"tEXt" and name == b"parameters":
            return value.decode("latin-1")
        if kind == b"iTXt" and name == b"parameters":  # after two bytes, a language and a translated name
            return value[2:].split(b"\0", 2)[2].decode()
        if kind == b"IDAT":
            break
        offset += length + 12
    return None


def _exif_of(file: bytes) -> bytes:
    """The EXIF of a JPEG or WebP file, at whose end our files have the text; nothing if there is none."""
    offset, jpeg = (2, True) if file.startswith(b"\xff\xd8") else (12, False)
    while offset + 8 <= len(file):
        if jpeg:
            kind, length = struct.unpack_from(">2sH", file, offset)
            start, end = offset + 4, offset + 2 + length
        else:
            kind, length = struct.unpack_from("<4sI", file, offset)
            start, end = offset + 8, offset + 8 + length
        if kind in (b"\xff\xe1", b"EXIF"):
            return file[start:end]
        if kind == b"\xff\xda":  # pixels follow
            break
        offset = end if jpeg else end + end % 2
    return b""
