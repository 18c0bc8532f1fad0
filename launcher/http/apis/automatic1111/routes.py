"""`POST /sdapi/v1/txt2img` and `img2img`, and what A1111's clients ask about them: `progress` and `interrupt`."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, FastAPI, Query, Request
from starlette.responses import Response

from engine.errors import ArgumentError
from launcher.http.answers.drawing import Drawing, Studio
from launcher.http.answers.errors import JsonResponse
from launcher.http.answers.link import Link
from launcher.http.answers.schemas import IDEMPOTENCY_KEY, PICTURE
from launcher.http.answers.wording import in_words_of
from launcher.http.apis.automatic1111 import described
from launcher.http.apis.automatic1111.answer import answer
from launcher.http.apis.automatic1111.body import Txt2ImgBody
from launcher.http.apis.automatic1111.img2img import Img2ImgBody
from launcher.http.apis.automatic1111.lists import PATH, add_lists
from launcher.http.apis.automatic1111.meaning import to_parameters
from launcher.http.apis.automatic1111.neighbours import Neighbours
from launcher.http.apis.automatic1111.watching import PREVIEWS, Job, Watching, caller_of
from launcher.http.uploads.pictures import Pictures
from launcher.messages.parameter_names import SYNONYMS

_PROMPT = "a red circle on a blue background"
_BODY = Body(
    openapi_examples={
        "a picture": {"value": {"prompt": _PROMPT}},
        "two, with settings": {"value": {"prompt": _PROMPT, "n_iter": 2, "seed": 7, "steps": 8, "cfg_scale": 1}},
    }
)
_OVER = Body(
    openapi_examples={
        "over a picture": {"value": {"prompt": _PROMPT, "init_images": [PICTURE], "denoising_strength": 0.8}},
    }
)
_YES = ("true", "1", "yes", "on")
_NAMES = {**SYNONYMS, "inpaint_full_res_padding": "mask_crop"}


def add_automatic1111_routes(app: FastAPI, studio: Studio, link: Link, neighbours: Neighbours) -> None:
    """Add all routes that clients of A1111 use. neighbours: the way to requests that other processes draw."""
    watching = Watching(neighbours)

    async def draw(body: Txt2ImgBody, request: Request, key: str | None, name: str, pictures: Pictures) -> Response:
        request.state.model = model = studio.check_model(None)
        caller = caller_of(request)
        sent = body.model_dump()
        given, warnings = to_parameters(body, studio)
        job = Job(given["num_images"], name)

        async def start() -> Drawing:
            # A repetition has to ask for the same.
            previews = PREVIEWS if key is not None else watching.previews_for(caller)
            files = await pictures.files(studio.config.limits.max_image_bytes)
            return await studio.draw(
                request, given, files=files, partial_images=previews, idempotency_key=key, progress=True
            )

        try:
            result = await watching.draw(caller, job, start)
        except ArgumentError as error:
            raise in_words_of(sent, error, _NAMES) from None
        assert job.drawing is not None
        told = answer(body, job.drawing, result, warnings, model)
        return JsonResponse(told, headers=job.drawing.headers)

    @app.post(PATH + "txt2img", responses=described.TXT2IMG)
    async def make_images(
        body: Annotated[Txt2ImgBody, _BODY],
        request: Request,
        idempotency_key: Annotated[str | None, IDEMPOTENCY_KEY] = None,
    ) -> Response:
        """Make images from a prompt. Hanging up cancels the request, and so does /sdapi/v1/interrupt."""
        return await draw(body, request, idempotency_key, "txt2img", Pictures())

    @app.post(PATH + "img2img", responses=described.TXT2IMG)
    async def draw_over(
        body: Annotated[Img2ImgBody, _OVER],
        request: Request,
        idempotency_key: Annotated[str | None, IDEMPOTENCY_KEY] = None,
    ) -> Response:
        """Draw over a picture, or with a mask over a part of it. Hanging up cancels the request, and so does
        /sdapi/v1/interrupt. Without width and height images have the picture's size."""
        return await draw(body, request, idempotency_key, "img2img", body.pictures)

    @app.get(PATH + "progress", response_class=Response, responses=described.PROGRESS)
    async def tell_progress(
        request: Request,
        skip_current_image: Annotated[str, Query(description="Whether to leave out the newest preview.")] = "false",
    ) -> Response:
        """How far the caller's own images are: of its API key, or of its address where the server has no keys."""
        with_image = skip_current_image.lower() not in _YES
        return JsonResponse(await watching.progress(caller_of(request), with_image=with_image))

    @app.post(PATH + "interrupt", response_class=Response, responses=described.TOLD)
    async def interrupt(request: Request) -> Response:
        """Cancel the caller's own requests, which are answered with the images that are done."""
        count = await watching.interrupt(caller_of(request))
        return JsonResponse({"info": f"{count} {'request was' if count == 1 else 'requests were'} interrupted"})

    add_lists(app, studio, link)
