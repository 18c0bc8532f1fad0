"""The mask that is painted over a picture is the one that the server gets."""

from __future__ import annotations

import io
import re

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.launcher.http.page.conftest import DEADLINE_MS
from tests.launcher.http.page.fake_server import FakeServer
from tests.launcher.http.page.page_use import generate, pictures
from tests.launcher.http.page.source.forms import turned
from tests.launcher.http.page.source.source_use import paint, start, write_picture

TINTED = """() => {
  const canvas = document.getElementById("source-mask");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return data.filter((_, i) => i % 4 === 3).reduce((sum, alpha) => sum + (alpha > 127), 0) / (data.length / 4);
}"""


def mask_of(request: dict[str, bytes]) -> Image.Image:
    mask = Image.open(io.BytesIO(request["mask"]))
    assert mask.format == "PNG"
    grey = mask.convert("L")
    assert set(grey.tobytes()) <= {0, 255}
    return grey


def share(mask: Image.Image) -> float:
    return mask.histogram()[255] / (mask.width * mask.height)


def test_the_brush_paints_the_mask_that_the_server_gets(page: Page, server: FakeServer) -> None:
    start(page, server, write_picture(400, 200, orientation=6))  # red above, blue below
    page.get_by_role("button", name="Paint a mask", exact=True).click()
    told, undo, redo = page.locator("#painter-told"), *(page.locator(f"#painter-{name}") for name in ("undo", "redo"))
    expect(told).to_have_text("Paint what is to be drawn anew.")
    expect(undo).to_be_disabled()
    page.locator("#painter-size").fill("20")  # percent of the longer side
    paint(page, (0.5, 0.1), (0.5, 0.4))
    expect(told).to_have_text(re.compile(r"\d\d % is painted\."))
    page.get_by_text("Eraser").click()
    paint(page, (0, 0.1), (1, 0.1))
    page.keyboard.press("Control+z")
    expect(redo).to_be_enabled()
    page.keyboard.press("Control+Shift+Z")
    paint(page, (0.5, 0.4))
    undo.click()
    page.locator("#painter-done").click()
    expect(page.locator("#strength")).to_have_value("1")
    expect(page.locator("#strength-note")).to_contain_text("What you painted is drawn anew")
    generate(page)
    expect(pictures(page)).to_have_count(1)
    mask = mask_of(server.requests[0])
    assert mask.size == turned(server.requests[0]["image"]).size == (200, 400)
    painted = [mask.getpixel((100, y)) for y in (20, 60, 100, 160, 195, 205)]
    assert painted == [0, 0, 255, 255, 255, 0]
    assert [mask.getpixel((x, 160)) for x in (50, 70, 130, 150)] == [0, 255, 255, 0]
    assert abs(page.evaluate(TINTED) - share(mask)) < 0.01

    page.get_by_role("button", name="Change the mask").click()
    page.get_by_role("button", name="Invert").click()
    page.locator("#painter-done").click()
    page.get_by_role("button", name="Generate").click()
    expect(pictures(page)).to_have_count(2)
    assert abs(share(mask_of(server.requests[1])) + share(mask) - 1) < 0.001
    page.locator("#source-sheet").click()
    page.get_by_role("button", name="Clear").click()
    expect(told).to_have_text("Paint what is to be drawn anew.")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Paint a mask", exact=True)).to_be_focused()
    page.get_by_role("button", name="Generate").click()
    expect(pictures(page)).to_have_count(3)
    assert "mask" not in server.requests[2]
    assert server.requests[2]["strength"] == 0.6


def test_a_mask_is_painted_with_the_keyboard_and_at_any_zoom(page: Page, server: FakeServer) -> None:
    start(page, server, write_picture(400, 300))
    page.locator("#mask").focus()
    page.keyboard.press("Enter")
    sheet, size = page.locator("#painter-sheet"), page.locator("#painter-size")
    expect(sheet).to_be_focused()
    size.fill("10")  # a radius of 20, which is how far an arrow goes
    page.keyboard.press("]")
    expect(size).to_have_value("12")
    page.keyboard.press("[")
    expect(size).to_have_value("10")
    sheet.focus()
    for key in (
        "Space",
        "ArrowLeft",
        "ArrowLeft",
        "ArrowLeft",
        "Shift+ArrowDown",
        "e",
        "ArrowDown",
        "Shift+ArrowDown",
        "b",
    ):
        page.keyboard.press(key)
    expect(page.get_by_label("Brush", exact=True)).to_be_checked()
    width = sheet.bounding_box()
    assert width
    for _ in range(2):
        page.keyboard.press("+")
    larger = sheet.bounding_box()
    assert larger
    assert abs(larger["width"] / width["width"] - 2.25) < 0.01
    stage = page.locator("#painter-stage").bounding_box()
    assert stage
    page.locator("#painter-stage").evaluate("stage => stage.scrollTo(1e6, 1e6)")
    larger = sheet.bounding_box()
    assert larger
    x, y = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2  # of the screen, and so of the picture:
    across, down = (x - larger["x"]) / larger["width"] * 400, (y - larger["y"]) / larger["height"] * 300
    page.mouse.click(x, y)
    page.locator("#painter-done").click()
    generate(page)
    expect(pictures(page)).to_have_count(1)
    mask = mask_of(server.requests[0])
    places = {
        (200, 150): 255,
        (230, 150): 0,
        (140, 150): 255,
        (140, 165): 255,
        (140, 180): 0,
        (140, 200): 0,
        (170, 150): 0,
    }
    assert {place: mask.getpixel(place) for place in places} == places
    assert across > 240
    assert mask.getpixel((round(across), round(down))) == mask.getpixel((round(across) + 15, round(down))) == 255


def test_a_finger_paints_and_two_move_the_picture_on_a_phone(chromium: Browser, server: FakeServer) -> None:
    context = chromium.new_context(viewport={"width": 375, "height": 740}, has_touch=True, is_mobile=True)
    context.set_default_timeout(DEADLINE_MS)
    page = context.new_page()
    start(page, server, write_picture(400, 300))
    page.locator("#mask").click()
    sheet = page.locator("#painter-sheet")
    box = sheet.bounding_box()
    assert box

    def touch(kind: str, finger: int, x: float, y: float) -> None:
        place = {"clientX": box["x"] + x * box["width"], "clientY": box["y"] + y * box["height"]}
        sheet.evaluate("sheet => (sheet.setPointerCapture = () => {})")  # which the browser has for real fingers alone
        sheet.dispatch_event(f"pointer{kind}", {"pointerId": finger, "pointerType": "touch", "bubbles": True, **place})

    touch("down", 7, 0.25, 0.5)
    touch("move", 7, 0.75, 0.5)
    touch("up", 7, 0.75, 0.5)
    touch("down", 8, 0.4, 0.2)
    touch("down", 9, 0.6, 0.2)  # the first of them paints nothing
    touch("move", 9, 0.8, 0.2)
    larger = sheet.bounding_box()
    assert larger
    assert abs(larger["width"] / box["width"] - 2) < 0.02
    touch("up", 8, 0.4, 0.2)
    touch("up", 9, 0.8, 0.2)
    assert page.evaluate("() => document.getElementById('painter').scrollWidth <= innerWidth")
    expect(page.locator("#painter-done")).to_be_in_viewport(ratio=1)
    page.locator("#painter-done").click()
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    generate(page)
    expect(pictures(page)).to_have_count(1)
    mask = mask_of(server.requests[0])
    assert [mask.getpixel(place) for place in ((110, 150), (200, 150), (290, 150), (160, 60))] == [255, 255, 255, 0]
    context.close()
