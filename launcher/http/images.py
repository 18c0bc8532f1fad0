"""`POST /v1/images/generations`: from a body to a response or a stream of events; and the images behind urls."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Annotated

import msgspec
from fastapi import FastAPI, Header, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from engine.config.model_config import ModelConfig
from engine.errors import ArgumentError, error_from_code
from launcher.client.results import Result
from launcher.http import openai_api
from launcher.http.connections import EngineLink
from launcher.http.docs import IMAGES_SCHEMA
from launcher.http.errors import JsonResponse
from launcher.http.guard import FILES_PATH
from launcher.http.workers.held_files import HeldFiles
from launcher.messages.client_messages import LONGEST_IDEMPOTENCY_KEY, Accepted, is_idempotency_key
from launcher.messages.configs import HttpConfig
from launcher.requests.check import check

_SHOWN_ID = 50  # characters of a client's id that the engine's begins with
IDEMPOTENCY_KEY = Header(
    alias="Idempotency-Key",
    description="A request with the same key and body, sent again, joins the first or gets its answer. "
    f"1 to {LONGEST_IDEMPOTENCY_KEY} printable ASCII characters.",
)


def add_image_routes(app: FastAPI, config: HttpConfig, model: ModelConfig, link: EngineLink) -> None:
    """Add the route that makes images, and the route of images that were sent as urls."""
    files = HeldFiles(config.run_folder)

    @app.post("/v1/images/generations", responses=IMAGES_SCHEMA)
    async def generate_images(
        body: openai_api.ImageRequest, request: Request, idempotency_key: Annotated[str | None, IDEMPOTENCY_KEY] = None
    ) -> Response:
        """Make images from a prompt. Hanging up cancels the request."""
        if body.model is not None:
            check_model(config, body.model)
        request_id = request.state.request_id
        try:
            # The client's own id may come again: from proxies that give one to many requests, and from clients that
            # hang up and try again, and would get the end of the request that they gave up.
            message = openai_api.to_generate(body, f"{request_id[:_SHOWN_ID]}.{secrets.token_hex(4)}", model)
            warnings = openai_api.warn(body, model)
            check_idempotency_key(idempotency_key)
            # The front-end would say the same, but what the previews need is known here only afterwards.
            checked = check(message, model, config.limits, drawn_seed=0)
            every = openai_api.preview_every(body, checked.steps)
            message = msgspec.structs.replace(message, preview_every=every, idempotency_key=idempotency_key)
            if config.client_name is not None:  # or else the front-end would not believe it
                message = msgspec.structs.replace(message, caller=request.state.key_name)
            events = link.follow(message)
            event = await anext(events)  # an error that comes at once is a response with its status
            headers = {} if isinstance(event, Accepted) else {"Idempotent-Replayed": "true"}
            if body.stream:
                return _EventStream(openai_api.write_events(body, checked, request, event, events, warnings), headers)
            async with aclosing(events):
                while not isinstance(event, Result):
                    event = await anext(events)
        except ArgumentError as error:
            raise openai_api.in_words_of(body, error) from None
        urls = None
        if body.response_format == "url":
            link_base = (config.public_url or str(request.base_url)).rstrip("/") + FILES_PATH
            urls = [link_base + await asyncio.to_thread(files.add, file, checked.output_format) for file in event.files]
        return JsonResponse(openai_api.images_object(event, request_id, urls, warnings), headers=headers)

    @app.get(FILES_PATH + "{name}", response_class=Response, responses={200: {"content": {"image/*": {}}}})
    @app.head(FILES_PATH + "{name}", include_in_schema=False)
    async def get_file(name: str) -> Response:
        """An image that was answered as a url."""
        file = await asyncio.to_thread(files.get, name)
        if file is None:
            raise error_from_code(
                "not_found", "no such image: they are held for an hour at most, less if there are many"
            )
        headers = {"Cache-Control": "private, max-age=3600, immutable"}
        return Response(file, headers=headers, media_type=f"image/{name.rpartition('.')[2]}")


class _EventStream(StreamingResponse):
    """Sends server-sent events, and closes their generator at once when the client hangs up."""

    def __init__(self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store", **headers})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await self.stream_response(send)


def check_idempotency_key(key: str | None) -> None:
    """Raise `ArgumentError` for an Idempotency-Key that cannot be one."""
    if key is not None and not is_idempotency_key(key):
        allowed = f"1 to {LONGEST_IDEMPOTENCY_KEY} printable ASCII characters"
        raise ArgumentError.of("Idempotency-Key", allowed, key)


def check_model(config: HttpConfig, name: str) -> None:
    """Raise `model_not_found` for a name that is not served."""
    if name not in config.model_names:
        served = " or ".join(config.model_names)
        raise error_from_code("model_not_found", f"model must be {served}, got {name[:80]!a}", "model")
