"""A Chromium of the system's for the page; nothing is downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.launcher.processes import PATIENCE_S

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",  # which containers cannot give it; it opens nothing but the page
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str | None:
    """The path of a Chromium, if one is installed."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextmanager
def start_chromium(path: str) -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=ARGUMENTS,
            env=os.environ | {"LC_ALL": "C.UTF-8"},  # without UTF-8 it saves files under no name that has other letters
            timeout=1000 * PATIENCE_S,
        )
        yield browser
        browser.close()
