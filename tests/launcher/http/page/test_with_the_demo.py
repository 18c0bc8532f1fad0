"""The page on the real server, with the demo checkpoint."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from PIL import Image, ImageChops, ImageStat
from playwright.sync_api import Page, expect

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.model_config import ModelConfig
from tests.launcher.demo_server import serve_demo
from tests.launcher.http.page.fake_server import PAGE
from tests.launcher.http.page.page_use import copied, run
from tests.launcher.http.page.samples import read_samples
from tests.launcher.http.page.source.source_use import paint


def test_the_demo_draws_shows_previews_and_can_be_cancelled(page: Page, tmp_path: Path) -> None:
    domain = ModelConfig.from_folder(DEMO_CHECKPOINT).prompt_domain
    assert domain is not None
    with serve_demo() as server:
        page.goto(server.http)
        expect(page.locator("#model")).to_have_text("demo")
        expect(page.locator("#device")).to_have_text("on cpu")
        page.locator(".sample").first.click()
        expect(page.locator(".picture")).to_have_count(1)
        with page.expect_download() as downloading:
            page.get_by_role("link", name="Download").click()
        with Image.open(downloading.value.path()) as image, Image.open(PAGE / "samples.webp") as samples:
            made = json.loads(image.info["krea2"])
            assert (made["prompt"], made["seed"]) == read_samples()[0]
            shown = samples.crop((0, 0, 128, 128))
            difference = ImageStat.Stat(ImageChops.difference(image.convert("RGB"), shown.convert("RGB"))).mean
            assert max(difference) < 6, difference  # a circle in another place is 15 or more, what WebP leaves out is 2
        page.locator(".picture-open").click()
        lightbox = page.get_by_role("dialog", name="Picture")
        curl, python = (copied(page, lightbox.get_by_role("button", name=f"as {kind}")) for kind in ("curl", "Python"))
        page.keyboard.press("Escape")
        commands = [[sys.executable, "-c", python]]
        if shutil.which("curl") and shutil.which("python3"):
            commands.append(["sh", "-c", curl])
        for command in commands:  # the same seed and settings give the same file, byte for byte
            assert run(command, tmp_path).stdout == f"{downloading.value.suggested_filename}\n"
            drawn = tmp_path / downloading.value.suggested_filename
            assert drawn.read_bytes() == downloading.value.path().read_bytes()
            drawn.unlink()

        page.get_by_role("button", name="Start from this picture").click()
        page.locator("#mask").click()
        page.locator("#painter-size").fill("40")
        paint(page, (0.75, 0.2), (0.75, 0.8))
        page.locator("#painter-done").click()
        page.get_by_role("button", name="Generate").click()
        expect(page.locator(".picture")).to_have_count(2)
        with page.expect_download() as edited:
            page.get_by_role("link", name="Download").first.click()
        with Image.open(downloading.value.path()) as before, Image.open(edited.value.path()) as after:
            difference = ImageChops.difference(before.convert("RGB"), after.convert("RGB"))
            left, _, right, _ = difference.getbbox()  # the brush covered from 70 to 122, and 8 pixels run into it
            assert 62 <= left < right > 96
        page.get_by_role("button", name="Remove", exact=True).click()

        page.get_by_text("More", exact=True).click()
        page.locator("#steps").fill("200")
        page.get_by_label("Custom").check()
        for side in ("#width", "#height"):
            page.locator(side).fill("512")  # which takes long enough for the browser to see it drawn, and to cancel it
        page.get_by_role("button", name="Generate").click()
        expect(page.locator(".tile[data-state=preview] img")).to_be_visible()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Dismiss").click()
        page.get_by_label("1:1").check()
        page.locator("#steps").fill("0")
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("#steps-error")).to_have_text("steps must be between 1 and 200, got 0")
        page.locator("#steps").fill("2")
        page.get_by_role("button", name="Generate").click()
        expect(page.locator(".picture")).to_have_count(3)

        page.get_by_label("Prompt", exact=True).fill("a fox in the snow")
        page.get_by_role("button", name="Generate").click()
        told = page.locator(".job-told")
        expect(told.locator("summary")).to_have_text('The model does not know "fox", "in", "snow".')
        expect(told.locator("p")).to_have_text(domain.note)
        expect(told.locator("p")).to_be_hidden()
        page.get_by_role("button", name="Dismiss").click()
        expect(page.locator(".picture")).to_have_count(4)
