"""The openai package where programs use it otherwise than for one image; `test_openai_images` has the rest."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from tests.launcher.fake_ranks import DEADLINE_S
from tests.launcher.http.apis.openai_clients import opened
from tests.launcher.http.clients.tables.rows import KEY, drawn, picture
from tests.launcher.http_servers import PROMPT

PNG = ("a.png", drawn(), "image/png")


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=DEADLINE_S) as client:
        yield client


@pytest.mark.parametrize("base", ["/v1", "/v1/", "//v1", "//v1/"])
def test_a_base_url_may_have_slashes_too_many(client: openai.OpenAI, url: str, base: str) -> None:
    answer = client.with_options(base_url=url + base).images.generate(prompt=PROMPT)
    assert answer.data is not None
    assert answer.data[0].b64_json is not None


def test_a_base_url_without_v1_is_told_what_lacks(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.NotFoundError, match=r"did you mean /v1/images/generations\?"):
        client.with_options(base_url=url).images.generate(prompt=PROMPT)


def test_an_image_is_edited_as_files_are_given(client: openai.OpenAI, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(drawn())
    with (tmp_path / "a.png").open("rb") as file, (tmp_path / "a.png").open("rb") as listed:
        for image in (file, [listed], drawn(), PNG, tmp_path / "a.png", [PNG]):
            answer = client.images.edit(image=image, prompt=PROMPT)  # type: ignore[arg-type]
            assert answer.data is not None
            assert opened(answer.data[0].b64_json).size == (192, 128)
            assert answer.usage is not None
            assert answer.usage.input_tokens_details.image_tokens == 12 * 8
            assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert "neither mask nor strength" in str(answer.model_extra)


def test_an_edit_keeps_what_the_mask_does_not_show(client: openai.OpenAI) -> None:
    mask = Image.new("RGBA", (192, 128), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 64, 64))  # transparent, as OpenAI has it
    file = io.BytesIO()
    mask.save(file, "png")
    own = {"seed": 3, "strength": 0.9, "mask_feather": 0, "outpaint": {"right": 16}, "loras": []}
    answer = client.images.edit(
        image=PNG, mask=file.getvalue(), prompt=PROMPT, n=2, output_format="png", quality="high", input_fidelity="low",
        background="auto", user="a", extra_body=own,
    )  # fmt: skip
    images = [opened(image.b64_json) for image in answer.data or []]
    assert [image.size for image in images] == [(208, 128)] * 2
    for seed, image in zip((3, 4), images, strict=True):
        assert image.getpixel((191, 127)) == (0, 0, 255)
        assert image.getpixel((10, 10))[0] == image.getpixel((207, 10))[0] == seed  # type: ignore[index]


def test_an_edit_streams(client: openai.OpenAI) -> None:
    events = [*client.images.edit(image=PNG, prompt=PROMPT, stream=True, partial_images=1, size="192x128")]
    assert events[-1].type == "image_edit.completed"
    assert {event.type for event in events} <= {"image_edit.partial_image", "image_edit.completed"}
    assert opened(events[-1].b64_json).size == (192, 128)
    assert events[-1].usage.input_tokens_details.image_tokens == 12 * 8


def test_edits_that_cannot_be_and_variations_are_refused_with_a_sentence(client: openai.OpenAI) -> None:
    for files, param, words in (
        ({"image": [PNG, PNG]}, "image", "as references, are not taken yet"),
        ({"image": ("a.png", b"\x89PNG\r\n\x1a\n")}, "image", "image"),
        ({"image": PNG, "mask": drawn(mode="L", colour=0)}, "mask", "mask"),
        ({"image": PNG, "mask": drawn((64, 192), mode="L", colour=255)}, "mask", "mask"),
        ({"image": PNG, "markup": PNG}, "markup", "pictures that only guide are not taken yet"),
    ):
        arguments: Any = files
        with pytest.raises(openai.BadRequestError, match=words) as caught:
            client.images.edit(prompt=PROMPT, **arguments)
        assert caught.value.param == param
    with pytest.raises(openai.NotFoundError, match="POST /v1/images/edits"):
        client.images.create_variation(image=PNG)


def test_a_link_is_what_dall_e_answers(client: openai.OpenAI) -> None:
    for model in ("dall-e-2", "dall-e-3"):
        answer = client.images.generate(prompt=PROMPT, model=model)
        assert answer.data is not None
        assert answer.data[0].b64_json is None
        assert str(answer.data[0].url).startswith("http://127.0.0.1:")
    answer = client.images.generate(prompt=PROMPT, model="dall-e-3", response_format="b64_json")
    assert answer.data is not None
    assert answer.data[0].url is None
    events = client.images.generate(prompt=PROMPT, model="dall-e-3", stream=True, partial_images=0)
    (completed,) = events
    assert completed.type == "image_generation.completed"
    picture(base64.b64decode(completed.b64_json))


def test_a_chat_draws(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="gpt-image-1", messages=[{"role": "user", "content": PROMPT}])
    assert answer.usage is not None
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert "data:image/" in choice.message.model_dump_json()
    said = ""
    with client.chat.completions.create(
        model="gpt-image-1", messages=[{"role": "user", "content": PROMPT}], stream=True
    ) as chunks:
        for chunk in chunks:
            for part in chunk.choices:
                said += part.delta.content or ""
    assert "data:image/" in said


def test_a_chat_without_a_prompt_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="gpt-image-1", messages=[])
    assert caught.value.param == "messages"
