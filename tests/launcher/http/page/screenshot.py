"""Take the README's picture of the page: `python -m tests.launcher.http.page.screenshot` writes docs/page.png."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.launcher.demo_server import serve_demo
from tests.launcher.http.page.browser import NAMES, find_chromium, start_chromium
from tests.launcher.processes import PATIENCE_S

FILE = Path(__file__).parents[4] / "docs" / "page.png"
PATIENCE_MS = 1000 * PATIENCE_S
PICTURES = [
    ("two yellow stars on a black background", 2),
    ("a green triangle above an orange square on a cyan background", 2),
    ("three orange circles on a blue background", 2),
    ("a large red heart on a pink background", 2),
]
RUNNING = ("a large white ring on a red background", 2)
RUNNING_STEPS = 200  # enough to be seen


def main() -> None:
    path = find_chromium()
    if path is None:
        sys.exit(f"error: none of {', '.join(NAMES)} is in PATH")
    with serve_demo() as server, start_chromium(path) as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 880})
        page.set_default_timeout(PATIENCE_MS)
        with page.expect_response(lambda answer: answer.url.endswith("/ready") and answer.ok):
            page.goto(server.http)  # and until then it says that the engine is starting
        expect(page.locator("#model")).to_have_text("demo")
        for count, (prompt, seed) in enumerate(PICTURES, 1):
            _generate(page, prompt, seed)
            expect(page.locator(".picture")).to_have_count(count, timeout=PATIENCE_MS)
        page.locator("#steps").evaluate(f"input => input.value = {RUNNING_STEPS}")
        page.get_by_label("Images", exact=True).fill("2")
        _generate(page, *RUNNING)
        halfway = re.compile(rf"Step (1[5-9]\d|2\d\d) of {2 * RUNNING_STEPS}")
        expect(page.locator(".job-status")).to_have_text(halfway, timeout=PATIENCE_MS)
        expect(page.locator(".tile img:visible")).to_have_count(2)
        FILE.parent.mkdir(exist_ok=True)
        page.screenshot(path=FILE)
    print(FILE)


def _generate(page: Page, prompt: str, seed: int) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Seed", exact=True).fill(str(seed))
    page.get_by_role("button", name="Generate").click()


if __name__ == "__main__":
    main()
