"""`POST /v1/images/generations`: from a body to a response or a stream of events."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, FastAPI, Request
from starlette.responses import Response

from engine.errors import ArgumentError
from launcher.http.answers.drawing import Studio
from launcher.http.answers.errors import JsonResponse
from launcher.http.answers.event_stream import EventStream
from launcher.http.answers.schemas import IDEMPOTENCY_KEY
from launcher.http.answers.wording import in_words_of
from launcher.http.apis.held_images import HeldImages
from launcher.http.apis.openai_answers import IMAGES_SCHEMA, images_object, write_events
from launcher.http.apis.openai_body import ImageRequest, to_parameters

_LINKED = "dall-e-"  # under these names OpenAI answers links, which is what programs that say no format read
_PROMPT = "a red circle on a blue background"
_BODY = Body(
    openapi_examples={
        "a picture": {"value": {"prompt": _PROMPT}},
        "two, with settings": {"value": {"prompt": _PROMPT, "n": 2, "seed": 7, "output_format": "webp"}},
        "a stream with previews": {"value": {"prompt": _PROMPT, "stream": True, "partial_images": 2, "progress": True}},
    }
)


def add_image_routes(app: FastAPI, studio: Studio, held: HeldImages) -> None:
    """Add the route that makes images."""

    @app.post("/v1/images/generations", responses=IMAGES_SCHEMA)
    async def generate_images(
        body: Annotated[ImageRequest, _BODY],
        request: Request,
        idempotency_key: Annotated[str | None, IDEMPOTENCY_KEY] = None,
    ) -> Response:
        """Make images from a prompt. Hanging up cancels the request."""
        request.state.model = studio.check_model(body.model)
        sent = body.sent
        try:
            given, previews = to_parameters(body), body.partial_images
            drawing = await studio.draw(request, given, partial_images=previews, idempotency_key=idempotency_key)
            warnings = body.warnings + drawing.warnings
            if body.stream:
                events = write_events(drawing, request, sent, progress=bool(body.progress), warnings=warnings)
                return EventStream(events, drawing.headers)
            result = await drawing.result()
        except ArgumentError as error:
            raise in_words_of(sent, error) from None
        shown = body.response_format or ("url" if (body.model or "").startswith(_LINKED) else "b64_json")
        urls = await held.links(request, result) if shown == "url" else None
        return JsonResponse(images_object(result, drawing.request_id, urls, warnings), headers=drawing.headers)
