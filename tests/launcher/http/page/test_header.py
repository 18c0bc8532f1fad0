"""The page's header: what the server is, what it does, and what it says when it is not there."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.launcher.http.page.fake_server import FakeServer
from tests.launcher.http.page.page_use import open_page
from tests.launcher.http.page.source.source_use import choose, write_picture


def test_the_header_tells_the_model_the_device_and_the_load(page: Page, server: FakeServer) -> None:
    server.load = {"running": 2, "waiting": 3}
    page.clock.install()
    open_page(page, server)
    expect(page.locator(".runs")).to_have_text("demoon cpu · 4 ranks")
    expect(page.locator("#load")).to_have_text("2 drawing · 3 waiting")
    page.locator("#load").click()
    facts = page.locator("#server-facts")
    for fact in (
        f"Server{server.url.removeprefix('http://')}",
        "Enginekrea2-engine 1.2",
        "Ranks4, --tp 2 --sp 2",
        "So far5 requests done, 1 failed, in 2 hours",
        "Memory of rank 025.2 GB weights, 60.0 GB free for stepsMemory of rank 11 MB weights",
    ):
        expect(facts).to_contain_text(fact)
    server.load = {}
    page.clock.run_for(3000)  # it looks again soon, as it was busy
    expect(page.locator("#load")).to_have_text("Ready")
    expect(facts).to_contain_text("NowReady")
    page.keyboard.press("Escape")
    expect(facts).to_be_hidden()
    expect(page.locator("#load")).to_be_focused()
    expect(page.get_by_role("link", name="API", exact=True)).to_have_attribute("href", "docs")


def test_the_header_tells_how_far_the_engine_has_loaded_and_that_the_server_is_gone(
    page: Page, server: FakeServer
) -> None:
    server.ready, server.stage = False, {"name": "loading", "done": 430, "total": 999}
    page.clock.install()
    open_page(page, server)
    load = page.locator("#load")
    expect(load).to_have_text("Loading 43 %")
    assert load.evaluate("load => load.style.getPropertyValue('--loaded')").startswith("43.04")
    load.click()
    expect(page.locator("#server-facts")).to_contain_text("Nowthe engine is not ready: it is loading.")
    server.stage = {"name": "warming up", "done": 999, "total": 999}
    page.clock.run_for(2000)
    expect(load).to_have_text("Warming up")
    page.route("**/ready", lambda route: route.abort())
    page.clock.run_for(2000)
    expect(load).to_have_text("Not reachable")
    expect(page.locator("#banner")).to_contain_text("The server is gone")
    page.unroute("**/ready")
    server.ready = True
    page.clock.run_for(4000)
    expect(load).to_have_text("Ready")
    expect(page.locator("#device")).to_have_text("on cpu · 4 ranks")


def test_a_server_that_comes_back_with_another_model_is_told_apart(page: Page, server: FakeServer) -> None:
    page.clock.install()
    open_page(page, server)
    page.get_by_label("Prompt", exact=True).fill("a fox")
    choose(page, write_picture(160, 96))
    expect(page.get_by_role("radio", name="Picture")).to_be_checked()
    page.route("**/ready", lambda route: route.abort())
    page.clock.run_for(20_000)
    expect(page.locator("#banner")).to_be_visible()
    page.unroute("**/ready")
    server.settings = {"model": "another", "is_demo": False}
    page.clock.run_for(20_000)
    expect(page.locator("#model")).to_have_text("another")
    expect(page.locator("#demo")).to_be_hidden()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a fox")
    expect(page.get_by_role("radio", name="Picture")).to_be_checked()
    expect(page.locator("#size-note")).to_have_text("As the picture: 160 × 96 pixels")
