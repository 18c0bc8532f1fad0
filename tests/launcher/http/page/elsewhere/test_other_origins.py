"""Pages of other origins in a browser, which asks the server before it lets them."""

from __future__ import annotations

import asyncio
import base64
import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from playwright.sync_api import BrowserContext, Page

from tests.launcher.fake_ranks import FakeRank, fake_engine, run
from tests.launcher.http.page.fake_server import FakeServer
from tests.launcher.http_servers import PATH, PROMPT, http_server
from tests.launcher.processes import PATIENCE_S

BODY = {"prompt": PROMPT, "steps": 2}
FETCH = """async ([url, options]) => {
  try {
    const answer = await fetch(url, options);
    const shown = ["X-Request-ID", "Retry-After", "Idempotent-Replayed", "Content-Type"];
    return {
      status: answer.status,
      headers: Object.fromEntries(shown.map((name) => [name, answer.headers.get(name)])),
      text: await answer.text(),
    };
  } catch (error) {
    return { thrown: String(error) };
  }
}"""


class Served(NamedTuple):
    """A server's url, and the rank that draws for it."""

    url: str
    rank: FakeRank


@contextmanager
def served(run_folder: Path, **config: Any) -> Iterator[Served]:
    """A server in a thread: asyncio.run is refused in that of a browser's tests."""
    started: queue.Queue[tuple[Served, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def serve() -> None:
        ended = asyncio.Event()
        async with fake_engine(run_folder) as fakes, http_server(fakes.address, **config) as client:
            started.put((Served(str(client.base_url), fakes.ranks[0]), asyncio.get_running_loop(), ended))
            await ended.wait()

    thread = threading.Thread(target=lambda: run(serve()))
    thread.start()
    found, loop, ended = started.get(timeout=PATIENCE_S)
    try:
        yield found
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(PATIENCE_S)


def fetch(page: Page, url: str, key: str = "secret", **options: Any) -> dict[str, Any]:
    """What a script of the page gets."""
    headers = {"Authorization": f"Bearer {key}"} | options.pop("headers", {})
    answer: dict[str, Any] = page.evaluate(FETCH, [url, options | {"headers": headers}])
    return answer


def post(page: Page, url: str, body: dict[str, Any], key: str = "secret", **headers: str) -> dict[str, Any]:
    sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return fetch(page, url + PATH, key, method="POST", body=json.dumps(body), headers=sent)


def open_other_page(context: BrowserContext, server: FakeServer) -> Page:
    """A page without a content security policy, which is not the tested server's."""
    page = context.new_page()
    page.goto(f"{server.url}/page/nothing")
    return page


def test_a_page_of_an_allowed_origin_draws_and_reads_answers_errors_and_streams(
    context: BrowserContext, server: FakeServer, run_folder: Path
) -> None:
    with served(run_folder, allowed_origins=(server.url,), api_keys=("secret",)) as (url, _):
        page = open_other_page(context, server)
        drawn = post(page, url, BODY, X_Request_ID="mine", Idempotency_Key="one", X_Stainless_Lang="js")
        assert (drawn["status"], drawn["headers"]["X-Request-ID"]) == (200, "mine")
        assert base64.b64decode(json.loads(drawn["text"])["data"][0]["b64_json"]).startswith(b"\x89PNG")
        again = post(page, url, BODY, X_Request_ID="mine", Idempotency_Key="one")
        assert again["headers"]["Idempotent-Replayed"] == "true"
        stream = post(page, url, BODY | {"stream": True})
        assert stream["text"].startswith("event: image_generation.completed\n")
        link = json.loads(post(page, url, BODY | {"response_format": "url"})["text"])["data"][0]["url"]
        assert fetch(page, link)["headers"]["Content-Type"] == "image/png"
        for answer, status, code in (
            (post(page, url, BODY, key="wrong"), 401, "invalid_api_key"),
            (post(page, url, BODY | {"steps": 0}), 400, "invalid_parameter"),
            (fetch(page, f"{url}/nothing"), 404, "not_found"),
            (fetch(page, f"{url}/v1/loras/nothing", method="DELETE"), 400, "invalid_parameter"),
        ):
            assert (answer["status"], json.loads(answer["text"])["error"]["code"]) == (status, code)


def test_without_the_option_a_page_reads_nothing_and_nothing_is_drawn_for_it(
    context: BrowserContext, server: FakeServer, run_folder: Path
) -> None:
    with served(run_folder) as (url, rank):
        page = open_other_page(context, server)
        before = len(rank.steps)
        simple = {
            "method": "POST",
            "body": json.dumps(BODY),
            "mode": "no-cors",
        }  # of which the server is not asked before
        page.evaluate("([url, options]) => fetch(url, options).then(() => null)", [url + PATH, simple])
        for answer in (post(page, url, BODY), fetch(page, f"{url}/v1/models")):
            assert answer == {"thrown": "TypeError: Failed to fetch"}
        own = context.new_page()
        own.goto(f"{url}/docs")
        assert fetch(own, f"{url}/v1/models")["status"] == 200
        assert len(rank.steps) == before
