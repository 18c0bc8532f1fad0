"""What the page says of a request: how long it still takes, and why it came to nothing."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.launcher.http.page.conftest import DEADLINE_MS
from tests.launcher.http.page.fake_server import FakeServer, Refusal
from tests.launcher.http.page.page_use import generate, open_page, pictures

LOOK_EVERY_S = 0.25
COUNTDOWN = """async (happenings) => {
  const { Countdown } = await import("/page/scripts/jobs/countdown.js");
  const countdown = new Countdown();
  return happenings.map(([now, news]) => {
    if (news) countdown.hear(news.seconds, now, news);
    return { now, left: countdown.left(now), text: countdown.text(now) };
  });
}"""


@pytest.fixture(scope="module")
def countdown(chromium: Browser) -> Iterator[Any]:
    """Gives what a countdown shows: every 0.25 s until `until`, of estimates that come at some seconds."""
    page, server = chromium.new_page(), FakeServer()
    page.set_default_timeout(DEADLINE_MS)
    page.goto(f"{server.url}/page/icon.svg")

    def show(estimates: dict[float, float | None], until: float, **news: bool) -> list[dict[str, Any]]:
        looks = [[i * LOOK_EVERY_S, None] for i in range(math.ceil(until / LOOK_EVERY_S))]
        told = [[now, {"seconds": seconds, **news}] for now, seconds in estimates.items()]
        return page.evaluate(COUNTDOWN, sorted([*looks, *told], key=lambda happening: happening[0]))

    yield show
    page.close()
    server.stop()


def test_the_time_left_follows_the_engine_but_not_its_jitter(countdown: Any) -> None:
    draw = random.Random(23)
    estimates = {0.1 + now: (60 - now) * draw.uniform(0.8, 1.2) for now in range(56)}
    shown = countdown(estimates, 60, isStepping=True)
    left = [look["left"] for look in shown if look["left"] is not None]
    assert left[0] > 40
    drops = [before - after for before, after in itertools.pairwise(left)]
    assert min(drops) >= 0
    assert max(drops) < 2
    assert all(abs(look["left"] - (60 - look["now"])) < 12 for look in shown if look["left"] is not None)


def test_a_first_estimate_is_shown_once_a_second_bears_it_out_or_some_time_has_passed(countdown: Any) -> None:
    assert {look["text"] for look in countdown({0.0: None}, 60)} == {"estimating…"}
    corrected = countdown({0.0: 5, 0.5: 300}, 1)
    assert [look["text"] for look in corrected if look["text"] != "estimating…"][:1] == ["about 5 min left"]
    alone = countdown({0.0: 300}, 3)
    assert next(look["now"] for look in alone if look["text"] != "estimating…") == 2
    assert alone[-1]["text"] == "about 5 min left"


def test_a_time_that_turns_out_longer_stands_still_and_goes_up_once_if_that_lasts(countdown: Any) -> None:
    shown = countdown({0.0: 20, 1.0: 19} | {now: 100 - now for now in map(float, range(2, 40))}, 40)
    left = [look["left"] for look in shown if look["left"] is not None]
    rises = [(before, after) for before, after in itertools.pairwise(left) if after > before]
    assert len(rises) == 1
    assert left.index(rises[0][1]) * LOOK_EVERY_S > 10
    assert rises[0][0] > 17  # nobody is told that it is nearly done
    assert abs(left[-1] - 60.25) < 1


def test_what_is_late_or_stalls_is_not_counted_down_for_ever(countdown: Any) -> None:
    late = countdown({0.0: 3, 0.5: 2.5}, 12)
    assert list(dict.fromkeys(look["text"] for look in late))[-2:] == ["almost done", "longer than expected"]
    stalled = countdown({0.0: 100, 1.0: 99, 2.0: 98, 60.0: 98, 61.0: 97}, 62, isStepping=True)
    assert [look["text"] for look in stalled if look["now"] == 14.75] == ["about 85 s left"]
    assert [look["text"] for look in stalled if look["now"] == 42] == ["no step for 40 s"]
    assert stalled[-1]["text"] == "about 2 min left"
    waits = countdown({0.0: 100, 1.0: 99}, 60)  # in the queue, where nobody counts steps
    assert waits[-1]["text"] == "about 40 s left"


def test_a_request_that_is_overtaken_or_starts_over_has_another_estimate(page: Page, server: FakeServer) -> None:
    page.clock.install(time=0)
    server.held = True
    server.positions = (1, 3)
    server.estimates = [60, 600, 500, 300]
    server.restarts = 1
    open_page(page, server)
    page.clock.pause_at(3600)
    generate(page)
    state, left = page.locator(".job-state"), page.locator(".job-time")
    expect(state).to_have_text("In the queue behind 1 picture")
    expect(left).to_have_text("estimating…")
    page.clock.run_for(10_000)
    expect(left).to_have_text("about 50 s left")
    server.release()
    expect(state).to_have_text("In the queue behind 3 pictures")
    expect(left).to_have_text("estimating…")
    page.clock.run_for(2_000)
    expect(left).to_have_text("about 10 min left")
    server.release()
    expect(state).to_have_text("The engine restarted, starting over · Starting")
    expect(left).to_have_text("estimating…")
    page.clock.run_for(2_000)
    expect(left).to_have_text("about 5 min left")


def test_what_was_finished_before_a_request_was_cancelled_is_kept_and_the_rest_can_be_had(
    page: Page, server: FakeServer
) -> None:
    server.held = True
    open_page(page, server)
    generate(page, n="2")
    server.release(4)
    expect(pictures(page)).to_have_count(1)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".job-told")).to_have_text("You cancelled this. 1 finished picture is kept below.")
    expect(page.get_by_role("button", name="Dismiss")).to_be_focused()
    server.held = False
    page.get_by_role("button", name="Try again").click()
    expect(pictures(page)).to_have_count(2)
    expect(pictures(page).first).to_contain_text("seed 1235")
    first, second = server.requests
    assert second == first | {"seed": 1234}


def test_a_picture_that_a_filter_holds_back_is_told_of_and_none_of_its_pixels_stay(
    page: Page, server: FakeServer
) -> None:
    blocked = "image 1 was blocked by the content filter words (nudity)"
    server.held = True
    open_page(page, server)
    generate(page)
    server.release()
    expect(page.locator(".job .tile img")).to_have_attribute("src", re.compile("^blob:"))  # a preview
    server.fails = Refusal(400, blocked, code="moderation_blocked")
    server.release()
    told, tile = page.locator(".job-told"), page.locator(".job .tile")
    expect(told.locator("summary")).to_have_text("This server's content filter held a picture back.")
    expect(told).to_contain_text(f"{blocked}.")
    expect(tile.locator("svg")).to_be_visible()
    expect(tile.locator("img")).to_be_hidden()
    assert tile.locator("img").get_attribute("src") is None
    assert tile.evaluate("tile => tile.clientHeight") > 40
    expect(page.locator(".job-status")).to_be_hidden()
    server.held = False
    page.get_by_role("button", name="Try again").click()
    expect(pictures(page)).to_have_count(1)


def test_a_prompt_that_a_filter_blocks_is_told_of_where_it_stands(page: Page, server: FakeServer) -> None:
    blocked = "the prompt was blocked by the content filter words (violence)"
    server.refusals = [Refusal(400, blocked, "prompt", code="moderation_blocked")]
    open_page(page, server)
    generate(page)
    expect(page.locator("#prompt-error")).to_have_text(blocked)
    expect(page.locator(".job")).to_have_count(0)


def test_a_filter_that_does_not_answer_is_waited_for_and_then_told_of(page: Page, server: FakeServer) -> None:
    page.clock.install(time=0)
    down = Refusal(503, "content filter words did not answer", code="filter_unavailable", retry_after_s=2)
    server.refusals = [down] * 4
    open_page(page, server)
    generate(page)
    for _ in range(3):
        expect(page.locator(".job-state")).to_have_text("Waiting for the content filter")
        page.clock.run_for(2_500)
    told = page.locator(".job-told summary")
    said = "This server's content filter does not answer, and nothing is shown unchecked. Try again in 2 s."
    expect(told).to_have_text(said)
