"""The other APIs: chats, AUTOMATIC1111's, and the openai package as a client of all of OpenAI's."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

from tests.launcher.http_servers import PATH, PROMPT
from tests.launcher.processes import PATIENCE_S, wait_until
from tests.launcher.ray.both.sent import (
    A1111,
    BODY,
    CHAT,
    IMG2IMG,
    SAID,
    TXT2IMG,
    data_url,
    events,
    half_mask,
    images,
    pixels,
    png,
    refused,
)
from tests.launcher.ray.servers import KEY, Served

pytestmark = pytest.mark.cluster
SETTINGS = {"size": "96x96", "steps": 2, "seed": 1}


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE_S) as client:
        yield client


@pytest.fixture
def drawn(server: Served) -> np.ndarray:
    """What all APIs are to draw."""
    return images(server.post(PATH, BODY))[0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_is_answered_with_a_picture(server: Served, drawn: np.ndarray, stream: bool) -> None:
    body = {"messages": SAID, "model": "krea", "output_format": "png", "stream": stream, **SETTINGS}
    answer = server.post(CHAT, body)
    assert answer.status_code == 200, answer.text
    if stream:
        *chunks, (_, done) = events(answer.text)
        assert done == "[DONE]"
        assert {chunk["object"] for _, chunk in chunks} == {"chat.completion.chunk"}
        content = "".join(choice["delta"].get("content") or "" for _, chunk in chunks for choice in chunk["choices"])
    else:
        (choice,) = answer.json()["choices"]
        assert (choice["finish_reason"], choice["message"]["role"]) == ("stop", "assistant")
        content = choice["message"]["content"]
    (found,) = re.findall(r"\((data:image/png;base64,[^)]+)\)", content)
    assert np.array_equal(pixels(found), drawn)


def test_a_chat_draws_over_the_picture_that_it_shows(server: Served) -> None:
    content = [{"type": "text", "text": PROMPT}, {"type": "image_url", "image_url": {"url": data_url(png())}}]
    answer = server.post(CHAT, {"messages": [{"role": "user", "content": content}], "strength": 0.5, **SETTINGS})
    assert answer.status_code == 200, answer.text
    assert "data:image/" in json.dumps(answer.json())


def test_a1111_draws_and_draws_over(server: Served, drawn: np.ndarray) -> None:
    answer = server.post(TXT2IMG, A1111 | {"n_iter": 2})
    assert answer.status_code == 200, answer.text
    told, info = answer.json(), json.loads(answer.json()["info"])
    assert info["all_seeds"] == [1, 2]
    assert np.abs(pixels(told["images"][0]).astype(int) - drawn).max() <= 1
    over = server.post(IMG2IMG, A1111 | {"init_images": [data_url(png())], "denoising_strength": 0.5})
    assert over.status_code == 200, over.text
    assert pixels(over.json()["images"][0]).shape == (96, 96, 3)
    with_lora = server.post(TXT2IMG, A1111 | {"prompt": f"{PROMPT} <lora:ink:1>"})
    assert not np.array_equal(pixels(with_lora.json()["images"][0]), drawn)


def test_a1111_tells_progress_and_interrupts(server: Served) -> None:
    server.wait_for_rest()
    idle = server.ask("GET", "/sdapi/v1/progress").json()
    assert (idle["progress"], idle["state"]["job"]) == (0, "")
    answers: list[Any] = []
    long = A1111 | {"width": 256, "height": 256, "steps": 200, "n_iter": 10}
    drawing = threading.Thread(target=lambda: answers.append(server.post(TXT2IMG, long)))
    drawing.start()
    try:
        wait_until(lambda: server.ask("GET", "/sdapi/v1/progress").json()["state"]["sampling_step"] > 0, "a step")
        told = server.ask("GET", "/sdapi/v1/progress").json()
        assert (told["state"]["job"], told["state"]["job_count"]) == ("txt2img", 10)
        assert 0 < told["progress"] < 1
    finally:
        interrupted = server.post("/sdapi/v1/interrupt", {})
        drawing.join(PATIENCE_S)
    assert interrupted.json() == {"info": "1 request was interrupted"}
    (answer,) = answers
    if answer.status_code != 200:  # no image was done
        assert (answer.status_code, refused(answer)["error"]["code"]) == (499, "cancelled")
    server.wait_for_rest()


def test_the_openai_package_draws(client: openai.OpenAI, drawn: np.ndarray) -> None:
    answer = client.images.generate(
        model="krea", prompt=PROMPT, size="96x96", n=1, extra_body={"steps": 2, "seed": 1}  # type: ignore[call-overload]
    )  # fmt: skip
    assert np.array_equal(pixels(answer.data[0].b64_json), drawn)
    assert answer.usage.output_tokens == 36

    def has_previews() -> bool:  # one that was not passed on before the picture was there is left out
        settings = SETTINGS | {"steps": 4}
        found = [*client.images.generate(prompt=PROMPT, stream=True, partial_images=1, extra_body=settings)]
        *previews, last = [event.type.removeprefix("image_generation.") for event in found]
        assert (last, {*previews} - {"partial_image"}) == ("completed", set())
        return len(previews) == 1

    wait_until(has_previews, "a stream with all its previews")
    assert [model.id for model in client.models.list()] == ["krea", "krea-2-turbo"]


def test_the_openai_package_edits_and_chats(client: openai.OpenAI) -> None:
    edited = client.images.edit(
        image=("a.png", png(), "image/png"), mask=("m.png", half_mask(), "image/png"), prompt=PROMPT,
        extra_body={"steps": 2, "seed": 1},
    )  # fmt: skip
    assert edited.data is not None
    assert pixels(edited.data[0].b64_json or "").shape == (96, 96, 3)
    chat = client.chat.completions.create(model="krea", messages=SAID, extra_body=SETTINGS)  # type: ignore[arg-type]
    assert "data:image/webp;base64," in (chat.choices[0].message.content or "")


def test_the_openai_package_raises_what_it_knows(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        client.images.generate(prompt=PROMPT, extra_body={"steps": 0})
    assert (wrong.value.param, wrong.value.code) == ("steps", "invalid_parameter")
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt=PROMPT, model="nobody")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
