"""What a user does with a picture to start from, and what the server gets."""

from __future__ import annotations

import io

from PIL import Image
from playwright.sync_api import FilePayload, Page, expect

from tests.launcher.http.page.fake_server import FakeServer
from tests.launcher.http.page.page_use import open_page

NAME = "a fox.jpg"
_ORIENTATION = 0x0112  # of EXIF


def write_picture(width: int, height: int, kind: str = "jpeg", orientation: int = 1) -> bytes:
    """A picture whose left half is red and whose right half is blue, before it is turned."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    exif, file = Image.Exif(), io.BytesIO()
    exif[_ORIENTATION] = orientation
    image.save(file, kind, exif=exif)
    return file.getvalue()


def choose(page: Page, file: bytes, name: str = NAME) -> None:
    page.get_by_label("Choose a picture to start from").set_input_files(payload(file, name))


def payload(file: bytes, name: str = NAME) -> FilePayload:
    return {"name": name, "mimeType": "", "buffer": file}


def start(page: Page, server: FakeServer, file: bytes) -> None:
    """Open the page, and choose a picture to start from."""
    open_page(page, server)
    choose(page, file)
    expect(page.locator("#source-chosen")).to_be_visible()


def paint(page: Page, *points: tuple[float, float]) -> None:
    """Paint a stroke over the open painter's picture, through points in parts of its width and height."""
    box = page.locator("#painter-sheet").bounding_box()
    assert box is not None
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()
