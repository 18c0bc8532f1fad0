"""A picture to start from: how it comes into the form, what is refused, and what is sent."""

from __future__ import annotations

import base64
import re
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.launcher.http.page.fake_server import SETTINGS, FakeServer, Refusal
from tests.launcher.http.page.page_use import PROMPT, generate, open_page, pictures
from tests.launcher.http.page.source.forms import turned
from tests.launcher.http.page.source.source_use import NAME, choose, start, write_picture

ARRIVE = """([kind, file, name, target]) => {
  const bytes = Uint8Array.from(atob(file), (c) => c.charCodeAt(0));
  const clipboardData = new DataTransfer();
  for (const each of name.split(" ")) clipboardData.items.add(new File([bytes], each, { type: "image/png" }));
  const options = { bubbles: true, cancelable: true, clipboardData, dataTransfer: clipboardData };
  const Kind = kind === "paste" ? ClipboardEvent : DragEvent;
  const event = new Kind(kind, options);
  document.querySelector(target).dispatchEvent(event);
  return event.defaultPrevented;
}"""


def arrive(page: Page, kind: str, file: bytes, name: str, target: str = "main") -> bool:
    """Drop or paste a file, or one of each name. Whether the page takes it, so that the browser does not open it."""
    return page.evaluate(ARRIVE, [kind, base64.b64encode(file).decode(), name, target])


def test_a_picture_is_chosen_dropped_or_pasted_and_sent_as_it_is(
    page: Page, server: FakeServer, tmp_path: Path
) -> None:
    server.loras = [{"name": "oil", "strength": 1.0}]
    jpeg, webp, png = write_picture(160, 96, orientation=6), write_picture(64, 80, "webp"), write_picture(96, 96, "png")
    (tmp_path / NAME).write_bytes(jpeg)
    open_page(page, server)
    page.locator("#image").set_input_files(tmp_path / NAME)
    facts, sizes = page.locator("#source-facts"), page.locator("#size-note")
    expect(facts).to_have_text(re.compile(rf"^{NAME} · 96\s×\s160 · \d\skB$"))
    expect(page.get_by_role("radio", name="Picture")).to_be_checked()
    expect(sizes).to_have_text("As the picture: 96 × 160 pixels")
    (tmp_path / NAME).write_bytes(png)  # which is none of the page's business
    page.get_by_label("oil", exact=True).check()
    generate(page, PROMPT, seed="7")
    expect(pictures(page)).to_have_count(1)
    expect(page.locator(".picture-settings")).to_have_text(re.compile(rf"^96\s×\s160 .* from {NAME} · strength 0.6$"))
    (sent,) = server.requests
    assert sent == {
        "image": jpeg, "prompt": PROMPT, "output_format": "png", "n": 1, "seed": 7, "steps": 4, "guidance": 0,
        "strength": 0.6, "loras": [{"name": "oil", "strength": 1}], "stream": True, "progress": True,
        "preview_every": 1,
    }  # fmt: skip

    assert arrive(page, "dragover", webp, "b.webp")
    expect(page.locator("#source")).to_have_class(re.compile("awaits"))
    assert arrive(page, "drop", webp, "b.webp")
    expect(page.locator("#source")).not_to_have_class(re.compile("awaits"))
    expect(facts).to_contain_text("b.webp · 64")
    assert arrive(page, "paste", png, "image.png", "#prompt")
    expect(facts).to_contain_text("image.png · 96")
    expect(page.locator("#image-error")).to_be_hidden()
    assert arrive(page, "drop", png, "c.png d.png")
    expect(page.locator("#image-error")).to_have_text("The first of 2 was taken: one picture is drawn over.")
    expect(facts).to_contain_text("c.png · 96")
    page.get_by_label("1:1").check()
    page.get_by_role("button", name="Generate").click()
    expect(pictures(page)).to_have_count(2)
    assert (server.requests[1]["image"], server.requests[1]["width"]) == (png, 128)
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(page.locator("#image")).to_be_focused()
    expect(page.locator("#strength")).to_be_hidden()
    page.get_by_role("button", name="Generate").click()
    expect(pictures(page)).to_have_count(3)
    assert not {"image", "strength"} & server.requests[2].keys()


def test_what_is_no_picture_or_too_large_is_refused_at_once(page: Page, server: FakeServer) -> None:
    limits = {"max_image_bytes": 5000, "max_image_pixels": 8000}
    server.settings = {"limits": {**SETTINGS["limits"], **limits}}
    open_page(page, server)
    error = page.locator("#image-error")
    choose(page, b"GIF89a" + bytes(20), "fox.gif")
    expect(error).to_have_text("fox.gif is none of PNG, JPEG and WebP.")
    choose(page, write_picture(96, 96)[:200], "cut.jpg")
    expect(error).to_have_text("cut.jpg cannot be read: the file is damaged, or has been cut off.")
    expect(page.locator("#image")).to_be_focused()
    choose(page, bytes(6001), "large.png")
    expect(error).to_have_text("large.png is too large: it has 7 kB, and may have 5 kB.")
    choose(page, write_picture(96, 96), "many.jpg")
    expect(error).to_have_text("many.jpg is too large: it has 96 × 96 pixels, and may have 0.008 million.")
    choose(page, write_picture(64, 96))
    expect(error).to_be_hidden()
    expect(page.locator("#source-chosen")).to_be_visible()


def test_strength_follows_until_it_is_changed_and_errors_stand_beside_what_they_are_about(
    page: Page, server: FakeServer
) -> None:
    start(page, server, write_picture(128, 96))
    strength, note = page.get_by_label("Strength", exact=True), page.locator("#strength-note")
    expect(note).to_have_text("Much is drawn anew, shapes and places stay. 3 of 4 steps are run.")
    page.get_by_text("Extend the picture").click()
    page.get_by_label("Left", exact=True).fill("64")
    page.get_by_label("Bottom", exact=True).fill("32")
    expect(page.locator("#outpaint-note")).to_have_text("Becomes 192 × 128 pixels.")
    expect(strength).to_have_value("1")
    expect(note).to_contain_text("What is added is drawn anew")
    frame, sheet = (page.locator(f"#source-{name}").bounding_box() for name in ("frame", "sheet"))
    assert frame
    assert sheet
    assert abs((sheet["x"] - frame["x"]) / frame["width"] - 64 / 192) < 0.01
    assert abs(sheet["height"] / frame["height"] - 96 / 128) < 0.01
    page.get_by_text("Extend the picture").click()  # so that it is closed
    refused = ("outpaint", "image", "strength", "mask_feather", "mask")
    server.refusals = [
        Refusal(400, f"{name} is not right", "outpaint.left" if name == "outpaint" else name) for name in refused
    ]
    page.get_by_text("More", exact=True).click()
    page.locator("#mask_feather").fill("12")
    generate(page)
    for name in refused:
        expect(page.locator(f"#{name}-error")).to_have_text(f"{name} is not right")
        expect(page.locator(f"#{name}")).to_be_focused()
        page.get_by_role("button", name="Generate").click()
        expect(page.locator(f"#{name}-error")).to_be_hidden()
    expect(pictures(page)).to_have_count(1)
    expect(pictures(page)).to_contain_text("strength 1 · left +64 · bottom +32")
    sent = server.requests[-1]
    assert sent["outpaint"] == {"left": 64, "top": 0, "right": 0, "bottom": 32}
    assert (sent["strength"], sent["mask_feather"]) == (1, 12)
    strength.fill("0.1")
    expect(page.locator("#more")).to_have_class("changed")
    page.get_by_label("Left", exact=True).fill("")
    page.get_by_label("Bottom", exact=True).fill("")
    expect(strength).to_have_value("0.1")
    expect(note).to_have_text("Little changes: tones and fine details. 1 of 4 steps is run.")
    strength.fill("0.8")
    expect(note).to_have_text("Nothing of the picture is kept. 4 of 4 steps are run.")
    page.get_by_label("Steps from a picture").select_option("full")
    expect(note).to_have_text("Only the shape of the idea is kept. 4 of 4 steps are run.")
    strength.fill("0.1")
    expect(note).to_have_text("Little changes: tones and fine details. 4 of 4 steps are run.")
    page.get_by_role("button", name="Generate").click()
    expect(pictures(page)).to_have_count(2)
    sent = server.requests[-1]
    assert (sent["strength"], sent["strength_steps"]) == (0.1, "full")
    assert not {"outpaint", "mask_feather"} & sent.keys()
    page.get_by_role("button", name="Reset all settings").click()
    expect(strength).to_have_value("0.6")
    expect(page.locator("#source-chosen")).to_be_visible()


def test_a_server_without_image_input_says_so(page: Page, server: FakeServer) -> None:
    server.settings = {"image_input": False}
    open_page(page, server)
    expect(page.locator("#source-off")).to_contain_text("started without image input")
    expect(page.locator("#source-drop")).to_be_hidden()
    arrive(page, "drop", write_picture(96, 96), "fox.jpg")
    expect(page.locator("#image-error")).to_have_text("This server takes no pictures.")
    generate(page)
    expect(pictures(page)).to_have_count(1)
    expect(page.get_by_role("button", name="Start from this picture")).to_be_hidden()


def test_a_result_is_started_from_again(page: Page, server: FakeServer) -> None:
    open_page(page, server)
    generate(page, seed="7")
    expect(pictures(page)).to_have_count(1)
    page.get_by_label("Prompt", exact=True).fill("")
    page.get_by_role("button", name="Start from this picture").click()
    expect(page.locator("#source-facts")).to_contain_text("a-red-circle-on-a-blue-background-7.png · 128")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(PROMPT)
    server.held = True
    page.get_by_role("button", name="Generate").click()
    expect(page.locator(".job-status")).to_contain_text("In the queue behind 2 pictures")
    server.release(1)
    expect(page.locator(".tile[data-state=preview] img")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    server.held = False
    page.get_by_role("button", name="Try again").click()
    expect(pictures(page)).to_have_count(2)
    assert turned(server.requests[-1]["image"]).size == (128, 128)
    assert len(server.requests) == 3
