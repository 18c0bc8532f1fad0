"""A picture that started from another: compared with it, made again, and copied as a request."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.launcher.http.page.fake_server import FakeServer
from tests.launcher.http.page.page_use import PROMPT, copied, generate, pictures, reload, run
from tests.launcher.http.page.source.source_use import NAME, paint, start, write_picture

SHELLS = [name for name in ("sh", "zsh", "fish") if shutil.which(name)]
STREAMING = ("stream", "progress", "preview_every")
# what quotes, escapes, forms and terminals take for something else
HOSTILE = 'it\'s "red" $HOME $(id) `id` \\ \\\\n %d !x\n@file;type=x <y é 日'
HIDDEN = f"{HOSTILE}\t\x07 \u202e\U000e0041"
PIXEL = """([id, x, y]) => {
  const image = document.getElementById(id);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  return [...pen.getImageData(x, y, 1, 1).data].map((value) => (value > 127 ? 1 : 0));
}"""


def extend(page: Page, left: str) -> None:
    page.get_by_text("Extend the picture").click()
    page.get_by_label("Left", exact=True).fill(left)


def paint_mask(page: Page) -> None:
    page.locator("#mask").click()
    paint(page, (0.5, 0.5), (0.6, 0.5))
    page.locator("#painter-done").click()


def test_before_and_after_lie_over_each_other(page: Page, server: FakeServer) -> None:
    start(page, server, write_picture(160, 96))
    extend(page, "96")
    generate(page, PROMPT.replace("red", "green"))
    expect(pictures(page)).to_have_count(1)
    page.locator(".picture-open").click()
    before = page.get_by_role("button", name="Before and after")
    before.click()
    dialog = page.get_by_role("dialog", name="Two pictures compared")
    expect(dialog.get_by_text(f"Left: before, {NAME}. Right: after.")).to_be_visible()
    slider = dialog.get_by_role("slider")
    expect(slider).to_be_focused()
    page.keyboard.press("ArrowLeft")
    cut = "() => getComputedStyle(document.getElementById('compare-above')).clipPath"
    assert page.evaluate(cut) == "inset(0px 0px 0px 49%)"
    page.wait_for_function("() => document.getElementById('compare-below').complete")
    assert page.evaluate("() => document.getElementById('compare-below').naturalWidth") == 256
    colours = [page.evaluate(PIXEL, ["compare-below", x, 48]) for x in (90, 102, 170, 182)]
    assert colours == [[0, 0, 0, 0], [1, 0, 0, 1], [1, 0, 0, 1], [0, 0, 1, 1]]  # nothing, red, red, blue
    page.keyboard.press("Escape")
    expect(before).to_be_focused()
    page.keyboard.press("Escape")
    generate(page)
    expect(pictures(page)).to_have_count(2)


def test_settings_come_back_with_picture_and_mask_while_the_page_has_them(page: Page, server: FakeServer) -> None:
    start(page, server, write_picture(160, 96))
    paint_mask(page)
    extend(page, "96")
    page.get_by_text("More", exact=True).click()
    page.locator("#mask_crop").fill("32")
    page.get_by_label("Strength", exact=True).fill("0.8")
    generate(page, seed="7")
    expect(pictures(page)).to_have_count(1)
    expect(page.locator(".job")).to_have_count(0)
    page.get_by_role("button", name="Remove", exact=True).click()
    page.get_by_role("button", name="Use again").click()
    expect(page.locator("#source-mask")).to_be_visible()
    page.get_by_role("button", name="Generate").click()
    expect(pictures(page)).to_have_count(2)
    first, again = server.requests
    assert again == first
    assert (first["mask_crop"], first["strength"], "width" in first) == (32, 0.8, False)
    pictures(page).first.get_by_role("button", name="Vary").click()
    expect(pictures(page)).to_have_count(3)
    assert server.requests[2] == first | {"seed": server.requests[2]["seed"]}

    reload(page)
    expect(pictures(page).first).to_contain_text(f"from {NAME} · strength 0.8 · mask · left +96")
    for name in ("Use again", "Vary"):
        pictures(page).last.get_by_role("button", name=name).click()
        expect(page.locator("#image-error")).to_have_text(
            f"Choose {NAME} again: this page has it no more, nor its mask."
        )
    page.locator(".picture-open").first.click()
    expect(page.get_by_role("button", name="Before and after")).to_be_hidden()
    assert len(server.requests) == 3


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("python3")), reason="no curl or python3 in PATH")
def test_a_request_with_a_picture_is_copied_for_shells_and_python(
    page: Page, server: FakeServer, tmp_path: Path
) -> None:
    server.loras = [{"name": "Ink 'wash' \\", "strength": 0.8}]
    file = write_picture(160, 96)
    start(page, server, file)
    page.locator(".lora-choice input").check()
    paint_mask(page)
    extend(page, "96")
    generate(page, HOSTILE, seed="7", n="2")
    expect(pictures(page)).to_have_count(2)
    wanted = {name: value for name, value in server.requests.pop().items() if name not in STREAMING}
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Prompt", exact=True).fill(HIDDEN)
    form = page.locator("#form-copies")
    of_form = [copied(page, form.get_by_role("button", name=f"Copy as {kind}")) for kind in ("curl", "Python")]
    page.locator(".picture-open").first.click()
    box = page.get_by_role("dialog", name="Picture", exact=True)
    of_picture = [copied(page, box.get_by_role("button", name=f"Copy as {kind}")) for kind in ("curl", "Python")]
    with page.expect_download() as downloading:
        box.get_by_role("link", name="Download mask").click()
    assert downloading.value.suggested_filename == "a fox-mask.png"
    (tmp_path / NAME).write_bytes(file)
    shutil.copy(downloading.value.path(), tmp_path / "a fox-mask.png")
    assert (tmp_path / "a fox-mask.png").read_bytes() == wanted["mask"]
    for (curl, python), asked in (
        (of_form, {**wanted, "prompt": HIDDEN}),
        (of_picture, {**wanted, "seed": 8, "n": None}),
    ):
        assert all(text.isprintable() for text in (curl + python).splitlines())
        for command in [*([shell, "-c", curl] for shell in SHELLS), [sys.executable, "-c", python]]:
            ended = run(command, tmp_path)
            assert (ended.returncode, ended.stderr) == (0, ""), command[-1]
            request = server.requests.pop()
            assert request == {name: value for name, value in asked.items() if value is not None}, json.dumps(command)
            assert all((tmp_path / name).is_file() for name in ended.stdout.split())
