"""`POST /v1/images/generations` and `POST /v1/images/edits`: from a body to a response or a stream of events."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from engine.errors import ArgumentError
from launcher.http.answers.drawing import Studio
from launcher.http.answers.errors import JsonResponse
from launcher.http.answers.event_stream import EventStream
from launcher.http.answers.schemas import IDEMPOTENCY_KEY, PICTURE
from launcher.http.answers.wording import in_words_of
from launcher.http.apis.held_images import HeldImages
from launcher.http.apis.openai_answers import EDITS_SCHEMA, IMAGES_SCHEMA, images_object, write_events
from launcher.http.apis.openai_body import EditRequest, ImageRequest, as_form, of_strength, to_parameters

GENERATIONS_PATH, EDITS_PATH = "/v1/images/generations", "/v1/images/edits"
_LINKED = "dall-e-"  # under these names OpenAI answers links, which is what programs that say no format read
_PROMPT = "a red circle on a blue background"
_BODY = Body(
    openapi_examples={
        "a picture": {"value": {"prompt": _PROMPT}},
        "two, with settings": {"value": {"prompt": _PROMPT, "n": 2, "seed": 7, "output_format": "webp"}},
        "fewer steps computed": {"value": {"prompt": _PROMPT, "cache": "quality"}},
        "a stream with previews": {"value": {"prompt": _PROMPT, "stream": True, "partial_images": 2, "progress": True}},
        "over another picture": {"value": {"prompt": _PROMPT, "image": PICTURE, "strength": 0.8}},
    }
)
_EDIT = Body(
    openapi_examples={
        "over a picture": {"value": {"prompt": _PROMPT, "image": PICTURE, "strength": 0.8}},
        "beside it": {"value": {"prompt": _PROMPT, "image": PICTURE, "outpaint": {"right": 64}}},
    }
)


def add_image_routes(app: FastAPI, studio: Studio, held: HeldImages, form_route: type[APIRoute]) -> None:
    """Add the routes that make images. form_route: what reads forms with pictures."""

    async def draw(body: ImageRequest, request: Request, key: str | None, kind: str, told: tuple[str, ...]) -> Response:
        request.state.model = studio.check_model(body.model)
        sent = body.sent
        shown = body.response_format or ("url" if (body.model or "").startswith(_LINKED) else "b64_json")
        held.check(links=shown == "url" and not body.stream)
        try:
            given, previews = to_parameters(body), body.partial_images
            files = await body.pictures.files(studio.config.limits.max_image_bytes)
            progress = bool(body.progress)
            drawing = await studio.draw(
                request, given, files=files, partial_images=previews, idempotency_key=key, progress=progress
            )
            warnings = body.warnings + drawing.warnings + told
            if body.stream:
                events = write_events(drawing, request, sent, kind=kind, progress=progress, warnings=warnings)
                return EventStream(events, drawing.headers)
            result = await drawing.result()
        except ArgumentError as error:
            raise in_words_of(sent, error) from None
        urls = await held.links(request, result) if shown == "url" else None
        return JsonResponse(images_object(drawing, result, urls, warnings), headers=drawing.headers)

    @app.post(GENERATIONS_PATH, responses=IMAGES_SCHEMA)
    async def generate_images(
        body: Annotated[ImageRequest, _BODY],
        request: Request,
        idempotency_key: Annotated[str | None, IDEMPOTENCY_KEY] = None,
    ) -> Response:
        """Make images from a prompt, or over a picture. Hanging up cancels the request."""
        return await draw(body, request, idempotency_key, "image_generation", ())

    async def edit_images(
        body: Annotated[EditRequest, _EDIT],
        request: Request,
        idempotency_key: Annotated[str | None, IDEMPOTENCY_KEY] = None,
    ) -> Response:
        """Draw over a picture: with a mask what that shows, with outpaint what lies beside it, and else all of it, as
        much as strength says. Hanging up cancels the request.

        Pictures are sent within JSON, as here, or as files of a form:
        `curl -F image=@photo.png -F mask=@mask.png -F prompt='a red hat' …/v1/images/edits`. In a form lists and
        objects are JSON, or fields such as `loras[]` and `outpaint[left]`."""
        return await draw(body, request, idempotency_key, "image_edit", of_strength(body))

    app.router.add_api_route(
        EDITS_PATH, edit_images, methods=["POST"], responses=EDITS_SCHEMA, route_class_override=form_route,
        openapi_extra={"requestBody": {"content": {"multipart/form-data": {"schema": as_form(EditRequest)}}}},
    )  # fmt: skip
