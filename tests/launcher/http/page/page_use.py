"""What a user does with the page, and sees."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

from tests.launcher.http.page.fake_server import FakeServer
from tests.launcher.processes import PATIENCE_S

PROMPT = "a red circle on a blue background"


def open_page(page: Page, server: FakeServer) -> None:
    page.goto(server.url)
    expect(page.locator("#model")).to_have_text("demo")


def reload(page: Page) -> None:
    page.reload()
    expect(page.locator("#model")).to_have_text("demo")


def generate(page: Page, prompt: str = PROMPT, **fields: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    for name, value in fields.items():
        page.locator(f"#{name}").fill(value)
    page.get_by_role("button", name="Generate").click()


def pictures(page: Page) -> Locator:
    return page.locator(".picture")


def copied(page: Page, button: Locator) -> str:
    """What a button copies."""
    page.evaluate(
        "() => { navigator.clipboard.writeText = async (text) => { window.copied = text }; window.copied = null }"
    )
    button.click()
    return page.wait_for_function("() => window.copied").json_value()


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run what was copied, in a folder of its own."""
    environment = os.environ | {"no_proxy": "*"} | environment
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
