"""Prompts are not in errors, since these are logged."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.launcher.fake_ranks import run
from tests.launcher.http.http_requests import NOWHERE
from tests.launcher.http_servers import PATH, http_server_without_engine


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (PATH, {"prompt": ["SECRET"]}),
        (PATH, {"prompt": "SECRET 1", "extra_body": {"prompt": "SECRET 2"}}),
        ("/sdapi/v1/txt2img", {"negative_prompt": {"SECRET": 1}}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": {"text": "SECRET"}}]}),
        ("/v1/chat/completions", {"messages": "SECRET"}),
    ],
)
def test_an_error_shows_and_logs_no_prompt(path: str, body: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with http_server_without_engine(NOWHERE) as client:
            answer = await client.post(path, json=body)
            assert (answer.status_code, "SECRET" in answer.text) == (400, False)

    with caplog.at_level(logging.INFO, logger="krea2"):
        run(test())
    (fields,) = [vars(record)["fields"] for record in caplog.records if record.getMessage() == "http"]
    assert fields["message"]
    assert "SECRET" not in str(fields)
