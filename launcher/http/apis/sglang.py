"""What SGLang's servers say of themselves, as its routers and users ask for it; and the version, as vLLM's do."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.responses import Response

import engine
from launcher.http.answers.drawing import Studio
from launcher.http.answers.errors import JsonResponse
from launcher.http.answers.link import Link
from launcher.http.answers.schemas import (
    ENGINE_ERRORS,
    answer,
    constant,
    flag,
    integer,
    many,
    number,
    object_schema,
    text,
)

# What tells more than whether the server lives, and so needs a key where there are keys.
SGLANG_PATHS = ("/get_model_info", "/model_info", "/get_server_info", "/server_info")

_NONE = {"type": "null", "description": "Always null."}
_MODEL = {
    "model_path": text("The model, by its first name.", "Krea-2-Turbo"),
    "served_model_name": text("The same.", "Krea-2-Turbo"),
    "task_type": constant("T2I", "What it does: from text to images."),
}
_VERSION = {"version": text("Of krea2-engine.", engine.__version__)}
_ADAPTER = {"nickname": text("Its name.", "ink"), "path": text("Its file.", "ink.safetensors")}
_ACTIVE = object_schema(
    _ADAPTER | {"merged": flag("Always true.", True), "strength": number("With which it was merged.", 1.0)}
)
_MODEL_INFO = answer(
    object_schema(
        {
            **_MODEL,
            "is_generation": flag("Always true: it makes something, and no embeddings.", True),
            "tokenizer_path": _NONE,
            "preferred_sampling_params": _NONE,
            "has_image_understanding": flag("Whether images can go in.", False),
            "has_audio_understanding": flag("Whether sound can go in.", False),
        }
    )
)
_SERVER_INFO = answer(
    object_schema(
        {
            **_MODEL,
            **_VERSION,
            "num_gpus": integer("How many ranks work together.", 2),
            "tp_size": integer("Ranks that the weights are split over.", 2),
            "dp_size": integer("Always 1: how many engines there are.", 1),
            "sp_degree": integer("Ranks that the tokens are split over.", 1),
            "enable_cfg_parallel": flag("Whether prompt and negative prompt are on ranks of their own.", False),
        }
    )
)
_LORAS = answer(
    object_schema(
        {
            "loaded_adapters": many(object_schema(_ADAPTER), "The LoRAs that requests may choose."),
            "active": object_schema({"transformer": many(_ACTIVE, "The LoRAs that are part of the weights.")})
            | {"description": "What changes all images."},
        }
    ),
    *ENGINE_ERRORS,
)


def add_sglang_routes(app: FastAPI, studio: Studio, link: Link) -> None:
    """Add the routes."""
    config = studio.config
    name = config.model_names[0]
    model = {"model_path": name, "served_model_name": name, "task_type": "T2I"}

    @app.get("/version", response_class=Response, responses=answer(object_schema({**_VERSION})))
    async def get_version() -> Response:
        """The version of this server."""
        return JsonResponse({"version": engine.__version__})

    @app.get("/get_model_info", response_class=Response, responses=_MODEL_INFO)
    @app.get("/model_info", response_class=Response, responses=_MODEL_INFO)
    @app.get("/v1/model_info", response_class=Response, responses=_MODEL_INFO)
    async def get_model_info() -> Response:
        """What SGLang's routers ask about the model. GET /v1/settings says more."""
        unknown = {"tokenizer_path": None, "preferred_sampling_params": None}
        understands = {"has_image_understanding": config.engine.image_input, "has_audio_understanding": False}
        return JsonResponse({**model, "is_generation": True, **unknown, **understands})

    @app.get("/get_server_info", response_class=Response, responses=_SERVER_INFO)
    @app.get("/server_info", response_class=Response, responses=_SERVER_INFO)
    async def get_server_info() -> Response:
        """What SGLang's routers ask about the server. GET /v1/status says more."""
        own, degrees = config.engine, {"dp_size": 1, "sp_degree": config.engine.sp}
        ranks = {"num_gpus": own.ranks, "tp_size": own.tp, **degrees, "enable_cfg_parallel": own.cfg_parallel}
        return JsonResponse({**model, "version": engine.__version__, **ranks})

    @app.get("/v1/list_loras", response_class=Response, responses=_LORAS)
    async def list_loras() -> Response:
        """The LoRAs, as SGLang lists them. GET /v1/loras says more."""
        loras = await link.loras()
        loaded = [{"nickname": lora.name, "path": lora.file} for lora in loras.loras]
        active = [
            {"nickname": lora.file, "path": lora.file, "merged": True, "strength": lora.strength}
            for lora in loras.merged
        ]
        return JsonResponse({"loaded_adapters": loaded, "active": {"transformer": active}})
