"""Requests of programs that draw by chatting."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from tests.launcher.http.clients.tables.rows import (
    CHAT,
    KEY,
    NODE_FETCH,
    OPENAI_NODE,
    OPENAI_PYTHON,
    Got,
    Row,
    drawn,
    models,
    picture,
)
from tests.launcher.http_servers import PROMPT

DIFY = "langgenius/dify-official-plugins@edc8007: tools/openai/provider/openai.py"
LOBE = "lobehub/lobe-chat: packages/model-runtime/src/core/openaiCompatibleFactory/createImage.ts"
OPEN_WEBUI = "open-webui/open-webui@671f577: backend/open_webui/routers/openai.py"
VLLM_OMNI = "vllm-project/vllm-omni@be81443: examples/online_serving"
SILLY_TAVERN = "SillyTavern/SillyTavern: src/endpoints/backends/chat-completions.js"

_DATA_URI = re.compile(r"data:image/[a-zA-Z0-9.+-]+;base64,([A-Za-z0-9+/=]+)")
_BEARER = {"Authorization": f"Bearer {KEY}"}


def _said(message: str | list[Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": message}]


def _whole(got: Got) -> Any:
    (choice,) = got.json["choices"]
    assert (got.json["object"], choice["index"], choice["finish_reason"]) == ("chat.completion", 0, "stop")
    assert choice["message"]["role"] == "assistant"
    usage = got.json["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    return choice["message"]


def _uris(message: Any) -> list[str]:
    return _DATA_URI.findall(json.dumps(message))


def _draws(got: Got) -> None:
    """Finds an image as a data URI in what the assistant has said."""
    found = _uris(_whole(got))
    assert found
    picture(base64.b64decode(found[0]), kind=None)


def _streams(got: Got) -> None:
    """Puts `delta.content` together, and shows the Markdown that this is."""
    (found,) = set(_uris(_deltas(got)))
    picture(base64.b64decode(found), kind=None)


def _streams_images(got: Got) -> None:
    """Makes a file of each `image_url` of `delta.images`, and shows these below the text."""
    deltas = _deltas(got)
    (image,) = [image for delta in deltas for image in delta.get("images", [])]
    assert image["type"] == "image_url"
    (found,) = _uris(image["image_url"]["url"])
    picture(base64.b64decode(found), kind=None)
    assert not _uris([delta.get("content") for delta in deltas])


def _deltas(got: Got) -> list[dict[str, Any]]:
    assert got.answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in got.answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


_SHOWN = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(drawn()).decode()}"}}

ROWS = (
    Row("Dify", "tries the credentials of its tool, with a joke", DIFY, _draws,
        {"model": "gpt-4.1-nano", "messages": _said("Tell me a joke."), "max_tokens": 10}, path=CHAT,
        headers=OPENAI_PYTHON),
    Row("LobeChat", "draws with a model whose name ends in :image", LOBE, _draws,
        {"model": "krea-2-turbo", "messages": _said([{"type": "text", "text": PROMPT}]),
         "modalities": ["image", "text"], "stream": False}, path=CHAT, headers=OPENAI_NODE),
    Row("Open WebUI", "lists models of a connection", OPEN_WEBUI, models("gpt-image-1"), method="GET",
        path="/v1/models", headers=_BEARER),
    Row("Open WebUI", "draws in a chat", OPEN_WEBUI, _streams,
        {"stream": True, "model": "krea-2-turbo", "messages": _said(PROMPT)}, path=CHAT, headers=_BEARER),
    Row("Open WebUI", "makes files of pictures in a chat, with a custom parameter", OPEN_WEBUI, _streams_images,
        {"stream": True, "model": "krea-2-turbo", "messages": _said(PROMPT), "answer_as": "images"}, path=CHAT,
        headers=_BEARER),
    Row("Open WebUI", "draws in a chat over an image that was added", OPEN_WEBUI, _streams,
        {"stream": True, "model": "krea-2-turbo", "messages": _said([{"type": "text", "text": PROMPT}, _SHOWN])},
        path=CHAT, headers=_BEARER),
    Row("SillyTavern", "draws in a chat with a custom source", SILLY_TAVERN, _streams,
        {"model": "krea-2-turbo", "stream": True, "temperature": 1, "max_tokens": 300, "presence_penalty": 0,
         "frequency_penalty": 0, "top_p": 1,
         "messages": [{"role": "system", "content": "You draw."}, *_said(PROMPT)]}, path=CHAT,
        headers=NODE_FETCH | _BEARER),
    Row("vLLM-Omni's users", "draw with its extra parameters", VLLM_OMNI, _draws,
        {"messages": _said(PROMPT), "extra_body": {"height": 128, "width": 192, "num_inference_steps": 4, "seed": 42}},
        path=CHAT, headers={"Accept": "*/*"}),
)  # fmt: skip
