"""The page, in a browser, against a server that does what each test needs."""

from __future__ import annotations

import re

from playwright.sync_api import Browser, Page, expect

from tests.launcher.http.page.conftest import DEADLINE_MS
from tests.launcher.http.page.fake_server import FakeServer, Refusal
from tests.launcher.http.page.page_use import PROMPT, generate, open_page, pictures, reload
from tests.launcher.processes import wait_until


def test_a_request_shows_its_place_its_progress_and_its_previews_then_its_pictures(
    page: Page, server: FakeServer
) -> None:
    server.held = True
    page.clock.install(time=0)
    open_page(page, server)
    page.clock.pause_at(3600)  # or else, after 2 s, the first estimate is believed
    generate(page, n="2", seed="7")
    bar = page.get_by_role("progressbar")
    expect(page.locator(".job-status")).to_have_text(re.compile("behind 2 pictures estimating"))
    expect(page.locator(".tile")).to_have_count(2)
    expect(page.locator(".tile img:visible")).to_have_count(0)
    server.release()
    expect(bar).to_have_attribute("aria-valuenow", "25")
    expect(page.locator("#announcer")).to_have_text("Drawing, about 50 min left.")
    expect(page.locator(".job-state")).to_have_text("Step 2 of 8 · 2 pictures of 4 steps")
    expect(page.locator(".job-time")).to_have_text(re.compile(r"about \d\d min left"))
    expect(page.locator(".tile[data-state=preview] img:visible")).to_have_count(2)
    server.release(2)
    expect(bar).to_have_attribute("aria-valuenow", "75")
    server.release(2)
    expect(pictures(page)).to_have_count(2)
    expect(page.locator(".job")).to_have_count(0)
    expect(page.locator("#announcer")).to_have_text("Finished 2 pictures.")
    expect(pictures(page).first).to_contain_text("128 × 128 · 4 steps · seed 8")
    assert (
        server.requests[0] | {"preview_every": 1, "stream": True, "progress": True, "guidance": 0} == server.requests[0]
    )


def test_a_cancelled_request_is_cancelled_on_the_server_and_others_go_on(page: Page, server: FakeServer) -> None:
    server.held = True
    open_page(page, server)
    generate(page, "a green star on a black background")
    generate(page, "an orange ring on a white background")
    expect(page.locator(".job")).to_have_count(2)
    wait_until(lambda: server.running == 2, "two requests at once")
    cancelled = page.locator(".job", has_text="green star")
    cancelled.get_by_role("button", name="Cancel").click()
    expect(cancelled.locator(".job-told")).to_have_text("You cancelled this.")
    wait_until(lambda: server.cancelled == 1, "the end of the cancelled request")
    server.release(4)
    expect(pictures(page)).to_have_count(1)
    expect(pictures(page)).to_contain_text("orange ring")
    cancelled.get_by_role("button", name="Try again").click()
    expect(cancelled.get_by_role("button", name="Cancel")).to_be_focused()
    server.release(4)
    expect(pictures(page)).to_have_count(2)
    expect(page.locator(".job")).to_have_count(0)


def test_no_more_requests_are_open_at_once_than_leave_connections_to_the_browser(
    page: Page, server: FakeServer
) -> None:
    server.held = True
    open_page(page, server)
    for _ in range(6):
        generate(page)
    expect(page.locator(".job-status", has_text="Waiting for your other pictures")).to_have_count(2)
    wait_until(lambda: server.running == 4, "four requests at once")
    waiting = page.locator(".job", has_text="Waiting for your other").first
    waiting.get_by_role("button", name="Cancel").click()
    server.held = False
    expect(pictures(page)).to_have_count(5)
    assert len(server.requests) == 5


def test_an_error_stands_at_the_parameter_it_is_about(page: Page, server: FakeServer) -> None:
    open_page(page, server)
    server.refusals = [
        Refusal(400, "steps must be between 1 and 200, got 5000", "steps"),
        Refusal(400, "<b>width</b> must be between 64 and 4096, got 10", "size"),
        Refusal(400, "model must be demo, got fox", "model"),
    ]
    generate(page)
    error = page.locator("#steps-error")
    expect(error).to_have_text("steps must be between 1 and 200, got 5000")
    expect(page.locator("#steps")).to_be_focused()
    expect(page.locator(".job")).to_have_count(0)
    page.locator("#steps").fill("5")
    expect(error).to_be_hidden()
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#width-error")).to_have_text("<b>width</b> must be between 64 and 4096, got 10")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(".job-told")).to_have_text("model must be demo, got fox.")
    page.get_by_role("button", name="Try again").click()
    expect(pictures(page)).to_have_count(1)


def test_text_is_never_markup(page: Page, server: FakeServer) -> None:
    prompt = "<img src=x onerror=document.title='caught'><b>bold</b>"
    server.warnings = [prompt]
    open_page(page, server)
    page.get_by_text("More", exact=True).click()
    generate(page, prompt, negative_prompt=prompt)
    expect(page.locator(".picture-prompt")).to_have_text(prompt)
    expect(page.locator(".job-told")).to_have_text(f"{prompt}.")
    page.locator(".picture-open").click()
    expect(page.locator("#lightbox-settings")).to_contain_text(f"without: {prompt}")
    assert page.locator("b").count() == 0
    assert page.title() == "Krea 2 – demo"


def test_a_prompt_is_asked_for_and_half_a_number_is_not_sent(page: Page, server: FakeServer) -> None:
    open_page(page, server)
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#prompt-error")).to_have_text("Say what to draw.")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.locator("#seed").press_sequentially("1e")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#seed-error")).to_have_text("Enter a number.")
    assert server.requests == []


def test_a_full_queue_a_failure_a_lost_connection_and_a_restart_are_told(page: Page, server: FakeServer) -> None:
    open_page(page, server)
    server.refusals = [Refusal(429, "the queue is full", code="queue_full", retry_after_s=4)]
    generate(page)
    told = page.locator(".job-told")
    expect(told.locator("summary")).to_have_text("The server is busy: its queue is full. Try again in 4 s.")
    expect(told.get_by_text("the queue is full.")).to_be_hidden()
    told.locator("summary").click()
    expect(told.get_by_text("the queue is full.")).to_be_visible()
    server.fails = Refusal(500, "ranks died 3 times", code="request_killed_ranks")
    page.get_by_role("button", name="Try again").click()
    expect(told).to_contain_text("The engine broke down each time it drew this")
    expect(told).to_contain_text("ranks died 3 times.")
    server.hangs_up = True
    page.get_by_role("button", name="Try again").click()
    expect(told).to_have_text("The connection to the server was lost.")
    server.held, server.restarts = True, 1
    page.get_by_role("button", name="Try again").click()
    server.release(2)
    expect(page.locator(".job-state")).to_have_text(re.compile("The engine restarted, starting over · Step 1 of 4"))
    server.release(3)
    expect(pictures(page)).to_have_count(1)


def test_warnings_stay_until_they_are_dismissed(page: Page, server: FakeServer) -> None:
    server.warnings = ["the prompt was cut"]
    open_page(page, server)
    generate(page)
    expect(page.locator(".job-told")).to_have_text("The prompt was cut.")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.locator(".job")).to_have_count(0)
    expect(pictures(page)).to_have_count(1)


def test_the_newest_warning_stands_alone_and_breaks_no_option(page: Page, server: FakeServer) -> None:
    server.warnings = ["the model does not know this. Serve with --model FOLDER, or --memory-budget 12GB"]
    open_page(page, server)
    for count, prompt in enumerate(("a cat", "a dog", "a <b>fox</b>"), 1):
        generate(page, prompt)
        expect(pictures(page)).to_have_count(count)
        expect(page.locator(".job-told:visible")).to_have_count(1)
    expect(page.locator(".job-prompt")).to_have_text("a <b>fox</b>")
    page.locator(".job-told summary").click()
    expect(page.locator(".job-told code")).to_have_text(["--model", "--memory-budget"])
    expect(page.locator(".job-told code").first).to_have_css("white-space", "nowrap")
    server.warnings = []
    generate(page)
    expect(page.locator(".job")).to_have_count(0)


def test_leaving_asks_first_while_pictures_are_drawn(page: Page, server: FakeServer) -> None:
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    open_page(page, server)
    generate(page)
    expect(pictures(page)).to_have_count(1)
    expect(page.locator(".job")).to_have_count(0)
    reload(page)
    assert asked == []
    server.held = True
    generate(page)
    wait_until(lambda: server.running == 1, "the request")
    page.reload()
    assert asked == ["beforeunload"]


def test_an_api_key_is_asked_for_and_kept_in_this_tab(page: Page, server: FakeServer) -> None:
    server.api_key = "secret"
    page.goto(server.url)
    key = page.get_by_label("API key", exact=True)
    key.fill("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-message")).to_have_text("the API key is not one of this server's")
    key.fill("secret")
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_have_text("demo")
    reload(page)
    generate(page)
    expect(pictures(page)).to_have_count(1)
    server.api_key = "another"
    generate(page)
    expect(key).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator(".job-told")).to_have_text("the API key is not one of this server's.")
    page.get_by_role("button", name="Try again").click()
    key.fill("another")
    page.get_by_role("button", name="Use key").click()
    expect(pictures(page)).to_have_count(2)


def test_what_is_asked_for_while_the_engine_starts_is_made_when_it_is_ready(page: Page, server: FakeServer) -> None:
    server.ready = False
    open_page(page, server)
    expect(page.locator("#banner")).to_contain_text("The engine is starting.")
    generate(page)
    expect(page.locator(".job-status")).to_have_text("Waiting for the engine to be ready")
    server.ready = True
    expect(pictures(page)).to_have_count(1)
    expect(page.locator("#banner")).to_be_hidden()


def test_the_keyboard_is_enough(page: Page, server: FakeServer) -> None:
    open_page(page, server)
    for first in (page.locator("#load"), page.get_by_role("link", name="API"), page.get_by_label("Prompt", exact=True)):
        page.keyboard.press("Tab")
        expect(first).to_be_focused()
    page.keyboard.type(PROMPT)
    page.keyboard.press("Control+Enter")
    expect(pictures(page)).to_have_count(1)
    page.keyboard.press("Control+Enter")
    expect(pictures(page)).to_have_count(2)
    expect(page.locator(".job")).to_have_count(0)
    opener = page.locator(".picture-open").first
    for _ in range(40):
        page.keyboard.press("Tab")
        if opener.evaluate("element => element === document.activeElement"):
            break
    expect(opener).to_be_focused()
    page.keyboard.press("Enter")
    lightbox = page.get_by_role("dialog", name="Picture")
    expect(lightbox).to_be_visible()
    first = page.locator("#lightbox-image").get_attribute("src")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#lightbox-image")).not_to_have_attribute("src", first or "")
    expect(page.get_by_role("button", name="Older picture")).to_be_disabled()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#lightbox-image")).to_have_attribute("src", first or "")
    page.locator("#lightbox-delete").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Delete this picture?")).to_be_hidden()
    page.keyboard.press("Escape")
    expect(lightbox).to_be_hidden()
    expect(opener).to_be_focused()


def test_it_fits_a_phone(chromium: Browser, server: FakeServer) -> None:
    context = chromium.new_context(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    context.set_default_timeout(DEADLINE_MS)
    page = context.new_page()
    open_page(page, server)
    page.get_by_label("Custom").check()
    page.get_by_text("More", exact=True).click()
    server.held = True
    generate(page, "word" * 60, n="4")
    expect(page.locator(".tile")).to_have_count(4)
    wait_until(lambda: server.running == 1, "the request")
    server.refusals = [Refusal(400, "x" * 300, "model"), Refusal(400, "y" * 300, "width")]
    generate(page)
    expect(page.locator(".job-told:visible")).to_have_count(1)
    generate(page)
    expect(page.locator("#width-error")).to_be_visible()
    server.held = False
    expect(pictures(page)).to_have_count(4)
    overflow = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) == 0
    page.locator(".picture-open").first.click()
    expect(page.locator("#lightbox-image")).to_be_visible()
    assert page.evaluate("() => document.getElementById('lightbox').scrollWidth - innerWidth") <= 0
    context.close()
