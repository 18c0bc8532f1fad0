"""Draw the page's sample pictures anew: `python -m tests.launcher.http.page.samples` writes samples.webp."""

from __future__ import annotations

import io
import re

from PIL import Image

from krea2 import launch
from tests.launcher.http.page.fake_server import PAGE

FILE = PAGE / "samples.webp"
SAMPLE = re.compile(r'^  \["(.+)", (\d+)\],$', re.MULTILINE)


def read_samples() -> list[tuple[str, int]]:
    """The prompt and the seed of each sample, from left to right."""
    script = (PAGE / "scripts" / "form" / "samples.js").read_text()
    return [(prompt, int(seed)) for prompt, seed in SAMPLE.findall(script)]


def main() -> None:
    samples = read_samples()
    with launch("demo", device="cpu") as client:
        files = [client.generate(prompt, seed=seed).files[0] for prompt, seed in samples]
    pictures = [Image.open(io.BytesIO(file)) for file in files]
    side = pictures[0].width
    sheet = Image.new("RGB", (side * len(pictures), side))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (side * i, 0))
    sheet.save(FILE, quality=85, method=6)
    print(FILE)


if __name__ == "__main__":
    main()
