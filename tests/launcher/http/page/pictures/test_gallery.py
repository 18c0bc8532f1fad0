"""The page's gallery, in a browser: pictures stay, and can be used again."""

from __future__ import annotations

import re

from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.launcher.http.page.fake_server import FakeServer, Refusal
from tests.launcher.http.page.page_use import PROMPT, generate, open_page, pictures, reload


def test_pictures_survive_a_reload_until_they_are_deleted(page: Page, server: FakeServer) -> None:
    open_page(page, server)
    generate(page, n="3", seed="1")
    expect(pictures(page)).to_have_count(3)
    expect(page.locator(".job")).to_have_count(0)  # by then they are kept
    reload(page)
    expect(pictures(page)).to_have_count(3)
    expect(pictures(page).first).to_contain_text("seed 3")
    assert page.locator(".picture img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 128
    pictures(page).first.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Keep").click()
    expect(pictures(page)).to_have_count(3)
    pictures(page).first.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(pictures(page)).to_have_count(2)
    reload(page)
    expect(pictures(page)).to_have_count(2)
    page.get_by_role("button", name="Delete all").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(pictures(page)).to_have_count(0)
    reload(page)
    expect(page.locator("#empty")).to_be_visible()


def test_deleting_all_leaves_what_another_tab_has_drawn(page: Page, server: FakeServer) -> None:
    other = page.context.new_page()
    for tab in (page, other):
        open_page(tab, server)
        generate(tab)
        expect(tab.locator(".job")).to_have_count(0)
        expect(pictures(tab)).to_have_count(1 if tab is page else 2)
    page.get_by_role("button", name="Delete all").click()
    expect(page.get_by_role("dialog")).to_contain_text("Delete all 1 picture?")
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(pictures(page)).to_have_count(0)
    reload(page)
    expect(pictures(page)).to_have_count(1)


def test_the_gallery_forgets_its_oldest_pictures(page: Page, server: FakeServer) -> None:
    def keep_few(route: Route) -> None:
        script = route.fetch()
        route.fulfill(response=script, body=script.text().replace("MAX_PICTURES = 200;", "MAX_PICTURES = 20;"))

    page.route("**/gallery.js", keep_few)
    open_page(page, server)
    for i in range(3):
        generate(page, n="10", seed=str(100 * i))
    expect(page.locator(".job")).to_have_count(0)
    expect(pictures(page)).to_have_count(20)
    reload(page)
    expect(pictures(page)).to_have_count(20)


def test_a_download_is_the_picture_under_a_name_that_tells_what_it_is(page: Page, server: FakeServer) -> None:
    open_page(page, server)
    generate(page, "a red/../circle: “tout rond” é", seed="7")
    with page.expect_download() as downloading:
        page.get_by_role("link", name="Download").click()
    assert downloading.value.suggested_filename == "a-red-circle-tout-rond-é-7.png"
    with Image.open(downloading.value.path()) as image:
        assert (image.format, image.size) == ("PNG", (128, 128))


def test_use_again_fills_the_form_and_vary_draws_with_another_seed(page: Page, server: FakeServer) -> None:
    open_page(page, server)
    page.get_by_text("More", exact=True).click()
    page.get_by_label("16:9").check()
    page.locator("#output_format").select_option("webp")
    page.locator("#cache").select_option("quality")
    generate(page, seed="7", n="2", steps="3", guidance="1.5", negative_prompt="squares")
    expect(pictures(page)).to_have_count(2)
    expect(page.locator(".job")).to_have_count(0)
    reload(page)
    generate(page, "something else")
    expect(pictures(page)).to_have_count(3)
    again = pictures(page).filter(has_text="seed 8")
    again.locator(".picture-open").click()
    told = "quality\u00a0cache · seed\u00a08 · without: squares · computed 27 of 48 blocks (56 %) · made in 1.3 s"
    expect(page.locator("#lightbox-settings")).to_contain_text(told)
    page.keyboard.press("Escape")
    again.get_by_role("button", name="Use again").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(PROMPT)
    expect(page.get_by_label("16:9")).to_be_checked()
    page.get_by_role("button", name="Generate").click()
    expect(pictures(page)).to_have_count(4)
    again.first.get_by_role("button", name="Vary").click()
    expect(pictures(page)).to_have_count(5)
    first, _, repeated, varied = server.requests
    assert repeated == first | {"seed": 8, "n": 1}
    assert varied == repeated | {"seed": varied["seed"]}
    assert varied["seed"] != 8


def test_a_lora_that_was_made_for_few_steps_has_them_and_the_picture_says_so(page: Page, server: FakeServer) -> None:
    made_for = {"steps": 2, "sigmas": [1, 0.5], "mu": 0, "guidance": None}
    server.loras = [{"name": "fast", "strength": 1.0, "made_for": made_for}]
    open_page(page, server)
    page.get_by_label("fast", exact=True).check()
    generate(page, seed="7")
    expect(pictures(page)).to_have_count(1)
    assert "steps" not in server.requests[-1]
    expect(pictures(page).first).to_contain_text("2\u00a0steps · seed\u00a07 · fast 1")
    pictures(page).first.get_by_role("button", name="Vary").click()
    expect(pictures(page)).to_have_count(2)
    assert server.requests[-1]["sigmas"] == [1, 0.5]  # those of the picture, whatever the LoRA says by now
    page.get_by_text("More", exact=True).click()
    generate(page, seed="7", steps="6")
    expect(pictures(page)).to_have_count(3)
    assert server.requests[-1]["steps"] == 6


def test_loras_are_chosen_with_their_strengths_and_kept_with_the_picture(page: Page, server: FakeServer) -> None:
    server.loras = [{"name": "Ink <b>wash</b>", "strength": 0.8}, {"name": "oil", "strength": 1.0}]
    open_page(page, server)
    ink, oil = page.get_by_label("Ink <b>wash</b>", exact=True), page.get_by_label("oil", exact=True)
    strength = page.get_by_label("Strength of Ink <b>wash</b>")
    expect(strength).to_have_value("0.8")
    expect(strength).to_be_disabled()
    generate(page)
    expect(pictures(page)).to_have_count(1)
    ink.check()
    strength.fill("")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#loras-error")).to_have_text("Enter a number for each strength.")
    strength.fill("-1.25")
    expect(page.locator("#loras-error")).to_be_hidden()
    oil.check()
    generate(page, seed="7")
    expect(pictures(page)).to_have_count(2)
    expect(pictures(page).first).to_contain_text("seed 7 · Ink <b>wash</b> -1.25 · oil 1")
    expect(page.locator(".job")).to_have_count(0)

    server.loras = [{"name": "oil", "strength": 1.0}]
    reload(page)
    expect(oil).to_be_checked()  # as it was left
    expect(ink).to_have_count(0)
    pictures(page).first.get_by_role("button", name="Use again").click()
    expect(oil).to_be_checked()
    expect(strength).to_have_value("-1.25")
    expect(page.locator(".lora.missing")).to_have_text(re.compile("Ink"))
    message = "loras must be among the loaded ones (oil), got 'Ink <b>wash</b>'"
    server.refusals = [Refusal(400, message, "loras")]
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#loras-error")).to_have_text(message)
    ink.click()
    expect(ink).to_have_count(0)
    page.get_by_role("button", name="Generate").click()
    expect(pictures(page)).to_have_count(3)
    plain, chosen, refused, without = (request.get("loras") for request in server.requests)
    assert plain is None
    assert chosen == refused == [{"name": "Ink <b>wash</b>", "strength": -1.25}, {"name": "oil", "strength": 1}]
    assert without == [{"name": "oil", "strength": 1}]
    server.loras = [{"name": "oil", "strength": 1.0}, {"name": "new", "strength": 0.5}]
    page.evaluate("() => window.dispatchEvent(new Event('focus'))")
    expect(page.get_by_label("Strength of new")).to_have_value("0.5")
    pictures(page).last.get_by_role("button", name="Use again").click()
    expect(oil).not_to_be_checked()
