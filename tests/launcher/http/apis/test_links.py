"""Links to images, where several machines serve and share no folder: refused before anything is drawn."""

from __future__ import annotations

import pytest

from tests.launcher.fake_ranks import run
from tests.launcher.http.http_requests import NOWHERE, error_of
from tests.launcher.http_servers import PATH, PROMPT, http_server_without_engine

_CHAT = {"messages": [{"role": "user", "content": PROMPT}]}


@pytest.mark.parametrize(
    ("path", "body", "is_refused"),
    [
        (PATH, {"prompt": PROMPT, "response_format": "url"}, True),
        (PATH, {"prompt": PROMPT, "model": "dall-e-3"}, True),
        (PATH, {"prompt": PROMPT, "model": "dall-e-3", "response_format": "b64_json"}, False),
        (PATH, {"prompt": PROMPT}, False),
        ("/v1/chat/completions", {**_CHAT, "response_format": "url"}, True),
        ("/v1/chat/completions", _CHAT, False),
    ],
)
def test_a_link_that_another_machine_could_not_serve_is_refused(
    path: str, body: dict[str, object], is_refused: bool
) -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE, links=False, any_model=True) as client:
            error = error_of(await client.post(path, json=body))
            assert error["code"] == ("invalid_parameter" if is_refused else "server_unavailable")
            assert ("images_folder" in error["message"]) is is_refused

    run(test())
