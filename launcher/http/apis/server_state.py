"""What the server is and does: the models that may be named, its settings, and its state."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
from fastapi import FastAPI, Path
from starlette.requests import Request
from starlette.responses import Response

import engine
from engine.errors import Krea2Error, ServerError
from launcher.http.answers.drawing import Studio
from launcher.http.answers.errors import JsonResponse, error_response
from launcher.http.answers.link import ASK_S, Link
from launcher.http.apis import state_answers
from launcher.messages.client_messages import StatusReply
from launcher.requests.check import MAX_LORA_STRENGTH, OUTPUT_FORMATS


def add_state_routes(app: FastAPI, studio: Studio, link: Link) -> None:
    """Add the routes of models, settings, health and status."""
    config, model = studio.config, studio.model
    name_in_path = Path(description="Of the model.", examples=[config.model_names[0]])
    began = config.created or int(time.time())

    @app.get("/v1/models", response_class=Response, responses=state_answers.MODELS)
    async def list_models() -> Response:
        """The models that `model` may name."""
        return JsonResponse({"object": "list", "data": [_model(name, began) for name in config.model_names]})

    @app.get("/v1/models/{name:path}", response_class=Response, responses=state_answers.MODEL)
    async def get_model(name: str = name_in_path) -> Response:
        """One of the models."""
        studio.check_model(name)
        return JsonResponse(_model(name, began))

    @app.get("/v1/settings", response_class=Response, responses=state_answers.SETTINGS)
    async def get_settings() -> Response:
        """Defaults and limits of this server."""
        sizes = model.size_domain
        defaults = {name: getattr(model, f"default_{name}") for name in ("width", "height", "steps", "guidance")}
        if config.engine.merge_loras:
            defaults |= await _defaults_of_merged(link)
        settings = {
            "model": config.model_names[0],
            "is_demo": config.engine.demo is not None,
            "defaults": defaults,
            "limits": config.limits,
            "max_lora_strength": MAX_LORA_STRENGTH,
            "output_formats": OUTPUT_FORMATS,
            "size_multiple": model.size_multiple,
            "good_sides": sizes and [sizes.least, sizes.most],
            "image_input": config.engine.image_input,
            "api_key_required": bool(config.api_keys or config.file_keys),
            "reports": config.audit_log is not None,
        }
        return JsonResponse(settings)

    @app.get("/health", response_class=Response, responses=state_answers.HEALTH)
    @app.options("/health", include_in_schema=False)
    async def health() -> Response:
        """Whether this process is alive."""
        return JsonResponse({"status": "ok"})

    @app.get("/ready", response_class=Response, responses=state_answers.READY)
    @app.get("/health_generate", response_class=Response, responses=state_answers.READY)  # SGLang's
    @app.options("/ready", include_in_schema=False)
    async def ready(request: Request) -> Response:
        """Whether images can be made: 200, or 503 with the reason and, while it starts, how far it is."""
        status = await _ask_for_status(link)
        if not status.ready:
            problem = ServerError(f"the engine is not ready: {status.not_ready}")
            request.state.error_code = problem.code  # for the log
            more = {} if status.stage is None else {"stage": status.stage}
            return error_response(problem, request.state.request_id, more=more)
        load = {name: getattr(status, name) for name in ("waiting", "running", "backlog_s")}
        return JsonResponse({"status": "ready", **load})

    @app.get("/v1/status", response_class=Response, responses=state_answers.STATUS)
    async def get_status() -> Response:
        """What the engine runs on, and what it is doing: requests, and bytes of each rank by what they hold."""
        status = msgspec.structs.asdict(await _ask_for_status(link))
        for name in ("loras", "merged_loras"):  # which /v1/loras lists
            del status[name]
        own = {"model": config.model_names[0], "version": engine.__version__, "ranks": config.engine.ranks}
        return JsonResponse(status | own)


async def _ask_for_status(link: Link) -> StatusReply:
    """Ask the front-end. Raises `ServerError` if it does not answer soon."""
    try:
        return await asyncio.wait_for(link.status(), ASK_S)
    except (Krea2Error, TimeoutError) as error:
        reason = error.message if isinstance(error, Krea2Error) else f"no answer within {ASK_S:g} s"
        raise ServerError(f"the engine does not answer: {reason}") from None


async def _defaults_of_merged(link: Link) -> dict[str, Any]:
    """Steps and guidance that the LoRAs in the weights were made for, where they say and agree on it."""
    try:
        loras = await link.loras()
    except Krea2Error:  # the engine is gone for now: those of the checkpoint are better than none
        return {}
    made_for = [loras.made_for[lora.file] for lora in loras.merged if lora.file in loras.made_for]
    defaults = {name: {getattr(each, name) for each in made_for} - {None} for name in ("steps", "guidance")}
    return {name: values.pop() for name, values in defaults.items() if len(values) == 1}


def _model(name: str, created: int) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created, "owned_by": "krea2-engine"}
