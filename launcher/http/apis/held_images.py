"""Images behind urls, which this server holds for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import FastAPI, Path
from starlette.requests import Request
from starlette.responses import Response

from engine.errors import ArgumentError, error_from_code
from launcher.client.results import Result
from launcher.http.answers.schemas import Responses
from launcher.http.workers.held_files import HeldFiles, shared_files
from launcher.messages.configs import HttpConfig

FILES_PATH = "/v1/images/files/"
_FILE: Responses = {200: {"description": "The file.", "content": {"image/*": {}}}}


class HeldImages:
    """Keeps images, and says where they are."""

    def __init__(self, config: HttpConfig) -> None:
        shared = config.images_folder
        self._files = HeldFiles(config.run_folder) if shared is None else shared_files(shared)
        self._public_url, self._can_link = config.public_url, config.links

    def check(self, *, links: bool) -> None:
        """Raise `ArgumentError` if an answer is to have links, and other machines may be asked for what is behind."""
        if links and not self._can_link:
            raise ArgumentError(
                "response_format must be b64_json: this cluster has several HTTP processes, and no images_folder in "
                "its config that all of them share",
                parameter="response_format",
            )

    async def links(self, request: Request, result: Result) -> list[str]:
        """Keep the images of a result. Returns their urls, for whoever sent `request`."""
        link = self.linker(request)
        return [await link(file, result.format) for file in result.files]

    def linker(self, request: Request) -> Callable[[bytes, str], Awaitable[str]]:
        """Give what keeps a file of a format, and returns its url, for whoever sent `request`."""
        base = (self._public_url or str(request.base_url)).rstrip("/") + FILES_PATH

        async def link(file: bytes, output_format: str) -> str:
            return base + await asyncio.to_thread(self._files.add, file, output_format)

        return link

    def add_routes(self, app: FastAPI) -> None:
        """Add the route that serves them."""

        @app.get(FILES_PATH + "{name}", response_class=Response, responses=_FILE)
        async def get_file(name: Annotated[str, Path(description="As the url has it.")]) -> Response:
            """An image that was answered as a url."""
            file = await asyncio.to_thread(self._files.get, name)
            if file is None:
                raise error_from_code(
                    "not_found", "no such image: they are held for an hour at most, less if there are many"
                )
            headers = {"Cache-Control": "private, max-age=3600, immutable"}
            return Response(file, headers=headers, media_type=f"image/{name.rpartition('.')[2]}")
