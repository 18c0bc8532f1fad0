"""Requests to AUTOMATIC1111's API."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import httpx

from tests.launcher.fake_ranks import DEADLINE_S
from tests.launcher.http.clients.tables.rows import (
    AIOHTTP,
    AXIOS,
    NODE_FETCH,
    TXT2IMG,
    Got,
    Reads,
    Row,
    drawn,
    picture,
    prompt,
    sentence,
)

SILLY_TAVERN = "SillyTavern/SillyTavern@02903fd: src/endpoints/stable-diffusion.js"
SILLY_TAVERN_PAGE = "SillyTavern/SillyTavern@ba6f7b7: public/scripts/extensions/stable-diffusion/index.js"
OPEN_WEBUI = "open-webui/open-webui@02530d5: backend/open_webui/routers/images.py"
LIBRECHAT = "danny-avila/LibreChat@00b3bc3: api/app/clients/tools/structured/StableDiffusion.js"
DIFY = "langgenius/dify@04bcf81: api/core/tools/provider/builtin/stablediffusion/tools/stable_diffusion.py"
WEBUIAPI = "mix1009/sdwebuiapi: webuiapi/webuiapi.py"
AUTO_SD_PAINT = "Interpause/auto-sd-paint-ext@011e72a: frontends/krita/krita_diff/client.py"

_NOBODY = f"Basic {base64.b64encode(b'').decode()}"
_SOMEBODY = f"Basic {base64.b64encode(b'user:password').decode()}"
_ST = NODE_FETCH | {"Authorization": _NOBODY}
_HTTPX = {"Accept": "*/*", "Accept-Encoding": "gzip, deflate", "User-Agent": "python-httpx/0.27.2"}
_URLLIB = {"Accept-Encoding": "identity", "User-Agent": "Python-urllib/3.10", "Connection": "close"}


def images(count: int = 1, size: tuple[int, int] | None = None) -> Reads:
    """Reads `images[]`, base64 with no `data:` before it, and `info`, a string of JSON."""

    def read(got: Got) -> None:
        info = json.loads(got.json["info"])
        assert len(got.json["images"]) == len(info["all_seeds"]) == len(info["infotexts"]) == count
        for image, seed in zip(got.json["images"], info["all_seeds"], strict=True):
            shown = picture(base64.b64decode(image, validate=True), seed=seed)
            assert size in (None, shown.size)
        assert info["seed"] == info["all_seeds"][0]
        assert (info["width"], info["height"]) == shown.size

    return read


def _librechat(got: Got) -> None:
    """It keeps the last line of the first infotext, which holds the settings."""
    images()(got)
    info = json.loads(got.json["info"])
    settings = info["infotexts"][0].split("\n")[-1]
    assert settings.startswith("Steps: ")
    assert f"Seed: {info['seed']}" in settings


def each(*names: str) -> Reads:
    """Reads these of every object of a list that is not empty, strings all."""

    def read(got: Got) -> None:
        assert got.json
        assert all(isinstance(item[name], str) for item in got.json for name in names)

    return read


def a_list(got: Got) -> None:
    assert isinstance(got.json, list)


def _checkpoint(got: Got) -> None:
    assert isinstance(got.json["sd_model_checkpoint"], str)
    assert "forge_preset" not in got.json  # by which SillyTavern tells another server


def _idle(got: Got) -> None:
    assert got.json["progress"] == 0.0
    assert got.json["state"]["job_count"] == 0


def _detail(got: Got) -> None:
    """A1111's errors are in `detail`; ours are there too."""
    sentence(400, "steps must be")(got)
    assert got.answer.json()["detail"] == got.answer.json()["error"]["message"]


def _done(got: Got) -> None:
    assert got.answer.status_code == 200


def _has_model(name: Callable[[Any], str]) -> Reads:
    def read(got: Got) -> None:
        checkpoint = httpx.get(f"{got.url}/sdapi/v1/options", timeout=DEADLINE_S).json()["sd_model_checkpoint"]
        assert checkpoint in {name(model) for model in got.json}

    return read


def _get(client: str, does: str, read: str, path: str, reads: Reads, headers: dict[str, str]) -> Row:
    return Row(client, does, read, reads, method="GET", path=f"/sdapi/v1/{path}", headers=headers)


_AUTO = prompt(
    url="http://127.0.0.1:30000", auth="", negative_prompt="a blue square", sampler_name="Euler a",
    scheduler="Automatic", steps=4, cfg_scale=7, width=192, height=128, restore_faces=False, enable_hr=False,
    hr_upscaler="Latent", hr_scale=1.0, denoising_strength=0.7, hr_second_pass_steps=0,
    override_settings={"CLIP_stop_at_last_layers": 1}, override_settings_restore_afterwards=True, clip_skip=1,
    save_images=True, send_images=True, do_not_save_grid=False, do_not_save_samples=False,
)  # fmt: skip
_DIFY = prompt(
    negative_prompt="", seed=-1, subseed=-1, subseed_strength=0, seed_resize_from_h=-1, seed_resize_from_w=-1,
    sampler_index="DPM++ SDE Karras", batch_size=1, n_iter=1, steps=4, cfg_scale=7, width=128, height=128,
    restore_faces=False, do_not_save_samples=False, do_not_save_grid=False, eta=0, denoising_strength=0, s_min_uncond=0,
    s_churn=0, s_tmax=0, s_tmin=0, s_noise=0, override_settings={"sd_model_checkpoint": "krea-2-turbo"},
    override_settings_restore_afterwards=True, refiner_switch_at=0, disable_extra_networks=False, comments={},
    enable_hr=False, firstphase_width=0, firstphase_height=0, hr_scale=2, hr_second_pass_steps=0, hr_resize_x=0,
    hr_resize_y=0, hr_prompt="", hr_negative_prompt="", script_args=[], send_images=True, save_images=False,
    alwayson_scripts={},
)  # fmt: skip
_INIT, _MASK = (base64.b64encode(file).decode() for file in (drawn(), drawn(mode="L", colour=255)))
_OVER = prompt(
    init_images=[f"data:image/png;base64,{_INIT}"], mask=_MASK, resize_mode=0, denoising_strength=0.75, mask_blur=4,
    inpainting_fill=0, inpaint_full_res=True, inpaint_full_res_padding=0, inpainting_mask_invert=0, styles=[], seed=-1,
    subseed=-1, subseed_strength=0, seed_resize_from_h=0, seed_resize_from_w=0, batch_size=2, n_iter=1, steps=4,
    cfg_scale=7.0, image_cfg_scale=1.5, width=192, height=128, restore_faces=False, tiling=False, negative_prompt="",
    eta=1.0, s_churn=0, s_tmax=0, s_tmin=0, s_noise=1, override_settings={}, include_init_images=False,
    override_settings_restore_afterwards=True, script_name=None, script_args=[], sampler_name=None, sampler_index=None,
    send_images=True, save_images=False, alwayson_scripts={}, initial_noise_multiplier=1, do_not_save_samples=False,
    do_not_save_grid=False,
)  # fmt: skip

ROWS = (
    _get("SillyTavern", "tries the address", SILLY_TAVERN, "options", _done, _ST),
    _get("SillyTavern", "lists models", SILLY_TAVERN, "sd-models", each("title"), _ST),
    _get("SillyTavern", "lists samplers", SILLY_TAVERN, "samplers", each("name"), _ST),
    _get("SillyTavern", "lists schedulers", SILLY_TAVERN, "schedulers", each("name"), _ST),
    _get("SillyTavern", "lists upscalers", SILLY_TAVERN, "upscalers", a_list, _ST),
    _get("SillyTavern", "lists upscalers of latents", SILLY_TAVERN, "latent-upscale-modes", a_list, _ST),
    _get("SillyTavern", "lists VAEs", SILLY_TAVERN, "sd-vae", a_list, _ST),
    _get("SillyTavern", "asks for the model", SILLY_TAVERN, "options", _checkpoint, _ST),
    _get("SillyTavern", "waits for the model", SILLY_TAVERN, "progress", _idle, _ST),
    Row("SillyTavern", "chooses a model", SILLY_TAVERN, _done, {"sd_model_checkpoint": "krea-2-turbo"},
        path="/sdapi/v1/options", headers=_ST),
    Row("SillyTavern", "draws", SILLY_TAVERN_PAGE, images(size=(192, 128)), _AUTO, path=TXT2IMG, headers=_ST),
    Row("SillyTavern", "draws, as somebody", SILLY_TAVERN_PAGE, images(),
        _AUTO | {"auth": "user:password", "seed": 5}, path=TXT2IMG,
        headers=NODE_FETCH | {"Authorization": _SOMEBODY}),
    Row("SillyTavern", "draws in its mode SD.Next with a VAE", SILLY_TAVERN_PAGE, images(),
        _AUTO | {"override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic"}}, path=TXT2IMG,
        headers=_ST),
    Row("SillyTavern", "draws in its mode DrawThings", SILLY_TAVERN_PAGE, images(size=(192, 128)),
        prompt(negative_prompt="", sampler_name="Euler a", steps=4, cfg_scale=7, width=192, height=128,
               restore_faces=False, enable_hr=False, denoising_strength=0.7, clip_skip=1, upscaler_scale=1.0),
        path=TXT2IMG, headers=_ST),
    Row("SillyTavern", "prints the answer to what cannot be drawn", SILLY_TAVERN, _detail,
        prompt(negative_prompt="", steps=100_000, width=192, height=128), path=TXT2IMG, headers=_ST),
    Row("SillyTavern", "tries the address of DrawThings", SILLY_TAVERN, _done, method="HEAD", path="/",
        headers=NODE_FETCH),
    Row("SillyTavern", "stops what it has asked for", SILLY_TAVERN, _done, method="POST",
        path="/sdapi/v1/interrupt", headers=_ST),
    Row("SillyTavern", "tries the address of ComfyUI", SILLY_TAVERN, sentence(404, "ComfyUI"), method="GET",
        path="/system_stats", headers=NODE_FETCH),
    _get("Open WebUI", "tries the address", OPEN_WEBUI, "options", _checkpoint, AIOHTTP | {"Authorization": ""}),
    _get("Open WebUI", "lists models", OPEN_WEBUI, "sd-models", each("title", "model_name"),
         AIOHTTP | {"Authorization": ""}),
    Row("Open WebUI", "draws with the engine AUTOMATIC1111", OPEN_WEBUI, images(2),
        prompt(batch_size=2, width=128, height=128, steps=4), path=TXT2IMG, headers=AIOHTTP | {"Authorization": ""}),
    Row("Open WebUI", "draws with additional parameters of an administrator", OPEN_WEBUI, images(),
        prompt(batch_size=1, width=128, height=128, steps=4, negative_prompt="", cfg_scale=1.0,
               sampler_name="DPM++ 2M", scheduler="Karras"),
        path=TXT2IMG, headers=AIOHTTP | {"Authorization": _SOMEBODY}),
    Row("LibreChat", "draws with the tool stable-diffusion", LIBRECHAT, _librechat,
        prompt(negative_prompt="ugly", cfg_scale=4.5, steps=22, width=1024, height=1024), path=TXT2IMG,
        headers=AXIOS),
    _get("Dify", "looks for its model", DIFY, "sd-models", _has_model(lambda model: model["model_name"]), _HTTPX),
    Row("Dify", "chooses the model, with no Content-Type", DIFY, _done, {"sd_model_checkpoint": "krea-2-turbo"},
        path="/sdapi/v1/options", headers=_HTTPX | {"Content-Type": ""}),
    Row("Dify", "draws, with no Content-Type", DIFY, images(size=(128, 128)), _DIFY, path=TXT2IMG,
        headers=_HTTPX | {"Content-Type": ""}),
    Row("Dify", "draws from an image", DIFY, images(size=(128, 128)),
        _DIFY | {"init_images": [_INIT], "denoising_strength": 0.9}, path="/sdapi/v1/img2img",
        headers=_HTTPX | {"Content-Type": ""}),
    Row("webuiapi", "draws over a part of an image", WEBUIAPI, images(2, size=(192, 128)), _OVER,
        path="/sdapi/v1/img2img", headers={"Accept": "*/*", "User-Agent": "python-requests/2.32.3"}),
    Row("Krita's auto-sd-paint-ext", "asks for its own extension of A1111", AUTO_SD_PAINT, sentence(404, "/sdapi/v1"),
        method="GET", path="/sdapi/interpause/config", headers=_URLLIB),
)  # fmt: skip
