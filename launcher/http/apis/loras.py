"""`/v1/loras`: which LoRAs requests may choose, and, where the server allows it, loading and unloading them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import FastAPI, Path
from pydantic import BaseModel, Field
from starlette.responses import Response

from engine.errors import ArgumentError, error_from_code
from launcher.http.answers.errors import JsonResponse
from launcher.http.answers.link import Link
from launcher.http.answers.schemas import means
from launcher.http.apis import state_answers
from launcher.messages.client_messages import Loras
from launcher.messages.message_parts import LoadedLora

PATH = "/v1/loras"


class LoadLoraBody(BaseModel, extra="forbid", strict=True, allow_inf_nan=False):
    """The body of `POST /v1/loras`."""

    name: str = Field(description="The name by which requests are to choose it.")
    path: str | None = Field(
        None, description="Where the file is, in the folder that the server's --lora-dir names. Default: the name."
    )
    strength: float | None = Field(
        None,
        description="The strength of requests that give none. Default: 1.",
        json_schema_extra=means("lora_strength"),
    )


def add_lora_routes(app: FastAPI, link: Link) -> None:
    """Add the routes that list, load and unload LoRAs."""

    @app.get(PATH, response_class=Response, responses=state_answers.LORAS)
    async def list_loras() -> Response:
        """The LoRAs that `loras` may name, the ones merged into the weights, and whether more may be loaded."""
        loras = await link.loras()
        described = [_described(lora, loras) for lora in loras.loras]
        merged = [msgspec.structs.asdict(lora) | _of_file(lora.file, loras) for lora in loras.merged]
        return JsonResponse({"object": "list", "data": described, "merged": merged, "loadable": loras.loadable})

    @app.post(PATH, response_class=Response, responses=state_answers.LORA)
    async def load_lora(body: LoadLoraBody) -> Response:
        """Load a LoRA file from the server's folder for them. Answered when images can be made with it."""
        strength = 1.0 if body.strength is None else body.strength
        loras = await link.load_lora(body.name, body.path, strength)
        lora = next((lora for lora in loras.loras if lora.name == body.name), None)
        if lora is None:
            raise error_from_code("not_found", f"{body.name} was unloaded at once")
        return JsonResponse(_described(lora, loras))

    @app.delete(PATH + "/{name}", response_class=Response, responses=state_answers.UNLOADED)
    async def unload_lora(name: Annotated[str, Path(description="Of the LoRA.", examples=["ink"])]) -> Response:
        """Unload a LoRA. It can no longer be chosen; requests that have chosen it are finished with it."""
        try:
            await link.unload_lora(name)
        except ArgumentError as error:
            if error.parameter != "name":
                raise
            raise error_from_code("not_found", error.message) from None
        return JsonResponse({"name": name, "object": "lora", "deleted": True})


def _described(lora: LoadedLora, loras: Loras) -> dict[str, object]:
    return {"object": "lora", **msgspec.structs.asdict(lora), **_of_file(lora.name, loras)}


def _of_file(name: str, loras: Loras) -> dict[str, object]:
    """Look up what is known of a LoRA's file: of a loaded one by its name, of a merged one by its file's."""
    made_for = loras.made_for.get(name)
    return {
        "left_out": loras.left_out.get(name),
        "made_for": None if made_for is None else msgspec.structs.asdict(made_for),
    }
