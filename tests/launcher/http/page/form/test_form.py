"""The page's form: all of it in sight, and as it was left."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Page, expect

from tests.launcher.http.page.fake_server import SETTINGS, FakeServer
from tests.launcher.http.page.page_use import PROMPT, generate, open_page, pictures, reload

SIZES = [(1280, 900), (375, 700)]
KEY = "krea2-settings/demo"


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_more_opens_in_sight_and_examples_take_one_row(page: Page, server: FakeServer, width: int, height: int) -> None:
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(reduced_motion="reduce")
    open_page(page, server)
    chips = page.locator(".chip")
    assert len({chip["y"] for chip in (chips.nth(i).bounding_box() for i in range(chips.count())) if chip}) == 1
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    last = chips.last
    last.focus()  # which scrolls the row
    expect(last).to_be_in_viewport(ratio=0.9)
    expect(page.locator("#tooltip")).to_have_text("a small white heart at the top on a green background")
    last.press("Enter")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(
        "a small white heart at the top on a green background"
    )
    page.get_by_text("More", exact=True).click()
    for name in ("steps", "negative_prompt", "output_format", "reset"):
        field = page.locator(f"#{name}")
        expect(field).to_be_in_viewport(ratio=1)
        on_top = (
            "field => { const {x, y} = field.getBoundingClientRect(); return document.elementFromPoint(x + 9, y + 9); }"
        )
        assert name == "reset" or field.evaluate(f"field => ({on_top})(field) === field"), (
            name
        )  # there is nothing to reset


def test_the_demo_says_in_one_line_what_it_draws(page: Page, server: FakeServer) -> None:
    open_page(page, server)
    told = page.locator("#demo .told")
    box = told.bounding_box()
    assert box is not None
    assert box["height"] < 40
    told.locator("summary").click()
    expect(told).to_contain_text("--model krea/Krea-2-Turbo")


def test_settings_survive_a_reload_until_they_are_reset(page: Page, server: FakeServer) -> None:
    server.loras = [{"name": "oil", "strength": 1.0}, {"name": "ink", "strength": 1.0}]
    open_page(page, server)
    page.get_by_label("oil", exact=True).check()
    page.get_by_label("ink", exact=True).check()
    page.get_by_label("Strength of ink").fill("0.5")
    page.get_by_text("More", exact=True).click()
    page.get_by_label("4:3").check()
    page.locator("#output_format").select_option("webp")
    page.locator("#cache").select_option("fast")
    page.get_by_text("Schedule", exact=True).click()
    for name, value in {"Guide until": "0.7", "Sigmas": "1 0.5,  .25, 0", "Shift (mu)": "0"}.items():
        page.get_by_label(name).fill(value)
    generate(page, seed="7", steps="9", guidance="1.5", negative_prompt="squares")
    expect(pictures(page)).to_have_count(1)
    server.loras = server.loras[1:]
    reload(page)
    expect(page.get_by_label("ink", exact=True)).to_be_checked()
    expect(page.get_by_label("oil", exact=True)).to_have_count(0)
    expect(page.locator("#more")).to_have_class("changed")
    page.get_by_role("button", name="Generate").click()
    expect(pictures(page)).to_have_count(2)
    first, again = server.requests
    assert again == first | {"loras": [{"name": "ink", "strength": 0.5}]}
    assert (again["width"], again["steps"], again["output_format"], again["cache"]) == (144, 3, "webp", "fast")
    assert (again["guidance_until"], again["sigmas"], again["mu"]) == (0.7, [1, 0.5, 0.25], 0)
    assert "guidance_from" not in again
    expect(page.locator("#schedule")).to_have_class("changed")
    server.settings = {"model": "another"}  # at the same address
    page.reload()
    expect(page.locator("#model")).to_have_text("another")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("")
    server.settings = {}
    reload(page)
    page.get_by_text("More", exact=True).click()
    page.get_by_role("button", name="Reset all settings").click()
    expect(page.locator("#more")).not_to_have_class("changed")
    reload(page)
    expect(page.locator("#seed")).to_have_value("")
    page.get_by_role("button", name="Generate").click()
    expect(pictures(page)).to_have_count(3)
    assert (server.requests[2]["prompt"], server.requests[2]["steps"]) == (PROMPT, 4)
    assert not {"cache", "guidance_until", "sigmas", "mu"} & server.requests[2].keys()
    assert page.evaluate(f"() => localStorage.getItem('{KEY}')") == json.dumps(
        {"prompt": PROMPT}, separators=(",", ":")
    )


def test_what_is_kept_is_not_trusted(page: Page, server: FakeServer) -> None:
    open_page(page, server)
    for kept in (
        "{",
        json.dumps({"steps": 5000, "guidance": "1", "seed": -1, "width": 128, "output_format": "exe", "prompt": 7}),
        json.dumps({"width": 128, "height": 1e9, "loras": [{"name": "oil"}], "steps": 2.5, "cache": "x"}),
        json.dumps({"sigmas": [1, "x"], "mu": 1e9, "guidance_from": -1, "guidance_until": "0.5"}),
        json.dumps({"loras": {"length": 1}, "seed": 2**60, "negative_prompt": "x" * 20_000, "guidance": 21}),
    ):
        page.evaluate("([key, kept]) => localStorage.setItem(key, kept)", [KEY, kept])
        reload(page)
        generate(page)
        expect(page.locator(".job")).to_have_count(0)
    plain = {"prompt": PROMPT, "width": 128, "height": 128, "n": 1, "steps": 4, "guidance": 0, "output_format": "png"}
    assert len(server.requests) == 5
    for request in server.requests:
        assert request == plain | {"stream": True, "progress": True, "preview_every": 1}


def test_sizes_are_those_that_the_model_was_made_for(page: Page, server: FakeServer) -> None:
    server.settings = {"good_sides": [112, 256]}
    open_page(page, server)
    expect(page.locator(".preset:visible")).to_have_text(["1:1", "4:3", "3:4", "Custom"])
    page.get_by_label("Custom").check()
    page.locator("#width").fill("250")
    note = page.locator("#size-note")
    expect(note).to_have_text("Rounded up to 256 × 128 pixels; the model was made for sides from 112 to 256")
    expect(note).not_to_have_class("note outside")
    page.locator("#width").fill("1024")
    expect(note).to_have_class("note outside")


def test_samples_are_shown_until_there_is_a_picture_and_drawn_by_a_click(page: Page, server: FakeServer) -> None:
    server.settings = {"defaults": {**SETTINGS["defaults"], "steps": 8}}
    open_page(page, server)
    page.locator("#negative_prompt").evaluate("field => field.value = 'squares'")
    samples = page.locator(".sample")
    expect(samples).to_have_count(8)
    background = page.locator(".sample-picture").first.evaluate("e => getComputedStyle(e).backgroundImage")
    assert background == f'url("{server.url}/page/samples.webp")'
    samples.nth(1).click()
    expect(pictures(page)).to_have_count(1)
    expect(samples.first).to_be_hidden()
    expect(page.locator("#gallery-heading")).to_be_focused()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a large yellow star on a purple background")
    drawn = {"seed": 7, "width": 128, "height": 128, "steps": 8, "guidance": 0, "n": 1}
    assert server.requests[0] | drawn == server.requests[0]
    assert "negative_prompt" not in server.requests[0]
    expect(page.locator("#seed")).to_have_value("")
    page.get_by_role("button", name="Generate").click()
    expect(pictures(page)).to_have_count(2)
    assert "seed" not in server.requests[1]  # or it would be the same picture again


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_all_of_a_seed_is_seen(page: Page, server: FakeServer, width: int, height: int) -> None:
    page.set_viewport_size({"width": width, "height": height})
    open_page(page, server)
    page.locator("#seed").fill(str(2**32 - 1))
    room = page.locator("#seed").evaluate(
        """field => {
          const style = getComputedStyle(field);
          const pen = document.createElement("canvas").getContext("2d");
          pen.font = style.font;
          const padding = parseFloat(style.paddingLeft) + parseFloat(style.paddingRight);
          return field.clientWidth - padding - pen.measureText(field.value).width;
        }"""
    )
    assert room >= 0


def test_a_model_that_is_not_the_demo_has_prompts_to_begin_with_and_no_pictures(page: Page, server: FakeServer) -> None:
    server.settings = {"is_demo": False, "good_sides": None, "defaults": {**SETTINGS["defaults"], "steps": 8}}
    open_page(page, server)
    expect(page.locator(".sample-picture")).to_have_count(0)
    expect(page.locator("#demo")).to_be_hidden()
    page.locator(".sample").first.click()
    expect(pictures(page)).to_have_count(1)
    assert server.requests[0]["prompt"].startswith("a red fox")
    assert "seed" not in server.requests[0]


def test_a_schedule_of_no_numbers_is_said_in_sight_and_a_lora_s_gives_way_to_the_form_s(
    page: Page, server: FakeServer
) -> None:
    server.loras = [{"name": "fast", "strength": 1.0, "made_for": {"steps": 2, "sigmas": [1, 0.5], "mu": 0}}]
    open_page(page, server)
    page.get_by_label("fast", exact=True).check()
    page.get_by_text("More", exact=True).click()
    page.get_by_text("Schedule", exact=True).click()
    page.get_by_label("Sigmas").fill("1, half")
    page.get_by_text("More", exact=True).click()
    generate(page, seed="7")
    expect(page.get_by_text("Enter numbers, as 1, 0.75, 0.5, 0.25.")).to_be_in_viewport()
    assert server.requests == []
    page.get_by_label("Sigmas").fill("")
    page.get_by_label("Shift (mu)").fill("1")
    page.locator("#steps").fill("2")  # as the LoRA has it
    page.get_by_role("button", name="Generate").click()
    expect(pictures(page)).to_have_count(1)
    assert (server.requests[0]["steps"], server.requests[0]["mu"]) == (2, 1)
