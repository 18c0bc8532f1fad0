"""The page's view of one picture and of two, in a browser."""

from __future__ import annotations

from playwright.sync_api import Browser, Locator, Page, expect

from tests.launcher.http.page.conftest import DEADLINE_MS
from tests.launcher.http.page.fake_server import FakeServer
from tests.launcher.http.page.page_use import PROMPT, generate, open_page, pictures

RENDERING = "image => getComputedStyle(image).imageRendering"
# The picture may be another one until the next has been loaded.
IS_SHOWN = """([width, least, most]) => {
  const image = document.getElementById("lightbox-image");
  const scale = devicePixelRatio * image.getBoundingClientRect().width / image.naturalWidth;
  return image.naturalWidth === width && least <= scale && scale <= most;
}"""


def choose(picture: Locator) -> None:
    picture.get_by_role("button", name="Compare with another picture").click()


def swipe(stage: Locator, across: int, down: int = 0) -> None:
    finger = {"pointerId": 7, "pointerType": "touch", "bubbles": True}
    stage.dispatch_event("pointerdown", finger | {"clientX": 200, "clientY": 300})
    stage.dispatch_event("pointerup", finger | {"clientX": 200 + across, "clientY": 300 + down})


def test_two_pictures_are_compared_side_by_side_and_with_a_slider(page: Page, server: FakeServer) -> None:
    open_page(page, server)
    generate(page, seed="7")
    expect(pictures(page)).to_have_count(1)
    generate(page, PROMPT.replace("red", "green"), seed="8")
    expect(pictures(page)).to_have_count(2)
    green, red = pictures(page).first, pictures(page).last
    choose(red)
    expect(page.locator("#count")).to_have_text("Choose another")
    choose(red)
    expect(page.locator("#count")).to_have_text("2")
    choose(red)
    page.keyboard.press("Escape")
    expect(page.locator("#count")).to_have_text("2")
    choose(red)
    choose(green)
    dialog = page.get_by_role("dialog", name="Two pictures compared")
    expect(dialog.get_by_role("row")).to_have_text(
        ["They differ inLeftRight", f"Prompt{PROMPT}{PROMPT.replace('red', 'green')}", "Seed78"]
    )
    expect(dialog.locator("mark")).to_have_text(["red", "green"])
    expect(dialog.get_by_text("The same: size, steps, guidance, file format.")).to_be_visible()
    left, right = dialog.locator("#compare-a"), dialog.locator("#compare-b")
    for image in (left, right):
        expect(image).to_have_css("width", "512px")  # once it has been loaded
    boxes = [image.bounding_box() for image in (left, right)]
    assert boxes[0]
    assert boxes[1]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    assert boxes[0]["width"] == boxes[1]["width"] == 512
    page.keyboard.press("ArrowRight")  # the other of the two views
    expect(left).to_be_hidden()
    expect(dialog.locator("#compare-box")).to_have_css("width", "512px")
    slider = dialog.get_by_role("slider")
    cut = "() => getComputedStyle(document.getElementById('compare-above')).clipPath"
    assert page.evaluate(cut) == "inset(0px 0px 0px 50%)"
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate(cut) == "inset(0px 0px 0px 51%)"
    assert slider.evaluate("slider => devicePixelRatio * slider.getBoundingClientRect().width / 128") == 4
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(green.get_by_role("button", name="Compare with another picture")).to_be_focused()
    expect(page.locator("[aria-pressed=true]")).to_have_count(0)

    page.locator(".picture-open").first.click()
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#count")).to_have_text("Choose another")
    green.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#count")).to_have_text("1")


def test_small_pictures_are_enlarged_without_smoothing(page: Page, server: FakeServer) -> None:
    open_page(page, server)
    generate(page)
    expect(pictures(page)).to_have_count(1)
    page.get_by_label("Custom").check()
    generate(page, width="1024", height="768")
    expect(pictures(page)).to_have_count(2)
    generate(page, width="512", height="512")
    expect(pictures(page)).to_have_count(3)
    for image, rendering in zip(page.locator(".picture img").all(), ["auto", "auto", "pixelated"], strict=True):
        expect(image).to_have_css("image-rendering", rendering)
    page.locator(".picture-open").first.click()
    shown = page.locator("#lightbox-image")
    for width, rendering, least, most in ((512, "auto", 1.2, 1.9), (1024, "auto", 0.5, 1.0), (128, "pixelated", 4, 4)):
        page.wait_for_function(IS_SHOWN, arg=[width, least, most])
        expect(shown).to_have_css("image-rendering", rendering)
        page.keyboard.press("ArrowRight")
    page.set_viewport_size({"width": 420, "height": 700})
    page.wait_for_function("() => document.getElementById('lightbox-image').width === 256")  # a whole number of times


def test_a_phone_swipes_and_compares(chromium: Browser, server: FakeServer) -> None:
    context = chromium.new_context(viewport={"width": 375, "height": 740}, has_touch=True, is_mobile=True)
    context.set_default_timeout(DEADLINE_MS)
    page = context.new_page()
    open_page(page, server)
    server.warnings = ["the size was rounded. It had to be a multiple of 16"]
    generate(page, "word" * 60, n="3", seed="1")
    expect(pictures(page)).to_have_count(3)
    page.locator(".picture-open").first.click()
    settings, stage = page.locator("#lightbox-settings"), page.locator(".lightbox-stage")
    expect(page.locator("#lightbox-told summary")).to_have_text("The size was rounded.")
    for across, down, seed in ((-20, 0, 3), (-80, 0, 2), (-80, 70, 2), (-80, 0, 1), (-80, 0, 1), (90, 0, 2)):
        swipe(stage, across, down)
        expect(settings).to_contain_text(f"seed {seed}".replace(" ", "\u00a0"))
    page.keyboard.press("Escape")
    choose(pictures(page).first)
    choose(pictures(page).last)
    dialog = page.locator("#compare")
    expect(dialog.get_by_role("row")).to_have_text(["They differ inLeftRight", "Seed31"])
    assert dialog.evaluate("dialog => dialog.scrollWidth - innerWidth") <= 0
    assert page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    context.close()
