"""A chat completion with images, whole or as events."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from engine.errors import Krea2Error
from launcher.client.results import ImageFile, Result
from launcher.http.answers.computed import of_all
from launcher.http.answers.drawing import Drawing
from launcher.http.answers.errors import error_body
from launcher.http.answers.event_stream import write_data
from launcher.http.apis.chat.body import Form
from launcher.messages.client_messages import Accepted, Progress

_PIECE = 32 * 1024  # characters: of a line of 128 KiB, aiohttp, which Open WebUI reads streams with, makes an error
_SHOWN_PROMPT = 100  # characters
_SAID = re.compile(r"[\s\[\]()\\<>!`*_]+")  # what would end an image's description, or mean something in it


@dataclass(frozen=True)
class Answer:
    """What is the same for all of an answer.

    num_choices: each has as many images as the others. link: keeps a file of a format, and gives its url; None for
    data URLs. warnings: besides the result's own.
    """

    drawing: Drawing
    model: str
    form: Form
    num_choices: int
    link: Callable[[bytes, str], Awaitable[str]] | None
    warnings: tuple[str, ...]
    in_words_of: Callable[[Krea2Error], Krea2Error]
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def per_choice(self) -> int:
        """How many images a choice has."""
        return self.drawing.checked.num_images // self.num_choices

    async def url_of(self, file: bytes) -> str:
        """Give the url of an image."""
        output_format = self.drawing.checked.output_format
        if self.link is not None:
            return await self.link(file, output_format)
        return f"data:image/{output_format};base64,{base64.b64encode(file).decode()}"

    def envelope(self, kind: str) -> dict[str, object]:
        """Begin an object of a kind."""
        request_id = self.drawing.request_id
        own = {"created": self.created, "model": self.model, "request_id": request_id}
        return {"id": f"chatcmpl-{request_id}", "object": kind, **own}


async def completion(answer: Answer, result: Result) -> dict[str, object]:
    """Put a result into a completion."""
    urls = [await answer.url_of(file) for file in result.files]
    warnings = result.warnings + answer.warnings
    choices = []
    for index in range(answer.num_choices):
        first = index * answer.per_choice
        own = [
            _shown(answer.form, url, result.prompt, seed, position)
            for position, (url, seed) in enumerate(
                zip(urls[first : first + answer.per_choice], result.seeds[first:], strict=False)
            )
        ]
        message = {"role": "assistant", "refusal": None, **_joined([*own, _warned(answer.form, warnings)])}
        choices.append({"index": index, "message": message, "finish_reason": "stop", "logprobs": None})
    return {
        **answer.envelope("chat.completion"),
        "choices": choices,
        "usage": _counted(answer.drawing, result),
        "seed": result.seed,
        "size": f"{result.width}x{result.height}",
        "output_format": result.format,
        **of_all(result.computed),
        **result.told(answer.warnings),
    }


async def write_chunks(
    answer: Answer, request: Request, *, progress: bool, includes_usage: bool
) -> AsyncGenerator[bytes, None]:
    """Write a completion as events: each image when it comes, a long one in pieces."""
    every = range(answer.num_choices)

    def write(index: int, delta: Mapping[str, Any], finish: str | None = None, **more: object) -> bytes:
        choices = [{"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}]
        counted = {"usage": None} if includes_usage else {}
        return write_data(answer.envelope("chat.completion.chunk") | {"choices": choices} | counted | more)

    for index in every:
        yield write(index, {"role": "assistant", "content": ""})
    async with aclosing(answer.drawing.events()) as events:
        try:
            async for event in events:
                match event:
                    case ImageFile():
                        index, position = divmod(event.index, answer.per_choice)
                        url = await answer.url_of(event.file)
                        for delta in _pieces(_shown(answer.form, url, event.prompt, event.seed, position)):
                            yield write(index, delta)
                    case Result():
                        warnings = event.warnings + answer.warnings
                        for index in every:
                            if warnings:
                                yield write(index, _warned(answer.form, warnings))
                            told: dict[str, object] = {}
                            if index == every[-1]:
                                told = {"seed": event.seed, **of_all(event.computed), **event.told(answer.warnings)}
                            yield write(index, {}, "stop", **told)
                        if includes_usage:
                            counted = {"choices": [], "usage": _counted(answer.drawing, event)}
                            yield write_data(answer.envelope("chat.completion.chunk") | counted)
                    case Progress(step=step, steps=steps) if progress:
                        yield write(0, {"reasoning_content": f"step {step} of {steps}\n"})
                    case Accepted(position=position) if progress and position:
                        yield write(0, {"reasoning_content": f"behind {position} images\n"})
        except Krea2Error as error:
            problem = answer.in_words_of(error)
            request.state.error_code = problem.code  # for the log
            yield write_data(error_body(problem, answer.drawing.request_id))
    yield b"data: [DONE]\n\n"


def _shown(form: Form, url: str, prompt: str, seed: int, position: int) -> dict[str, Any]:
    """An image as a message shows it, or a delta."""
    part = {"type": "image_url", "image_url": {"url": url}}
    if form == "images":
        return {"content": "", "images": [{**part, "index": position}]}
    if form == "parts":
        return {"content": [part]}
    said = _SAID.sub(" ", prompt[:_SHOWN_PROMPT]).strip()
    return {"content": f"![{said}, seed {seed}]({url})\n\n"}


def _warned(form: Form, warnings: Sequence[str]) -> dict[str, Any]:
    """Warnings as a message shows them, or a delta."""
    lines = "\n\n".join(f"Warning: {' '.join(warning.split())}" for warning in warnings)
    if form == "parts":
        return {"content": [{"type": "text", "text": lines}] if lines else []}
    return {"content": lines}


def _joined(deltas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up deltas, as clients do."""
    whole: dict[str, Any] = {}
    for delta in deltas:
        for name, value in delta.items():
            whole[name] = whole[name] + value if name in whole else value
    content = whole["content"]
    return {**whole, "content": content.strip() if isinstance(content, str) else content}


def _pieces(delta: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Split a delta whose text is long."""
    text = delta["content"]
    if not isinstance(text, str) or not text:
        yield delta
        return
    for start in range(0, len(text), _PIECE):
        yield {**delta, "content": text[start : start + _PIECE]}


def _counted(drawing: Drawing, result: Result) -> dict[str, int]:
    """Count tokens: those of a picture that was drawn over are the prompt's, too."""
    made = result.usage.image_tokens
    prompt = result.usage.text_tokens + drawing.picture_tokens(result.usage, len(result.files))
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
