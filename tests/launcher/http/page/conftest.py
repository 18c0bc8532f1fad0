"""Fixtures of the page's tests: a Chromium, a fake server, and the page open on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect

from tests.launcher.http.page.browser import NAMES, find_chromium, start_chromium
from tests.launcher.http.page.fake_server import FakeServer
from tests.launcher.processes import PATIENCE_S

DEADLINE_MS = 1000 * PATIENCE_S


@pytest.fixture(scope="package")  # while it runs, asyncio.run is refused in this thread
def chromium() -> Iterator[Browser]:
    path = find_chromium()
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is in PATH")
    expect.set_options(timeout=DEADLINE_MS)
    with start_chromium(path) as browser:
        yield browser


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.held = False
    server.stop()


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    context.set_default_timeout(DEADLINE_MS)
    yield context
    context.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the page throws, and what the browser refuses because of the content security policy."""
    return []


@pytest.fixture
def page(context: BrowserContext, server: FakeServer, complaints: list[str]) -> Iterator[Page]:
    page = context.new_page()

    def listen(message: ConsoleMessage) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:  # statuses are tested as such
            complaints.append(message.text)

    page.on("console", listen)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    assert complaints == []
