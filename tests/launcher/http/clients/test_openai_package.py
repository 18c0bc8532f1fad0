"""The openai package where programs use it otherwise than for one image; `test_openai_images` has the rest."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import openai
import pytest

from tests.launcher.fake_ranks import DEADLINE_S
from tests.launcher.http.clients.tables.rows import KEY, picture
from tests.launcher.http_servers import PROMPT

PNG = ("a.png", b"\x89PNG\r\n\x1a\n", "image/png")


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


def test_edits_and_variations_are_refused_with_a_sentence(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="from a prompt alone") as caught:
        client.images.edit(image=PNG, prompt="with a hat", mask=PNG)
    assert caught.value.code == "not_found"
    with pytest.raises(openai.NotFoundError, match="from a prompt alone"):
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
