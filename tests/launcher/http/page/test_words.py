"""What the page says of what has no words: its icons."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.launcher.http.page.fake_server import FakeServer
from tests.launcher.http.page.page_use import generate, open_page, pictures

ICONS = """() => [document, ...[...document.querySelectorAll("template")].map((template) => template.content)]
    .flatMap((part) => [...part.querySelectorAll(".icon")])
    .map((icon) => [icon.ariaLabel, icon.querySelector("use").getAttribute("href").slice(1)])"""


def test_every_icon_has_words_and_no_symbol_stands_for_two_things(page: Page, server: FakeServer) -> None:
    open_page(page, server)
    icons = page.evaluate(ICONS)
    assert all(label for label, _ in icons), icons
    assert len({label for label, _ in icons}) == len({symbol for _, symbol in icons}) > 8
    assert all(page.locator(f"symbol#{symbol}").count() == 1 for _, symbol in icons)


def test_the_words_of_an_icon_are_shown_to_the_mouse_and_the_keyboard(page: Page, server: FakeServer) -> None:
    open_page(page, server)
    tip = page.locator("#tooltip")
    page.locator("#last-seed").hover()  # though there is none yet
    expect(tip).to_have_text("Use the last picture's seed")
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    generate(page)
    expect(pictures(page)).to_have_count(1)
    expect(page.locator(".job")).to_have_count(0)  # or else, as it goes, the picture moves away from the mouse
    pictures(page).get_by_role("button", name="Vary").hover()
    expect(tip).to_have_text("Vary: same settings, new seed")
    tip.hover()
    expect(tip).to_be_visible()
    page.locator("h1").hover()
    expect(tip).to_be_hidden()
    page.locator("#seed").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(tip).to_have_text("Draw a seed")
    page.keyboard.press("Tab")
    expect(tip).to_be_hidden()
    page.locator(".picture-open").click()
    page.get_by_role("button", name="Close").hover()
    expect(tip).to_have_text("Close (Esc)")
    inside = "tip => { const {top, right} = tip.getBoundingClientRect(); return top >= 0 && right <= innerWidth; }"
    assert tip.evaluate(inside)
