"""The answer to `POST /sdapi/v1/txt2img`."""

from __future__ import annotations

import time

import msgspec

import engine
from launcher.client.results import Result
from launcher.http.answers.drawing import Drawing
from launcher.http.apis.automatic1111.body import Txt2ImgBody
from launcher.http.apis.automatic1111.meaning import SAMPLER, SCHEDULER
from launcher.requests.infotext import infotext


def answer(
    body: Txt2ImgBody, drawing: Drawing, result: Result, warnings: list[str], model_name: str
) -> dict[str, object]:
    """Put a result into the object that A1111 answers. warnings: besides the result's own and the drawing's."""
    checked, count = drawing.checked, len(result.seeds)
    told = result.told((*drawing.warnings, *warnings))
    prompt, negative = body.prompt or "", body.negative_prompt or ""
    loras = [{"name": name, "strength": strength} for name, strength in checked.loras]
    made = {
        "prompt": checked.prompt, "negative_prompt": checked.negative_prompt, "steps": checked.steps,
        "guidance": checked.guidance, "mu": checked.mu, "width": result.width, "height": result.height,
        "loras": loras, "model": model_name, "version": f"krea2-engine {engine.__version__}",
    }  # fmt: skip
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
        "steps": checked.steps,
        "batch_size": count,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model_name,
        "sd_model_hash": None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [infotext(made | {"seed": seed}) for seed in result.seeds],
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": f"krea2-engine {engine.__version__}",
        "request_id": drawing.request_id,
        **told,
    }
    return {
        "images": result.files if body.send_images is not False else [],
        "parameters": body.echo(),
        "info": msgspec.json.encode(info).decode(),
        "warnings": told["warnings"],
    }
