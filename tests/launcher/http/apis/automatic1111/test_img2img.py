"""A1111's img2img: what its clients send, and what that becomes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from launcher.messages.limits import Limits
from tests.launcher.http.apis.fake_link import PROMPT, FakeLink, fake_server, png

PATH = "/sdapi/v1/img2img"
IMAGE, MASK = png(), png(colour=255, mode="L")
TEXT, MASKED = (base64.b64encode(file).decode() for file in (IMAGE, MASK))
# As webuiapi sends it, whatever its user has chosen.
WEBUIAPI: dict[str, Any] = {
    "init_images": [TEXT], "resize_mode": 0, "denoising_strength": 0.75, "mask_blur": 4, "inpainting_fill": 0,
    "inpaint_full_res": True, "inpaint_full_res_padding": 0, "inpainting_mask_invert": 0, "initial_noise_multiplier": 1,
    "prompt": PROMPT, "styles": [], "seed": -1, "subseed": -1, "subseed_strength": 0, "seed_resize_from_h": 0,
    "seed_resize_from_w": 0, "batch_size": 1, "n_iter": 1, "steps": 8, "cfg_scale": 1.0, "image_cfg_scale": 1.5,
    "width": 192, "height": 128, "restore_faces": False, "tiling": False, "do_not_save_samples": False,
    "do_not_save_grid": False, "negative_prompt": "", "eta": 1.0, "s_churn": 0, "s_tmax": 0, "s_tmin": 0, "s_noise": 1,
    "override_settings": {}, "override_settings_restore_afterwards": True, "include_init_images": False,
    "script_name": None, "script_args": [], "sampler_name": "Euler", "sampler_index": None, "send_images": True,
    "save_images": False, "alwayson_scripts": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[TestClient, FakeLink]]:
    with fake_server(Limits(max_image_bytes=20_000)) as server:
        yield server


def test_a_picture_is_drawn_over_as_a1111s_clients_send_it(server: tuple[TestClient, FakeLink]) -> None:
    client, link = server
    answer = client.post(PATH, json=WEBUIAPI).json()
    assert (link.files, link.request.pictures) == ({"image": IMAGE}, ("image",))
    asked = link.request
    assert (asked.strength, asked.strength_steps, asked.mask_crop, asked.mask_feather) == (0.75, "partial", None, None)
    assert (asked.width, asked.height, asked.steps) == (192, 128, 8)
    assert answer["images"] == [TEXT]
    assert answer["warnings"] == []
    assert (answer["parameters"]["init_images"], answer["parameters"]["mask"]) == (None, None)
    info = json.loads(answer["info"])
    assert (info["denoising_strength"], info["steps"]) == (0.75, 8)


def test_a_mask_and_what_lies_around_it(server: tuple[TestClient, FakeLink]) -> None:
    client, link = server
    url = f"data:image/png;base64,{MASKED}"
    client.post(PATH, json=WEBUIAPI | {"mask": url, "inpaint_full_res_padding": 16})
    assert link.files == {"image": IMAGE, "mask": MASK}
    assert (link.request.mask_crop, link.request.mask_feather) == (16, 4)
    client.post(PATH, json={"init_images": TEXT, "mask": MASKED, "prompt": PROMPT, "inpaint_full_res": True})
    asked = link.request
    assert (asked.mask_crop, asked.mask_feather, asked.strength, asked.width) == (32, None, 0.75, None)
    client.post(PATH, json={"init_images": [TEXT], "mask": MASKED, "prompt": PROMPT, "denoising_strength": 1})
    assert (link.request.mask_crop, link.request.strength) == (None, 1)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"resize_mode": 2}, "resize_mode '2' was ignored: a picture of another shape is cropped at its centre"),
        ({"inpainting_fill": 3}, "inpainting_fill '3' was ignored: what is under the mask is the picture"),
        ({"include_init_images": True}, "include_init_images was ignored: answers repeat no pictures"),
        ({"latent_mask": "a"}, "latent_mask was ignored"),
        ({"zzz": "a"}, "zzz was ignored"),
    ],
)
def test_what_is_not_done_is_told(server: tuple[TestClient, FakeLink], changed: dict[str, Any], word: str) -> None:
    client, _ = server
    (told,) = client.post(PATH, json=WEBUIAPI | changed).json()["warnings"]
    assert told.startswith(word)


@pytest.mark.parametrize(
    ("changed", "param", "message"),
    [
        ({"init_images": None}, "init_images", "init_images must be a list with a picture"),
        ({"init_images": []}, "init_images", "init_images must be a list with a picture"),
        ({"init_images": [TEXT, TEXT]}, "init_images", "init_images must be one: one picture is drawn over, and more"),
        (
            {"init_images": ["https://a/b.png"]},
            "init_images",
            "init_images is an address, and this server fetches",
        ),
        ({"init_images": ["?"]}, "init_images", "init_images is no base64"),
        ({"mask": "?"}, "mask", "mask is no base64"),
        ({"denoising_strength": 2}, "denoising_strength", "denoising_strength must be between 0 and 1, got 2"),
        (
            {"mask": MASKED, "inpaint_full_res_padding": -1},
            "inpaint_full_res_padding",
            "inpaint_full_res_padding must be between 0 and 4096 pixels, got -1",
        ),
        ({"mask": MASKED, "mask_blur": 300}, "mask_blur", "mask_blur must be between 0 and 256 pixels, got 300"),
        ({"inpainting_mask_invert": 1}, "inpainting_mask_invert", "inpainting_mask_invert must be 0: what is white in"),
        ({"init_image": TEXT}, "init_image", "unknown parameter 'init_image': did you mean init_images?"),
    ],
)
def test_what_cannot_be_is_told_as_a1111s_clients_read_it(
    server: tuple[TestClient, FakeLink], changed: dict[str, Any], param: str, message: str
) -> None:
    client, _ = server
    answer = client.post(PATH, json=WEBUIAPI | changed)
    error = error_of_a1111(answer)
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(message)
    assert len(error["message"]) < 250


def error_of_a1111(answer: Any) -> dict[str, Any]:
    told: dict[str, Any] = answer.json()
    assert told["detail"] == told["error"]["message"]
    return told["error"]


def test_txt2img_takes_no_picture(server: tuple[TestClient, FakeLink]) -> None:
    client, link = server
    answer = client.post("/sdapi/v1/txt2img", json={"prompt": PROMPT, "denoising_strength": 0.7})
    assert answer.json()["warnings"] == []
    assert (link.files, link.request.strength) == ({}, None)
    answer = client.post("/sdapi/v1/txt2img", json={"prompt": PROMPT, "init_images": [TEXT], "mask": MASKED}).json()
    told = "init_images, mask were ignored: this route draws from the prompt alone, and img2img over a picture"
    assert (answer["warnings"], link.files) == ([told], {})
    assert TEXT not in json.dumps(answer["parameters"])
