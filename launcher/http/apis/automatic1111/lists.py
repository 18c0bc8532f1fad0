"""What A1111's clients ask before they draw: models, samplers, options and lists, most of which are empty here; and
what changes nothing, which is answered with a sentence that says so. What cannot be done is in `other_servers.py`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import FastAPI, Path
from pydantic import BaseModel, Field
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response

from engine.errors import Krea2Error, error_from_code
from launcher.http.answers.drawing import Studio
from launcher.http.answers.errors import JsonResponse
from launcher.http.answers.link import Link
from launcher.http.apis.automatic1111 import described
from launcher.http.apis.automatic1111.answer import VERSION
from launcher.http.apis.automatic1111.meaning import SAMPLER, SCHEDULER, changed_settings, is_served

PATH = "/sdapi/v1/"
Handler = Callable[[Request], Awaitable[Response]]

_ELSEWHERE = {"error": "not known here: /v1/status says what the engine's memory holds"}
_FIXED: dict[str, object] = {
    "samplers": [{"name": SAMPLER, "aliases": ["euler", "k_euler", "flow-match Euler"], "options": {}}],
    "schedulers": [
        {"name": "automatic", "label": SCHEDULER, "aliases": None, "default_rho": -1, "need_inner_model": False}
    ],
    # Clients put the latent ones behind the first.
    "upscalers": [{"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 1}],
    "scripts": {"txt2img": [], "img2img": []},
    "embeddings": {"loaded": {}, "skipped": {}},
    "cmd-flags": {"api": True},
    "memory": {"ram": _ELSEWHERE, "cuda": _ELSEWHERE},
} | {
    name: []
    for name in (
        "latent-upscale-modes", "sd-vae", "sd-modules", "hypernetworks", "face-restorers", "realesrgan-models",
        "prompt-styles", "script-info", "extensions",
    )
}  # fmt: skip
_NOTHING_TO_DO = {
    "refresh-checkpoints": "nothing to refresh: the server has the model that it was started with",
    "refresh-vae": "nothing to refresh: the checkpoint has its own VAE",
    "refresh-loras": "nothing to refresh: /sdapi/v1/loras always lists what is loaded",
    "refresh-embeddings": "nothing to refresh: there are no embeddings here",
    "reload-checkpoint": "nothing to reload: the model is always loaded",
}


class _Fixed(Convertor[str]):
    """The names of what is fixed, as a part of a path."""

    regex = "|".join(_FIXED)

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("fixed", _Fixed())
_WHAT = Path(description="What to list.", examples=["samplers"], json_schema_extra={"enum": sorted(_FIXED)})


class OptionsBody(BaseModel, extra="allow"):
    """The body of `POST /sdapi/v1/options`."""

    sd_model_checkpoint: str | None = Field(
        None, description="One of the names that GET /sdapi/v1/sd-models lists. Default: as it is."
    )


def add_lists(app: FastAPI, studio: Studio, link: Link) -> None:
    """Add the routes that draw nothing."""
    names = studio.config.model_names
    options = {
        "sd_model_checkpoint": names[0],
        "sd_checkpoint_hash": None,
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "samples_format": "png",
        "samples_save": False,
        "grid_save": False,
        "return_grid": False,
        "enable_pnginfo": True,
        "live_previews_enable": True,
    }

    @app.get(PATH + "options", response_class=Response, responses=described.OPTIONS)
    async def get_options() -> Response:
        """The model that is served, and the few options that A1111's clients look for. None can be set."""
        return JsonResponse(options)

    @app.post(PATH + "options", response_class=Response, responses=described.SET_OPTIONS)
    async def set_options(body: OptionsBody) -> Response:
        """Changes nothing, and says so in warnings. Naming a model that is not served is an error."""
        name = body.sd_model_checkpoint
        if name and not is_served(name, studio):
            try:
                studio.check_model(name)
            except Krea2Error as error:
                told = f"sd_model_checkpoint{error.message.removeprefix('model')}"
                raise error_from_code(error.code, told, "sd_model_checkpoint") from None
        others = {name: value for name, value in (body.model_extra or {}).items() if value != options.get(name)}
        return JsonResponse({"warnings": changed_settings("options", others)})

    @app.get(PATH + "sd-models", response_class=Response, responses=described.MODELS)
    async def list_models() -> Response:
        """The names of the model that is served: there is one model."""
        return JsonResponse(
            [
                {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
                for name in names
            ]
        )

    @app.get(PATH + "loras", response_class=Response, responses=described.LORAS)
    async def list_loras() -> Response:
        """The LoRAs that prompts may name, as `<lora:NAME:STRENGTH>`."""
        loras = await link.loras()
        listed = [{"name": lora.name, "alias": lora.name, "path": lora.file, "metadata": {}} for lora in loras.loras]
        return JsonResponse(listed)

    @app.get("/internal/ping", response_class=Response, responses=described.PING)
    async def ping() -> Response:
        """That the server is there."""
        return JsonResponse({})

    @app.get("/internal/sysinfo", response_class=Response, responses=described.VERSION)
    async def tell_version() -> Response:
        """Which server it is, without a key. /v1/status says on what it runs."""
        return JsonResponse({"Version": VERSION})

    @app.get(PATH + "{what:fixed}", response_class=Response, responses=described.FIXED)
    async def list_what_is_fixed(what: Annotated[str, _WHAT]) -> Response:
        """The one sampler and the one schedule; of all else that A1111 has to choose from there is nothing here, so
        that lists are empty."""
        return JsonResponse(_FIXED[what])

    # As Starlette's own routes these cost nothing, and /docs does not list them.
    for name, told in _NOTHING_TO_DO.items():
        app.add_route(PATH + name, _telling(told), ["POST"])


def _telling(told: str) -> Handler:
    async def tell(_: Request) -> Response:
        return JsonResponse({"info": told})

    return tell
