"""Chat completions as the openai package, and programs that read their text, get them."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam as Message
from PIL import Image

from engine.errors import RequestTimeoutError
from launcher.http.apis.chat.answers import Answer, write_chunks
from launcher.messages.client_messages import Progress
from tests.launcher.fake_ranks import DEADLINE_S
from tests.launcher.http.apis.chat.conftest import MODEL
from tests.launcher.http_servers import PROMPT

SAID: list[Message] = [{"role": "user", "content": PROMPT}]
PATH = "/v1/chat/completions"
_MARKDOWN = re.compile(r"!\[([^\]]*)\]\(data:image/(\w+);base64,([^)]+)\)")


def opened(data_url: str) -> Image.Image:
    kind, _, text = data_url.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    assert f"data:image/{image.format}".lower() == kind
    return image


def red(data_url: str) -> int:
    """What fake ranks draw: the seed."""
    pixel: Any = opened(data_url).getpixel((0, 0))
    return round(pixel[0])


def answered(url: str, headers: dict[str, str] | None = None, **body: object) -> httpx.Response:
    return httpx.post(url + PATH, json={"messages": SAID, **body}, headers=headers, timeout=DEADLINE_S)


def posted(url: str, **body: object) -> Any:
    answer = answered(url, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_picture_is_markdown_in_the_text_of_an_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "system", "content": "You draw."}, *SAID], seed=5, temperature=0.5,
        max_tokens=100, extra_body={"width": 96, "height": 97},
    )  # fmt: skip
    (choice,) = answer.choices
    assert (answer.model, choice.finish_reason, choice.message.role) == (MODEL, "stop", "assistant")
    content = choice.message.content or ""
    (found,) = _MARKDOWN.finditer(content)
    assert (found[1], found[2]) == (f"{PROMPT}, seed 5", "webp")
    assert Image.open(io.BytesIO(base64.b64decode(found[3]))).size == (96, 112)
    warning = "Warning: the size 96 × 97 was rounded up to 96 × 112, multiples of 16"
    assert content.endswith(f")\n\n{warning}")
    assert answer.usage is not None
    counted = answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens
    assert counted == (7, 42, 49)
    assert answer.model_extra is not None
    assert [f"Warning: {each}" for each in answer.model_extra["warnings"]] == [warning]
    assert (answer.model_extra["seed"], answer.model_extra["size"]) == (5, "96x112")


@pytest.mark.parametrize(
    ("body", "form"),
    [
        ({"modalities": ["image", "text"]}, "images"),
        ({"extra_body": {"steps": 2}}, "parts"),
        ({"extra_body": {"steps": 2}, "answer_as": "markdown"}, "markdown"),
        ({"answer_as": "images", "response_format": {"type": "text"}}, "images"),
        ({"answer_as": "parts", "response_format": "b64_json"}, "parts"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_pictures_are_where_a_program_looks_for_them(url: str, body: dict[str, Any], form: str, stream: bool) -> None:
    body = {"seed": 5, "num_outputs_per_prompt": 2, "width": 97, **body}
    if stream:
        message = joined(answered(url, stream=True, **body).text)
    else:
        message = posted(url, **body)["choices"][0]["message"]
    if form == "markdown":
        found = [f"data:image/{each[2]};base64,{each[3]}" for each in _MARKDOWN.finditer(message["content"])]
        told = message["content"].rpartition("\n\n")[2]
    elif form == "images":
        found = [image["image_url"]["url"] for image in message["images"]]
        told = message["content"]
    else:
        *images, text = message["content"]
        assert {image["type"] for image in images} == {"image_url"}
        found, told = [image["image_url"]["url"] for image in images], text["text"]
    assert sorted(map(red, found)) == pytest.approx([5, 6], abs=2 if form == "markdown" else 0)
    assert told.startswith("Warning: the size 97 × 128 was rounded up")


def joined(events: str) -> dict[str, Any]:
    """Add up the deltas of a stream."""
    message: dict[str, Any] = {}
    blocks = events.strip().split("\n\n")
    assert blocks[-1] == "data: [DONE]"
    for block in blocks[:-1]:
        for choice in json.loads(block.removeprefix("data: "))["choices"]:
            for name, value in choice["delta"].items():
                message[name] = message[name] + value if message.get(name) else value
    return message


def test_a_stream_is_a_completion_in_chunks(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.http.apis.chat.answers._PIECE", 50)
    stream = client.chat.completions.create(
        model=MODEL, messages=SAID, seed=5, stream=True, stream_options={"include_usage": True},
        extra_body={"progress": True, "steps": 3},
    )  # fmt: skip
    *chunks, last = stream
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in [*chunks, last]}) == 1
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    pieces = [delta.content for delta in deltas if delta.content]
    assert len(pieces) > 2
    assert max(map(len, pieces)) == 50
    (found,) = _MARKDOWN.finditer("".join(pieces))
    assert found[1] == f"{PROMPT}, seed 5"
    thoughts = [(delta.model_extra or {}).get("reasoning_content") for delta in deltas]
    assert "step 3 of 3\n" in thoughts
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1].model_extra is not None
    assert (chunks[-1].model_extra["seed"], chunks[-1].model_extra["warnings"]) == (5, [])
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (7, 64)


def test_n_choices_have_images_of_their_own(url: str) -> None:
    answer = posted(url, n=2, num_outputs_per_prompt=2, seed=5, answer_as="images")
    seeds = [[red(image["image_url"]["url"]) for image in each["message"]["images"]] for each in answer["choices"]]
    assert seeds == [[5, 6], [7, 8]]
    assert answer["usage"]["completion_tokens"] == 4 * 64


def test_a_link_is_held_for_who_asks_for_one(url: str) -> None:
    for body in ({}, {"stream": True}):
        text = answered(url, response_format="url", **body).text
        (link,) = re.findall(re.escape(url) + r"/v1/images/files/[\w-]+\.png", text)
        assert httpx.get(link, timeout=DEADLINE_S).headers["content-type"] == "image/png"


def test_a_repeated_idempotency_key_gets_the_same_answer(url: str) -> None:
    answers = [answered(url, headers={"Idempotency-Key": "a chat"}) for _ in range(2)]
    assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, "true"]
    first, again = (answer.json()["choices"] for answer in answers)
    assert first == again


def test_a_long_chat_with_pictures_and_deep_tools_fits(url: str) -> None:
    picture = "x" * 3_000_000
    tool: dict[str, Any] = {"type": "string"}
    for _ in range(20):
        tool = {"type": "object", "properties": {"x": tool}}
    messages = [*SAID, {"role": "assistant", "content": f"![a](data:image/png;base64,{picture})"}] * 2
    assert posted(url, messages=messages, tools=[{"type": "function", "function": {"parameters": tool}}])["choices"]


@pytest.mark.parametrize(
    ("arguments", "param", "message"),
    [
        ({"n": 11}, "n", "n must be between 1 and 10, got 11"),
        ({"n": 4, "num_outputs_per_prompt": 3}, "n", "n choices may have at most 10 images together, got 4 × 3"),
        ({"num_outputs_per_prompt": 11}, "num_outputs_per_prompt", "num_outputs_per_prompt must be between 1 and 10"),
        ({"num_inference_steps": 0}, "num_inference_steps", "num_inference_steps must be between 1 and 200, got 0"),
        ({"size": "5000x64"}, "size", "size 5000x64: width must be between 64 and 4096, got 5000"),
        ({"messages": "draw"}, "messages", "messages must be a valid list, got a text"),
    ],
)
def test_a_bad_parameter_is_named(client: openai.OpenAI, arguments: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=re.escape(message)) as caught:
        client.chat.completions.create(model=MODEL, messages=SAID, extra_body=arguments)
    assert caught.value.param == param


def test_a_model_that_is_not_served_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=f"model must be {MODEL} or gpt-image-1, got 'gpt-4o'"):
        client.chat.completions.create(model="gpt-4o", messages=SAID)


def answer_of(events: Callable[[], Any]) -> Answer:
    drawing: Any = SimpleNamespace(request_id="7", events=events, checked=SimpleNamespace(num_images=1))
    return Answer(drawing, MODEL, "markdown", 1, None, (), lambda error: error)


def request() -> Any:
    return SimpleNamespace(state=SimpleNamespace())


def test_an_error_ends_a_stream_in_the_clients_words() -> None:
    async def events() -> Any:
        raise RequestTimeoutError("too late", parameter="timeout_s")
        yield

    asked = request()

    async def test() -> list[bytes]:
        return [chunk async for chunk in write_chunks(answer_of(events), asked, progress=False, includes_usage=False)]

    _, failed, done = asyncio.run(test())
    assert json.loads(failed.removeprefix(b"data: "))["error"]["code"] == asked.state.error_code == "timeout"
    assert done == b"data: [DONE]\n\n"


def test_closing_the_chunks_closes_the_drawing_which_cancels_it() -> None:
    closed = asyncio.Event()

    async def events() -> Any:
        try:
            yield Progress(request_id="7", step=1, steps=2, estimated_s=None, attempt=1)
            yield Progress(request_id="7", step=2, steps=2, estimated_s=None, attempt=1)
        finally:
            closed.set()

    async def test() -> None:
        chunks = write_chunks(answer_of(events), request(), progress=True, includes_usage=False)
        assert [b"assistant" in await anext(chunks), b"step 1 of 2" in await anext(chunks)] == [True, True]
        await chunks.aclose()

    asyncio.run(test())
    assert closed.is_set()
