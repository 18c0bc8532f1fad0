"""What a user does with the page, and sees."""

from __future__ import annotations

from playwright.sync_api import Locator, Page, expect

from tests.launcher.http.page.fake_server import FakeServer

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
