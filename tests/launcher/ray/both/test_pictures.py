"""Pictures: seeds, numbers, formats, LoRAs, pictures that are drawn over, links, and repetitions."""

from __future__ import annotations

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.launcher.http_servers import PATH, PROMPT
from tests.launcher.processes import PATIENCE_S
from tests.launcher.ray.both.sent import BODY, EDITS, data_url, half_mask, images, pixels, png, refused
from tests.launcher.ray.servers import Served

pytestmark = pytest.mark.cluster


def test_a_seed_draws_the_same_again_and_another_draws_another(server: Served) -> None:
    first, again, other = (images(server.post(PATH, BODY | {"seed": seed}))[0] for seed in (5, 5, 6))
    assert first.shape == (96, 96, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_seed_that_is_drawn_is_told_and_draws_the_same_again(server: Served) -> None:
    answers = [server.post(PATH, {name: BODY[name] for name in ("prompt", "size", "steps")}) for _ in range(2)]
    seeds = [answer.json()["seed"] for answer in answers]
    assert seeds[0] != seeds[1]
    assert np.array_equal(images(answers[0])[0], images(server.post(PATH, BODY | {"seed": seeds[0]}))[0])


def test_several_images_have_seeds_that_follow_each_other(server: Served) -> None:
    answer = server.post(PATH, BODY | {"n": 3, "seed": 5})
    told = answer.json()
    assert [(image["index"], image["seed"]) for image in told["data"]] == [(0, 5), (1, 6), (2, 7)]
    assert told["usage"]["output_tokens"] == 3 * 6 * 6
    for seed, image in zip((5, 6, 7), images(answer), strict=True):
        alone = images(server.post(PATH, BODY | {"seed": seed}))[0]
        assert np.abs(image.astype(int) - alone).max() <= 1  # packed with others


@pytest.mark.parametrize(("output_format", "quality"), [("png", None), ("jpeg", 60), ("webp", 60)])
def test_images_are_files_of_the_format_that_is_asked_for(
    server: Served, output_format: str, quality: int | None
) -> None:
    answer = server.post(PATH, BODY | {"output_format": output_format, "output_compression": quality})
    assert answer.status_code == 200, answer.text
    assert answer.json()["output_format"] == output_format
    file = base64.b64decode(answer.json()["data"][0]["b64_json"])
    assert Image.open(io.BytesIO(file)).format == output_format.upper()


def test_a_declared_lora_changes_the_picture_by_its_strength(server: Served) -> None:
    plain, ink, none = (
        images(server.post(PATH, BODY | {"loras": loras}))[0]
        for loras in ([], ["ink"], [{"name": "ink", "strength": 0.0}])
    )
    assert not np.array_equal(plain, ink)
    assert np.array_equal(plain, none)


def test_a_picture_is_drawn_over_by_form_and_by_json_alike(server: Served) -> None:
    fields = {"prompt": PROMPT, "steps": 2, "seed": 1, "strength": 0.7}
    files = {"image": ("a.png", png(), "image/png"), "mask": ("m.png", half_mask(), "image/png")}
    form = images(server.ask("POST", EDITS, data=fields, files=files))[0]
    body = fields | {"image": data_url(png()), "mask": data_url(half_mask())}
    for path in (EDITS, PATH):
        assert np.array_equal(images(server.post(path, body))[0], form), path
    original = pixels(png())
    assert np.array_equal(form[:, 64:], original[:, 64:])  # what the mask does not show
    assert not np.array_equal(form[:, :32], original[:, :32])


def test_a_large_picture_goes_in(server: Served) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "png")  # 790 kB
    answer = server.ask(
        "POST", EDITS, data={"prompt": PROMPT, "size": "96x96", "steps": 2}, files={"image": ("a.png", file.getvalue())}
    )
    assert images(answer)[0].shape == (96, 96, 3)


def test_a_picture_of_more_than_4_mib_comes_back(server: Served) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1088, 1088, 3), np.uint8)
    mask = np.zeros((1088, 1088), np.uint8)
    mask[512:576, 512:576] = 255
    files = {}
    for name, picture in (("image", noise), ("mask", mask)):
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "png")
        files[name] = (f"{name}.png", file.getvalue(), "image/png")
    fields = {"prompt": PROMPT, "size": "64x64", "steps": 2, "mask_crop": 32, "mask_feather": 0}
    answer = server.ask("POST", EDITS, data=fields, files=files)
    assert answer.status_code == 200, answer.text
    assert len(answer.content) > 4 * 2**20  # beyond what gRPC lets through unless it is told
    drawn = images(answer)[0]
    assert np.array_equal(drawn[:256], noise[:256])


def test_images_can_be_answered_as_links_which_carry_their_own_secret(server: Served) -> None:
    answer = server.post(PATH, BODY | {"response_format": "url", "n": 2})
    assert answer.status_code == 200, answer.text
    links = [image["url"] for image in answer.json()["data"]]
    assert all(link.startswith(f"{server.url}/v1/images/files/") for link in links)
    for link, index in zip(links, range(2), strict=True):
        for method in ("GET", "HEAD"):
            got = httpx.request(method, link, timeout=PATIENCE_S)
            assert (got.status_code, got.headers["content-type"]) == (200, "image/png")
        shown = pixels(httpx.get(link, timeout=PATIENCE_S).content)
        alone = images(server.post(PATH, BODY | {"seed": BODY["seed"] + index}))[0]  # type: ignore[operator]
        assert np.abs(shown.astype(int) - alone).max() <= 1


def test_a_repetition_under_a_key_gets_the_same_answer_and_nothing_is_drawn_anew(server: Served) -> None:
    body = {name: BODY[name] for name in ("prompt", "size", "steps")}  # whose seed is drawn
    first, again = (server.post(PATH, body, **{"Idempotency-Key": "again"}) for _ in range(2))
    assert first.status_code == again.status_code == 200
    assert [answer.headers.get("idempotent-replayed") for answer in (first, again)] == [None, "true"]
    assert first.json()["data"] == again.json()["data"]
    assert first.json()["seed"] == again.json()["seed"]
    with ThreadPoolExecutor(4) as pool:
        key = {"Idempotency-Key": "at-once"}
        answers = [*pool.map(lambda _: server.post(PATH, body, **key), range(4))]
    assert len({json.dumps(answer.json()["data"]) for answer in answers}) == 1
    other = server.post(PATH, body | {"steps": 3}, **{"Idempotency-Key": "again"})
    assert (other.status_code, refused(other)["error"]["code"]) == (422, "idempotency_conflict")
