"""`/license`: what whoever uses the server has to be told of the licence of what it serves."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

import engine
from launcher.http.answers.errors import JsonResponse
from launcher.http.answers.schemas import TEXT, Responses, constant, flag, object_schema, or_null, text
from launcher.licence.notice import KREA_2, SOFTWARE, USE_POLICY, licence_of, notice
from launcher.messages.configs import HttpConfig

_SCHEMA = object_schema(
    {
        "model": text("The model, by its first name.", "Krea-2-Turbo"),
        "is_demo": flag("Whether it is the demo, which is no part of Krea 2.", False),
        "license": text("Of its weights.", KREA_2.name),
        "version": text("Of that license.", KREA_2.version),
        "url": text("Where its text is.", KREA_2.url),
        "use_policy": or_null(text("Where the policy is that it names, if it does.", USE_POLICY)),
        "engine": object_schema(
            {
                "name": constant("krea2-engine"),
                "version": text("Of this server.", "1.0"),
                "license": constant(SOFTWARE, "Of this software."),
            }
        ),
        "notice": text("The notice, as text/plain has it.", "Pictures that come from this server …"),
    }
)
_ANSWERS: Responses = {
    200: {
        "description": "It worked.",
        "content": {"text/plain": {"schema": TEXT}, "application/json": {"schema": _SCHEMA}},
    }
}


def add_licence_route(app: FastAPI, config: HttpConfig) -> None:
    """Add the route, which asks for no key: whoever sees a picture may read it."""
    demo, model = config.engine.demo, config.model_names[0]
    own = licence_of(demo)
    facts = {
        "model": model,
        "is_demo": demo is not None,
        "license": own.name,
        "version": own.version,
        "url": own.url,
        "use_policy": own.use_policy,
        "engine": {"name": "krea2-engine", "version": engine.__version__, "license": SOFTWARE},
        "notice": notice(),
    }
    headers = {"Vary": "Accept"}

    @app.get("/license", response_class=Response, responses=_ANSWERS)
    async def get_license(request: Request) -> Response:
        """The notice that is passed on with the model, and its license: as text, or as JSON to those whose Accept asks
        for that."""
        if "application/json" in request.headers.get("accept", ""):
            return JsonResponse(facts, headers=headers)
        first = f"Served here as {model}: {own.name}, version {own.version}\n{own.url}\n\n"
        return PlainTextResponse(first + notice(), headers=headers)
