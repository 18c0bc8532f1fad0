"""The page at /docs in a browser: its forms send requests, and show what is answered."""

from __future__ import annotations

import ast
import json
import re
import shlex

import pytest
from playwright.sync_api import Locator, Page, expect

from launcher.http.docs.page import write_page
from tests.launcher.http.docs.described import describe
from tests.launcher.http.page.fake_server import FakeServer, Refusal
from tests.launcher.http.page.page_use import copied
from tests.launcher.processes import wait_until

BODY = {"prompt": "a red fox", "width": 64, "height": 48, "steps": 2, "output_format": "png", "seed": 7}
INNER = "http://10.0.0.5:8000"  # what the server takes for its address behind a proxy


@pytest.fixture
def server(server: FakeServer) -> FakeServer:
    server.docs = write_page(describe(api_keys=("secret",)), INNER, "./")
    return server


def open_form(page: Page, server: FakeServer, route: str = "POST /v1/images/generations") -> Locator:
    page.goto(f"{server.url}{server.prefix}/docs")
    return page.locator(f'form[aria-label="Try {route}"]')  # by its role it is sought long in so large a page


def test_an_answer_is_shown_with_its_pictures_and_an_error_with_what_is_wrong(page: Page, server: FakeServer) -> None:
    form = open_form(page, server)
    body, status, send = form.get_by_label("Body"), form.get_by_role("status"), form.get_by_role("button", name="Send")
    body.fill(json.dumps(BODY))
    body.press("Control+Enter")
    expect(status).to_contain_text("200 OK, ")
    picture = form.get_by_role("img")
    expect(picture).to_have_count(1)
    assert picture.evaluate("async (image) => { await image.decode(); return image.naturalWidth }") == 64
    expect(form.locator(".try-answer")).to_contain_text("… (")  # where its base64 is cut
    expect(form.locator(".headers")).to_contain_text("Content-Type: application/json")
    assert server.requests == [BODY]

    body.fill('{"prompt": }')
    send.click()
    expect(form.get_by_role("alert")).to_contain_text("This is not JSON")
    expect(picture).to_have_count(0)  # of the last answer
    expect(status).to_be_empty()
    expect(body).to_be_focused()
    assert len(server.requests) == 1

    server.refusals = [Refusal(429, "the queue is full", retry_after_s=3)]
    body.fill("{}")
    expect(form.get_by_role("alert")).to_be_hidden()
    send.click()
    expect(status).to_contain_text("429")
    expect(form.locator(".try-answer")).to_contain_text("the queue is full")
    expect(form.locator(".headers")).to_contain_text("Retry-After: 3")
    expect(picture).to_have_count(0)

    form.get_by_label("Example").select_option("two, with settings")
    assert json.loads(body.input_value())["n"] == 2
    missing = page.get_by_role("form", name="Try DELETE /v1/loras/{name}", exact=True)
    missing.get_by_label("name").fill("")
    missing.get_by_role("button", name="Send").click()
    expect(missing.get_by_role("status")).to_have_text("name is needed.")


def test_events_are_shown_as_they_come_until_one_stops_them(page: Page, server: FakeServer) -> None:
    server.held = True
    form = open_form(page, server)
    form.get_by_label("Body").fill(json.dumps(BODY | {"stream": True}))
    form.get_by_role("button", name="Send").click()
    events = form.locator(".events > li")
    expect(events).to_have_count(1)
    server.release()
    expect(events).to_have_count(3)
    expect(events.nth(1)).to_contain_text("image_generation.progress")
    expect(events.nth(2).get_by_role("img")).to_be_visible()
    form.get_by_role("button", name="Stop").click()
    expect(form.get_by_role("status")).to_contain_text("Stopped.")
    expect(form.get_by_role("button", name="Send")).to_be_focused()
    expect(form.get_by_role("button", name="Stop")).to_be_hidden()
    wait_until(lambda: server.cancelled == 1, "the end of the request that was stopped")

    server.held = False
    form.get_by_role("button", name="Send").click()
    expect(form.get_by_role("status")).to_contain_text(", 6 events")
    expect(events.last.get_by_role("img")).to_be_visible()
    assert server.cancelled == 1


def test_it_works_with_a_key_and_under_a_path_that_only_a_proxy_knows(page: Page, server: FakeServer) -> None:
    server.prefix, server.api_key = "/krea2", "secret"
    form = open_form(page, server, "GET /v1/status")
    send, status = form.get_by_role("button", name="Send"), form.get_by_role("status")
    send.click()
    expect(status).to_contain_text("401")
    form.locator("..").get_by_role("link", name="API key").click()
    page.get_by_label("API key").fill("secret")
    send.click()
    expect(status).to_contain_text("200 OK")
    page.reload()
    send.click()
    expect(status).to_contain_text("200 OK")
    route = form.locator("..")
    route.locator("summary", has_text="curl").click()
    here = f"{server.url}/krea2/v1/status"
    assert f"'{here}'" in copied(page, route.get_by_role("button", name="Copy curl"))
    expect(page.get_by_role("link", name="The page")).to_have_attribute("href", "./")
    assert INNER not in page.content().partition("<main")[2]


def test_the_snippets_ask_for_what_the_form_sends(page: Page, server: FakeServer) -> None:
    form = open_form(page, server)
    route, body = form.locator(".."), form.get_by_label("Body")
    for summary in route.locator("details.snippet > summary").all():
        summary.click()
    buttons = route.locator("button.copy").all()  # which are called Copied for a while
    assert [button.inner_text().split() for button in buttons] == [["Copy", "curl"], ["Copy", "Python"]]

    def copies() -> list[str]:
        return [copied(page, button) for button in buttons]

    form.get_by_label("Example").select_option("two, with settings")
    curl, python = copies()
    two = json.loads(body.input_value())
    assert json.loads(curl.partition("-d '")[2].removesuffix("'")) == two
    assert 'picture-{index}.webp"' in python
    assert body_of(python) == two
    odd = {"prompt": 'it\'s "new"\\ £', "loras": [{"name": "ink", "strength": 0.5}], "explain": True, "mu": None}
    body.fill(json.dumps(odd))
    curl, python = copies()
    assert json.loads(shlex.split(curl)[-1]) == odd
    assert body_of(python) == odd
    assert 'picture-{index}.png"' in python
    body.fill(json.dumps(odd | {"stream": True}))
    curl, python = copies()
    assert "for line in response" in python
    compile(python, "snippet", "exec")
    body.fill('{"prompt": ')  # which is none yet
    assert copies() == [curl, python]

    named = page.locator('form[aria-label="Try GET /v1/models/{name}"]')
    named.get_by_label("name").fill("it's a/fox")
    named.locator("..").locator("summary", has_text="curl").click()
    address = f"'{server.url}/v1/models/it%27s%20a%2Ffox'"
    assert address in copied(page, named.locator("..").get_by_role("button", name="Copy curl"))


def body_of(program: str) -> object:
    """The body that a program in Python sends."""
    statement = next(each for each in ast.parse(program).body if isinstance(each, ast.Assign))
    return ast.literal_eval(statement.value)


def test_nothing_is_wider_than_a_narrow_screen(page: Page, server: FakeServer) -> None:
    page.set_viewport_size({"width": 320, "height": 800})
    open_form(page, server)
    for summary in page.locator("details.snippet > summary").all()[:2]:
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    cut = "[...document.querySelectorAll('.table')].filter((each) => each.scrollWidth > each.clientWidth).length"
    assert page.evaluate(cut) == 0
    size = page.get_by_role("row", name="size text").first  # a table still, whose cells are below one another
    expect(size.get_by_role("cell")).to_have_count(3)
    assert size.get_by_role("cell").last.bounding_box()["width"] > 250
    title = page.get_by_text("HTTP API", exact=True)
    assert title.evaluate("(e) => e.scrollWidth <= e.clientWidth && e.clientHeight < e.clientWidth")
    contents = page.get_by_role("navigation", name="Contents")
    contents.get_by_text("Contents", exact=True).click()  # which was folded
    contents.get_by_role("link", name="GET /v1/settings").press("Enter")
    expect(page).to_have_url(re.compile("#get-v1-settings$"))
    expect(page.get_by_role("heading", name="GET /v1/settings")).to_be_in_viewport()
