"""The HTTP process: OpenAI's images API, health, metrics and the page. It speaks RPC to the front-end.

What every request passes first is in `guard.py`; each API is a file of `apis/`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from difflib import get_close_matches

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

import engine
from engine.checkpoint.checkpoint_files import CheckpointFiles
from engine.errors import Krea2Error, error_from_code
from launcher import awake
from launcher.http.answers.drawing import Studio
from launcher.http.answers.engine_link import EngineLink
from launcher.http.answers.errors import error_response, internal_error, shorten
from launcher.http.answers.link import ASK_S, Link
from launcher.http.answers.other_servers import instead_of
from launcher.http.answers.schemas import ERROR_SCHEMA
from launcher.http.answers.wording import explain_invalid
from launcher.http.apis.automatic1111.neighbours import Neighbours
from launcher.http.apis.automatic1111.routes import add_automatic1111_routes
from launcher.http.apis.chat.routes import add_chat_routes
from launcher.http.apis.held_images import HeldImages
from launcher.http.apis.licence import add_licence_route
from launcher.http.apis.loras import add_lora_routes
from launcher.http.apis.openai_images import EDITS_PATH, GENERATIONS_PATH, add_image_routes
from launcher.http.apis.reports import add_report_route
from launcher.http.apis.server_state import add_state_routes
from launcher.http.apis.sglang import add_sglang_routes
from launcher.http.apis.state_answers import METRICS
from launcher.http.bodies import BoundedRoute, ChatRoute, form_route, taken_types
from launcher.http.connections import backlog
from launcher.http.docs.routes import add_docs_routes
from launcher.http.guard import Guard
from launcher.http.page_files import add_page
from launcher.http.protocol import FairProtocol
from launcher.http.uploads.forms import is_form
from launcher.http.workers.held_files import HeldFiles
from launcher.http.workers.metrics import HttpMetrics, metrics_path
from launcher.http.workers.worker import beat, read_at_hangups
from launcher.logs import configure_logs
from launcher.messages.configs import HttpConfig
from launcher.processes import Reporter, exit_after, read_config, watch_parent

_ABOUT = (
    "Images with Krea 2, asked for as in OpenAI's images API, in chats, or as AUTOMATIC1111's clients do. Every answer "
    "has a header `X-Request-ID`, which the server's log has too. Hanging up cancels a request."
)
FINISH_S = 3  # for responses that are being sent when the process is told to end
_LAST_REPLIES_S = 0.5  # of that, for what a front-end that ended had sent before
_KEEP_ALIVE_S = 15  # of a connection between requests


def run_http() -> None:
    """Run an HTTP process for its whole life: its configuration comes on stdin, its end when stdin ends."""
    config = read_config(HttpConfig)
    configure_logs(config.log_format, process="http")
    parent = Reporter()
    server = make_server(config)

    def parent_ended(_: bool) -> None:
        exit_after(FINISH_S + 1.0)
        server.should_exit = True

    watch_parent(parent_ended)
    with socket.socket(fileno=config.socket_fd) as listening:
        awake.run(_serve(server, listening, parent, HeldFiles(config.run_folder)))


async def _serve(server: GuardedServer, listening: socket.socket, parent: Reporter, files: HeldFiles) -> None:
    works = (beat(parent), read_at_hangups(server.guard.read_keys_again), files.sweep())
    beside = [asyncio.create_task(work) for work in works]
    await server.serve(sockets=[listening])
    for task in beside:
        task.cancel()


def make_server(config: HttpConfig) -> GuardedServer:
    """Make a server for sockets that listen already. It connects to the front-end when it starts, and keeps trying."""
    link = EngineLink(config.rpc, config.rpc_key, config.client_name)
    guard = make_app(config, link)
    return GuardedServer(
        guard,
        link,
        uvicorn.Config(
            guard,
            http=FairProtocol,
            backlog=backlog(),
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="critical",  # the guard logs what happens to requests
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=FINISH_S,
        ),
    )


class GuardedServer(uvicorn.Server):
    """A server that, when it ends, fails what still waits for the engine. uvicorn would cancel it, as plain text."""

    def __init__(self, guard: Guard, link: Link, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.guard, self._link = guard, link

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and finish the responses that are being sent."""
        failing = asyncio.get_running_loop().call_later(_LAST_REPLIES_S, self._link.end)
        await super().shutdown(sockets)
        failing.cancel()


def make_app(
    config: HttpConfig,
    link: Link,
    *,
    neighbours: Neighbours | None = None,
    join_counts: Callable[[Callable[[], bytes]], Awaitable[bytes]] | None = None,
) -> Guard:
    """Make the application with all its routes. Raises `CheckpointError` for a bad checkpoint config.

    neighbours, join_counts: the ways to the other processes that serve it, where those do not share its run folder: to
    requests that they draw, and to their metrics, which are joined to those that its argument renders.
    """
    checkpoint = CheckpointFiles.open(config.engine)
    checkpoint.close()
    model = checkpoint.config
    metrics_folder = None if config.worker is None else metrics_path(config.run_folder)
    counts = HttpMetrics(metrics_folder, config.worker or 0)

    app = FastAPI(
        title="krea2-engine", version=engine.__version__, lifespan=link.connected, docs_url=None, redoc_url=None,
        description=_ABOUT, responses={"default": ERROR_SCHEMA},
        servers=None if config.public_url is None else [{"url": config.public_url.rstrip("/")}], redirect_slashes=False,
        strict_content_type=False,  # what has none is read as JSON: browsers' requests are told by their Origin
    )  # fmt: skip
    app.router.route_class = BoundedRoute
    for kind in (RequestValidationError, HTTPException, Krea2Error, Exception):
        app.add_exception_handler(kind, _answer_error)
    guard = Guard(app, config, counts)

    studio, held = Studio(config, model, link), HeldImages(config)
    add_image_routes(app, studio, held, form_route(config))
    add_chat_routes(app, studio, held, ChatRoute)
    add_report_route(app, config, form_route(config))
    held.add_routes(app)
    add_lora_routes(app, link)
    add_state_routes(app, studio, link)
    add_licence_route(app, config)
    add_sglang_routes(app, studio, link)
    add_automatic1111_routes(app, studio, link, neighbours or Neighbours(config.run_folder, config.worker))

    @app.get("/metrics", response_class=Response, responses=METRICS)
    async def metrics() -> Response:
        """Metrics of the front-end and of this process, in Prometheus' text format."""
        text = counts.render() if join_counts is None else await join_counts(counts.render)
        with suppress(Krea2Error, TimeoutError):
            text = await asyncio.wait_for(link.metrics(), ASK_S) + text
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    add_page(app)
    add_docs_routes(app, config, model, guard.asks_for_key)
    for route in app.routes:  # after the description was made, which need not tell of HEAD
        if isinstance(route, APIRoute) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")
    return guard


async def _answer_error(request: Request, problem: Exception) -> Response:
    """Respond to what a route, FastAPI or Starlette raises, in the shape of all errors."""
    headers = None
    match problem:
        case RequestValidationError():
            content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            kinds = taken_types(request.scope["route"])
            if content_type in ("", *kinds):
                error: Krea2Error = explain_invalid(problem.errors(), _parameters_at(request))
            else:
                error = error_from_code(
                    "unsupported_media_type", f"Content-Type must be {' or '.join(kinds)}{_form_at(request)}"
                )
        case HTTPException(status_code=status):
            path, headers, allowed = shorten(request.url.path), dict(problem.headers or {}), ""
            if status == 405:
                allowed = headers["Allow"] = ", ".join(sorted(_methods_at(request)))
            error = {
                400: error_from_code("invalid_parameter", "the body cannot be parsed as JSON"),
                404: error_from_code("not_found", f"there is nothing at {path}{_instead(request)}"),
                405: error_from_code(
                    "method_not_allowed", f"{shorten(request.method)} is not possible at {path}: {allowed} is"
                ),
            }.get(status, error_from_code("invalid_parameter", str(problem.detail)))
        case Krea2Error():
            error = problem
        case _:  # which is raised again afterwards
            error = internal_error()
    request.state.error_code, request.state.error_message = error.code, error.message  # for the log
    return error_response(error, request.state.request_id, headers, path=request.url.path)


def _form_at(request: Request) -> str:
    """Where a form with pictures is to go, if this is one."""
    is_lost = is_form(request.headers.get("content-type", "")) and request.url.path == GENERATIONS_PATH
    return f": a form with a picture is for {EDITS_PATH}" if is_lost else ""


def _instead(request: Request) -> str:
    """What there is instead of the path of a request: the route whose path is nearest, or where all are."""
    if (told := instead_of(request.url.path)) is not None:
        return f": {told}"
    paths = [path for route in request.app.routes if "{" not in (path := getattr(route, "path", "{"))]
    close = get_close_matches(shorten(request.url.path), paths, n=1)
    return f": did you mean {close[0]}?" if close else "; /docs has all there is"


def _parameters_at(request: Request) -> list[str]:
    """The parameters that the body of a request may have."""
    fields = request.scope["route"].dependant.body_params
    return [name for field in fields for name in field.field_info.annotation.model_fields]


def _methods_at(request: Request) -> set[str]:
    """The methods of all routes with the path of a request: Starlette names those of the first."""
    scope = {**request.scope, "root_path": ""}  # which a mount has set
    routes = [route for route in request.app.routes if route.matches(scope)[0] != Match.NONE]
    return {method for route in routes for method in getattr(route, "methods", None) or ("GET", "HEAD")}
