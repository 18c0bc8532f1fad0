"""A server whose engine draws nothing: it remembers what it was asked for, and answers the picture that came."""

from __future__ import annotations

import io
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from PIL import Image
from starlette.testclient import TestClient

from engine.config.engine_config import EngineConfig
from launcher.client.async_client import NO_FILES
from launcher.client.results import Event, ImageFile, PreviewFile, Result, Usage
from launcher.http.answers.engine_link import EngineLink
from launcher.http.app import make_app
from launcher.messages.client_messages import Accepted, Generate
from launcher.messages.configs import HttpConfig
from launcher.messages.limits import Limits
from launcher.messages.message_parts import Computed
from tests.launcher.http.http_requests import NOWHERE
from tests.launcher.http_servers import PROMPT
from tests.launcher.processes import temporary_folder

SIZE = 96, 64
COMPUTED = Computed(steps=((6, 6), (0, 6), (6, 0)), blocks=6)  # of images of which not all is to be


def png(size: tuple[int, int] = SIZE, colour: object = (200, 0, 0), mode: str = "RGB") -> bytes:
    """A picture of one colour."""
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "png")  # type: ignore[arg-type]
    return file.getvalue()


class FakeLink(EngineLink):
    """Answers the `image` of a request in place of each of its images."""

    def __init__(self) -> None:
        super().__init__(NOWHERE, None)
        self.request = Generate(request_id="none", prompt="none")
        self.files: dict[str, bytes] = {}
        self.sent: Mapping[str, bytes] = {}  # as it was given, to see whether that is kept

    async def follow(
        self, request: Generate, files: Mapping[str, bytes] = NO_FILES, *, progress: bool = True
    ) -> AsyncGenerator[Event, None]:
        """Remember it, and answer."""
        self.request, self.files, self.sent = request, dict(files), files
        name, count = request.request_id, request.num_images
        yield Accepted(request_id=name, position=0, estimated_s=None, attempt=1)
        if request.preview_every is not None:
            yield PreviewFile(name, 1, 0, 1, 2, b"preview")
        file = self.files.get("image", png())
        seeds = [7 + index for index in range(count)]
        computed = COMPUTED if (request.cache, request.guidance_until) != ("off", 1.0) else None
        for index in range(count):
            yield ImageFile(name, 1, index, seeds[index], *SIZE, "png", file, request.prompt, Usage(7, 24), computed)
        usage, told = Usage(7, 24 * count), [computed] * count
        yield Result(
            name, 1, [file] * count, seeds, *SIZE, "png", {"total": 1.0}, (), request.prompt, None, usage, told
        )


@contextmanager
def fake_server(
    limits: Limits | None = None, *, link: FakeLink | None = None, **config: Any
) -> Iterator[tuple[TestClient, FakeLink]]:
    """A client of a server with this configuration, and what its engine hears."""
    with temporary_folder() as folder:
        own = {"engine": EngineConfig(), "limits": limits or Limits(), "rpc": NOWHERE, "run_folder": str(folder)}
        link = link or FakeLink()
        yield TestClient(make_app(HttpConfig(**own | config), link), base_url="http://127.0.0.1"), link


__all__ = ["COMPUTED", "PROMPT", "SIZE", "FakeLink", "fake_server", "png"]
