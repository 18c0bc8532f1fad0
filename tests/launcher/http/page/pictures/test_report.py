"""A picture is reported to whoever runs the server, where that takes reports."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page, Route, expect

from tests.launcher.http.page.fake_server import FakeServer
from tests.launcher.http.page.page_use import generate, open_page, pictures
from tests.launcher.http.page.source.forms import read_form


def test_a_picture_is_reported_with_its_file_its_request_and_what_is_wrong(page: Page, server: FakeServer) -> None:
    sent: list[dict[str, Any]] = []
    refusals = [{"error": {"message": "too many reports", "code": "rate_limited"}}]

    def take(route: Route) -> None:
        content_type, body = route.request.headers["content-type"], route.request.post_data_buffer
        assert body is not None
        sent.append(read_form(content_type, body))
        if refusals:
            route.fulfill(status=429, json=refusals.pop(), headers={"Retry-After": "9"})
        else:
            route.fulfill(json={"id": "report-1", "object": "report", "created": 1})

    page.route("**/v1/reports", take)
    server.settings = {"reports": True}
    open_page(page, server)
    generate(page, seed="5")
    pictures(page).locator(".picture-open").click()
    lightbox, dialog = page.locator("#lightbox"), page.locator("#report")
    lightbox.get_by_role("button", name="Report").click()
    expect(dialog.get_by_label("What is wrong with it?")).to_be_focused()
    dialog.get_by_role("button", name="Send").click()
    expect(page.locator("#report-error")).to_have_text("Say what is wrong with the picture.")
    assert not sent
    dialog.get_by_label("What is wrong with it?").fill("It shows me.")
    dialog.get_by_label("Where to reach you").fill("me@example.com")
    dialog.get_by_role("button", name="Send").click()
    expect(page.locator("#report-error")).to_have_text(
        "Your API key has had what it may have for now. Try again in 9 s."
    )
    dialog.get_by_role("button", name="Send").click()
    expect(dialog).to_be_hidden()
    expect(lightbox.get_by_role("button", name="Reported")).to_be_disabled()
    expect(page.locator("#lightbox-close")).to_be_focused()
    first, second = sent
    assert first == second
    assert second.pop("image").startswith(b"\x89PNG")
    assert second == {"reason": "It shows me.", "contact": "me@example.com", "request_id": "r"}


def test_where_no_reports_are_taken_none_are_offered(page: Page, server: FakeServer) -> None:
    open_page(page, server)
    generate(page)
    pictures(page).locator(".picture-open").click()
    expect(page.locator("#lightbox").get_by_role("button", name="Delete")).to_be_visible()
    expect(page.locator("#lightbox-report")).to_be_hidden()
