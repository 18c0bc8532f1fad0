"""The servers that `bench.serve` can drive: any with OpenAI's images API over HTTP, and the engine's own RPC."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import httpx

from bench.serve.traffic import REFUSED, Answer, ImageRequest, RequestFailed
from engine.errors import ArgumentError, Krea2Error, QueueFullError
from launcher.client.async_client import AsyncClient

FIELDS = {  # OpenAI's API has neither, so servers differ in the names
    "krea": ("steps", "guidance"),
    "diffusers": ("num_inference_steps", "guidance_scale"),
    "openai": None,
}
BODY_FIELDS = ("prompt", "n", "size", "response_format")


class HttpTarget:
    """`POST /v1/images/generations` of the server at `url`.

    fields: whose names steps and guidance go by, a key of `FIELDS`; with "openai" neither they nor seeds are sent.
    extra: more fields of every request's body, none of `BODY_FIELDS`. Raises `ArgumentError` for what is no URL.
    """

    def __init__(self, url: str, *, fields: str, extra: Mapping[str, Any], api_key: str | None) -> None:
        self._names = FIELDS[fields]
        self._extra = extra
        self._client = httpx.AsyncClient(
            base_url=_parse_url(url),
            timeout=None,  # a request's deadline bounds all of it
            limits=httpx.Limits(max_connections=None),  # or requests would wait in here for their turn
            headers={"Authorization": f"Bearer {api_key}"} if api_key is not None else {},
        )

    async def __aenter__(self) -> HttpTarget:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def generate(self, request: ImageRequest) -> Answer:
        """See `Target.generate`."""
        try:
            response = await self._client.post("/v1/images/generations", json=self._body(request))
        except httpx.HTTPError as error:
            raise RequestFailed(type(error).__name__, str(error)) from None
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise RequestFailed(REFUSED, response.text[:200])
        if response.status_code != httpx.codes.OK:
            raise RequestFailed(f"HTTP {response.status_code}", response.text[:200])
        try:
            body = response.json()
            file = base64.b64decode(body["data"][0]["b64_json"], validate=True)
            timings = {str(stage): float(seconds) for stage, seconds in (body.get("timings") or {}).items()}
        except (ValueError, LookupError, TypeError, AttributeError):
            raise RequestFailed("bad answer", response.text[:200]) from None
        return Answer(file, timings)

    def _body(self, request: ImageRequest) -> dict[str, Any]:
        body = {
            "prompt": request.prompt,
            "n": 1,
            "size": f"{request.width}x{request.height}",
            "response_format": "b64_json",
        }
        if self._names is not None:
            steps, guidance = self._names
            body |= {"seed": request.seed, steps: request.steps}
            if request.guidance is not None:
                body[guidance] = request.guidance
        return body | dict(self._extra)


def _parse_url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise ArgumentError.of("url", "as http://127.0.0.1:30000", text)
    return url


class RpcTarget:
    """The engine's RPC, through a client that is connected."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def generate(self, request: ImageRequest) -> Answer:
        """See `Target.generate`."""
        try:
            result = await self._client.generate(
                request.prompt,
                seed=request.seed,
                width=request.width,
                height=request.height,
                steps=request.steps,
                guidance=request.guidance,
            )
        except QueueFullError as error:
            raise RequestFailed(REFUSED, error.message) from None
        except Krea2Error as error:
            raise RequestFailed(error.code, error.message) from None
        return Answer(result.files[0], result.timings)
