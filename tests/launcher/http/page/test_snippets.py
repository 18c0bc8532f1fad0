"""The requests that the page copies: run as they are, they ask for what the page would have asked for."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.launcher.http.page.fake_server import FakeServer, Refusal
from tests.launcher.http.page.page_use import copied, generate, open_page, pictures, run

# a prompt that would break out of quotes, be expanded, end a line, or hide what it says
PROMPT = (
    "it's \"red\" $HOME $(id) `id` \\ \\\\n \\' %d %s {seed} !x\n\t\x07 \u200d\u202e\u2028 \U0001f469\U000e0041 é 日"
)
STREAMING = ("stream", "progress", "preview_every")
SHELLS = [name for name in ("sh", "zsh", "fish") if shutil.which(name)]


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("python3")), reason="no curl or python3 in PATH")
def test_a_picture_s_request_is_copied_for_shells_and_python(page: Page, server: FakeServer, tmp_path: Path) -> None:
    server.loras = [{"name": "Ink 'wash' \\", "strength": 0.8}]
    open_page(page, server)
    page.locator(".lora-choice input").check()
    page.locator(".lora-strength").fill("-1.25")
    page.get_by_text("More", exact=True).click()
    page.locator("#output_format").select_option("webp")
    generate(page, PROMPT, seed="9007199254740990", n="2", steps="3", guidance="1.5", negative_prompt="don't\\")
    expect(pictures(page)).to_have_count(2)
    wanted = {name: value for name, value in server.requests.pop().items() if name not in STREAMING}
    form = page.locator("#form-copies")
    of_form = [copied(page, form.get_by_role("button", name=f"Copy as {kind}")) for kind in ("curl", "Python")]
    page.locator(".picture-open").first.click()
    box = page.get_by_role("dialog", name="Picture")
    of_picture = [copied(page, box.get_by_role("button", name=f"Copy as {kind}")) for kind in ("curl", "Python")]
    with page.expect_download() as downloading:
        box.get_by_role("link", name="Download").click()
    picture = downloading.value.path().read_bytes()
    name = downloading.value.suggested_filename

    for curl, python, asked, seed in (
        (*of_form, wanted, "9007199254740990"),
        (*of_picture, {**wanted, "n": None, "seed": 9007199254740991}, "9007199254740991"),
    ):
        assert all(text.isprintable() for text in (curl + python).splitlines())
        assert "\\\\" not in curl  # which fish takes for one backslash
        for number, command in enumerate([*([shell, "-c", curl] for shell in SHELLS), [sys.executable, "-c", python]]):
            folder = tmp_path / f"{seed}-{number}"
            folder.mkdir()
            ended = run(command, folder)
            assert (ended.returncode, ended.stderr) == (0, "")
            request = server.requests.pop()
            assert request == {name: value for name, value in asked.items() if value is not None}
            files = sorted(path.name for path in folder.iterdir())
            assert ended.stdout.split() == files
            assert name in files
            assert (folder / name).read_bytes() == picture


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("python3")), reason="no curl or python3 in PATH")
def test_a_copied_request_names_no_key_and_says_why_it_failed(page: Page, server: FakeServer, tmp_path: Path) -> None:
    page.clock.install(time=0)
    server.api_key = "secret"
    page.goto(server.url)
    page.get_by_label("API key", exact=True).fill("secret")
    page.keyboard.press("Enter")
    expect(page.locator("#model")).to_contain_text("demo")
    page.clock.pause_at(3600)
    page.get_by_text("More", exact=True).click()
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.locator("#prompt-error")).to_have_text("Say what to draw.")
    page.get_by_label("Prompt", exact=True).fill("a ring")
    button = page.get_by_role("button", name="Copy as curl")
    curl = copied(page, button)
    expect(page.locator("#form-copies").get_by_text("Copied")).to_have_count(1)
    page.clock.run_for(3000)
    expect(button).to_have_count(1)
    python = copied(page, page.get_by_role("button", name="Copy as Python"))
    for command in (["sh", "-c", curl], [sys.executable, "-c", python]):
        assert "secret" not in command[-1]
        ended = run(command, tmp_path, KREA2_API_KEY="secret")
        assert (ended.returncode, ended.stdout) == (0, "a-ring-1234.png\n")
        server.refusals = [Refusal(400, "steps must be between 1 and 200, got 5000", "steps")]
        ended = run(command, tmp_path, KREA2_API_KEY="secret")
        assert (ended.returncode, ended.stderr) == (1, "steps must be between 1 and 200, got 5000\n")

    page.evaluate("""() => {
      Object.defineProperty(navigator, "clipboard", { value: undefined });
      document.addEventListener("copy", () => { window.copied = document.activeElement.value });
      window.copied = null;
    }""")
    button.click()
    assert page.wait_for_function("() => window.copied").json_value() == curl  # where the browser gives no clipboard
    expect(page.locator("#form-copies [data-copy=curl]")).to_be_focused()
