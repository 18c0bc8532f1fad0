"""`POST /v1/chat/completions`: from a chat to a completion with images, or a stream of its chunks."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from engine.errors import ArgumentError, Krea2Error
from launcher.http.answers.drawing import Studio
from launcher.http.answers.errors import JsonResponse
from launcher.http.answers.event_stream import EventStream
from launcher.http.answers.schemas import IDEMPOTENCY_KEY
from launcher.http.answers.wording import in_words_of
from launcher.http.apis.chat.answers import Answer, completion, write_chunks
from launcher.http.apis.chat.body import ChatRequest, to_image_request
from launcher.http.apis.chat.schema import BODY, COMPLETION
from launcher.http.apis.held_images import HeldImages
from launcher.http.apis.openai_body import of_strength, to_parameters
from launcher.messages.parameter_names import ALIASES, SYNONYMS, in_own_names

CHAT_PATH = "/v1/chat/completions"
_NAMES = {"num_outputs_per_prompt": "num_images", **SYNONYMS}


def add_chat_routes(app: FastAPI, studio: Studio, held: HeldImages, route_class: type[APIRoute]) -> None:
    """Add the route that draws what a chat says last. route_class: what reads its body."""

    async def complete_chat(
        body: Annotated[ChatRequest, BODY],
        request: Request,
        idempotency_key: Annotated[str | None, IDEMPOTENCY_KEY] = None,
    ) -> Response:
        """Draw the last message of a chat, over the picture in it if there is one. Hanging up cancels the request."""
        model = request.state.model = studio.check_model(body.model)
        sent = {**(body.model_extra or {}), "n": body.n, "num_outputs_per_prompt": body.num_outputs_per_prompt}

        def say(error: Krea2Error) -> Krea2Error:
            return in_words_of(sent, error, _NAMES)

        held.check(links=body.links)
        num_choices = body.n or 1
        asked = to_image_request(body)
        given, told = to_parameters(asked), (*asked.warnings, *of_strength(asked))
        try:
            per_choice, most = body.num_outputs_per_prompt or _take_number(given), studio.config.limits.max_images
            if min(num_choices, per_choice) > 1 and num_choices * per_choice > most:
                got = f"got {num_choices} × {per_choice}"
                raise ArgumentError(f"n choices may have at most {most} images together, {got}", parameter="n")
            given["num_images"] = num_choices * per_choice
            files = await asked.pictures.files(studio.config.limits.max_image_bytes)
            progress = bool(body.progress)
            drawing = await studio.draw(request, given, files=files, idempotency_key=idempotency_key, progress=progress)
            link = held.linker(request) if body.links else None
            answer = Answer(drawing, model, body.form, num_choices, link, (*drawing.warnings, *told), say)
            if body.stream:
                counted = body.includes_usage
                chunks = write_chunks(answer, request, progress=progress, includes_usage=counted)
                return EventStream(chunks, drawing.headers)
            return JsonResponse(await completion(answer, await drawing.result()), headers=drawing.headers)
        except ArgumentError as error:
            raise say(error) from None

    app.router.add_api_route(  # not by a router of its own, whose paths the app's routes would not tell
        CHAT_PATH, complete_chat, methods=["POST"], responses=COMPLETION, route_class_override=route_class
    )


def _take_number(given: dict[str, Any]) -> int:
    """Take how many images are asked for out of parameters."""
    named = {name: given.pop(name) for name in [*given] if ALIASES.get(name, name) == "num_images"}
    number: int = in_own_names(named)[0].get("num_images", 1)
    return number
