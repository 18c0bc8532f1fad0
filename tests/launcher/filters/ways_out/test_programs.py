"""Engines without a server, of `krea2.launch` and `krea2 generate`: what their filters block gets to no program and no
file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engine.errors import ModerationBlockedError
from launcher import launch
from launcher.client.results import ImageFile, PreviewFile
from tests.launcher.filters.ways_out.checked import check_all_that_left
from tests.launcher.filters.ways_out.planted import FORBIDDEN, PLANTED, WORD
from tests.launcher.filters.ways_out.search import Found, pictures_in
from tests.launcher.processes import Marked

GROUNDS = ("blue", "red", "green")
PROMPTS = [f"a white {shape} on a {ground} background" for shape in ("circle", "star") for ground in GROUNDS]


@pytest.mark.slow
def test_a_program_gets_no_picture_that_is_blocked(tmp_path: Path) -> None:
    found, received = [], []
    with launch(device="cpu", progress=False, filters=[WORD, f"{PLANTED},seen={tmp_path}"]) as client:
        for prompt in PROMPTS:
            try:
                for event in client.stream(prompt, steps=4, width=96, height=96, preview_every=1):
                    if isinstance(event, PreviewFile | ImageFile):
                        found.append(Found(np.asarray(event.image), lossless=isinstance(event, ImageFile)))
                    if isinstance(event, ImageFile):
                        received.append(event.file)
                assert "red" not in prompt
            except ModerationBlockedError as error:
                assert error.category == "red"  # noqa: PT017
                assert "red" in prompt
        with pytest.raises(ModerationBlockedError, match="the prompt was blocked"):
            client.generate(f"a {FORBIDDEN} circle", steps=4)
    shown = check_all_that_left(found, tmp_path, received)
    assert (len(received), shown["image"], shown["image!"]) == (4, 4, 2)


@pytest.mark.slow
def test_no_file_has_a_picture_that_is_blocked(marked: Marked, tmp_path: Path) -> None:
    seen, written = tmp_path / "seen", tmp_path / "written"
    seen.mkdir()
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in [*PROMPTS, f"a {FORBIDDEN} circle"])
    )
    code, _, stderr = marked.run_krea2(
        "generate", "--prompts", str(tmp_path / "prompts.jsonl"), "--device", "cpu", "--steps", "4", "--size", "96",
        "--filter", WORD, "--filter", f"{PLANTED},seen={seen}", "-o", f"{written}/{{index}}.png",
    )  # fmt: skip
    assert code != 0
    assert "was blocked" in stderr
    assert FORBIDDEN not in stderr.partition("was blocked")[2].partition("\n")[0]
    files = [file.read_bytes() for file in tmp_path.glob("written/*")]
    shown = check_all_that_left([each for file in files for each in pictures_in(file)], seen, files)
    assert (len(files), shown["image"], shown["image!"]) == (4, 4, 2)
    marked.expect_nothing_left()
