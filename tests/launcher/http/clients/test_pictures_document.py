"""docs/pictures.md is tried from its first line to its last, with the demo, and what it draws is what it says."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import krea2
from bench.engines.real_size import KREA2
from demo.captions import parse
from demo.judge import look, verdict
from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.model_config import ModelConfig
from engine.model.vae_encoder import VAEEncoder
from engine.pictures.strength import steps_of
from engine.planning.step_memory import picture_encode_bytes
from engine.rank.sampling import DISTILLED_MU, make_sigmas
from launcher.cli.main import commands
from launcher.cli.prompts import collect
from launcher.requests.image_metadata import read_made
from tests.docs.documents import ROOT
from tests.launcher.demo_server import Server
from tests.launcher.processes import PATIENCE_S, Marked, connect

DOCUMENT = (ROOT / "docs" / "pictures.md").read_text()
ADDRESS = "http://127.0.0.1:30000"
COMMANDS = [
    line.strip() for line in re.findall(r"^    (?:krea2|python) .*$", DOCUMENT.replace("\\\n", " "), re.MULTILINE)
]
FEATHER, MASKED = 8, (8, 40, 56, 88)
KEPT = ("heart.png", "diamond.png")  # of which all but what is masked is as it was
OF_ITS_PART = "diamond.png"  # whose prompt speaks of the masked part alone


def shown(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


def write_lines(folder: Path) -> None:
    lines = re.findall(r"^    (\{.*\})$", DOCUMENT, re.MULTILINE)
    assert len(lines) == 2
    (folder / "edits.jsonl").write_text("\n".join(lines))


def draw_by_command(client: krea2.Client, command: str) -> None:
    """Do what `krea2 generate` does, in an engine that runs already."""
    given = commands.commands["generate"].make_context("generate", shlex.split(command)[2:]).params
    names = ("image", "mask", "strength", "outpaint", "mask_crop", "seed")
    shared = {name: given[name] for name in names if given[name] is not None}
    for index, asked in enumerate(collect(given["prompts"], (), given["prompts_file"])):
        own = {**asked.parameters, **asked.pictures}
        client.generate(asked.prompt, **{**shared, **own}).save(given["output"].replace("{index}", str(index)))


def check_drawn() -> None:
    """What there is in this folder: the picture that each name stands for, wherever it was drawn."""
    source = Image.open("shapes.png").convert("RGB")
    prompts = {}
    for path in (Path(name) for name in sorted(os.listdir()) if name.endswith(".png") and name != "mask.png"):
        with Image.open(path) as image:
            made, picture = read_made(image), image.convert("RGB")
        assert made is not None
        prompts[path.name] = made["prompt"]
        prompt, seen = parse(made["prompt"]), look(picture, clean=False)
        assert prompt is not None
        kinds = {(item.colour, item.shape) for item in seen.objects}
        if path.name == OF_ITS_PART:
            assert kinds == {("yellow", "diamond"), ("green", "star")}
        else:
            assert all(verdict(prompt, seen).values()), (path, seen)
        if path.name in KEPT:
            different = (np.asarray(picture) != np.asarray(source)).any(axis=2)
            left, top, right, bottom = MASKED
            assert different[top:bottom, left:right].any()
            different[top - FEATHER : bottom + FEATHER, left - FEATHER : right + FEATHER] = False
            assert not different.any()
        if path.name == "tall.png":
            assert (picture.size, picture.crop((0, 40, 128, 152)).tobytes()) == (
                (128, 192),
                source.crop((0, 8, 128, 120)).tobytes(),
            )
    assert {*KEPT, "blue.png", "tall.png", "shapes.png"} == {*prompts}


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="curl or jq is not installed")
def test_it_is_true_from_the_first_line_to_the_last(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path)

    @contextmanager
    def launch(model: str) -> Iterator[krea2.Client]:
        with connect(server.rpc) as client:
            yield client

    def remove_drawn() -> None:
        for name in before:
            Path(name).unlink(missing_ok=True)

    with connect(server.rpc) as client:
        for command in COMMANDS:
            if command.startswith("python"):
                subprocess.run([sys.executable, *shlex.split(command)[1:]], timeout=PATIENCE_S, check=True)
            elif command.startswith("krea2 generate"):
                draw_by_command(client, command)
    check_drawn()
    before = {name: Path(name).read_bytes() for name in ("heart.png", "blue.png", "tall.png")}
    assert [Path(f"edited/{index}.png").read_bytes() for index in range(2)] == [*before.values()][:2]

    def is_as_before(*names: str) -> bool:
        """Pixels; the files of some doors say less of what made them."""
        return all(pixels(Path(name).read_bytes()) == pixels(before[name]) for name in names)

    program, openai_program = shown("python")
    remove_drawn()
    monkeypatch.setattr("launcher.setup.launch.launch", launch)
    exec(compile(program, "docs/pictures.md", "exec"), {})
    assert is_as_before("heart.png", "tall.png")
    remove_drawn()
    (lines,) = shown("sh")
    subprocess.run(["bash", "-ec", lines.replace(ADDRESS, server.http)], timeout=PATIENCE_S, check=True)
    assert is_as_before("heart.png", "blue.png")
    printed = "\nimport base64, sys\nsys.stdout.buffer.write(base64.b64decode(image.data[0].b64_json))"
    script = openai_program.replace(ADDRESS, server.http) + printed
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=PATIENCE_S, check=True)
    assert pixels(ended.stdout) == pixels(before["heart.png"])


@pytest.mark.slow  # the test above draws the same in an engine that runs already
@pytest.mark.timeout(900)
def test_its_commands_run_as_they_stand(marked: Marked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path)
    for command in COMMANDS:
        words = shlex.split(command)
        if words[0] == "python":
            subprocess.run([sys.executable, *words[1:]], timeout=PATIENCE_S, check=True)
        else:
            code, stdout, stderr = marked.run_krea2(*words[1:], *(["--device", "cpu"] if "generate" in words else []))
            assert code == 0, stderr
            assert words[1] != "info" or re.search(r"^  strength +1$", stdout, re.MULTILINE)
    check_drawn()


def test_its_table_of_strengths_is_what_is_run() -> None:
    rows = re.findall(r"^\| ([\d.]+) \| (\d) \| (\d\.\d+) \| (\d) \| (\d\.\d+) \|$", DOCUMENT, re.MULTILINE)
    assert [float(row[0]) for row in rows] == [tenths / 10 for tenths in range(10, 0, -1)]
    steps = ModelConfig.from_folder(DEMO_CHECKPOINT).default_steps
    for strength, *cells in rows:
        expected: list[Any] = []
        for rule in ("partial", "full"):
            run, skipped = steps_of(steps, float(strength), rule)
            expected += [str(run), f"{float(make_sigmas(run + skipped, DISTILLED_MU)[skipped]):.3f}"]
        assert cells == expected


def test_what_the_encoder_is_said_to_take_is_what_is_reckoned() -> None:
    told = " ".join((ROOT / "docs" / "small-gpus.md").read_text().split())
    with torch.device("meta"):
        weights = 2 * sum(parameter.numel() for parameter in VAEEncoder(KREA2.vae).parameters())
    square, in_float32, largest = (
        picture_encode_bytes(KREA2, side, side, size) / 1e9 for side, size in ((1024, 2), (1024, 4), (2896, 2))
    )
    assert f"{weights / 1e9:.2f} GB of weights in bfloat16" in told
    assert f"{square:.1f} GB for 1024² in bfloat16 and {in_float32:.1f} GB in float32, {largest:.1f} GB for 8.4" in told


def pixels(file: bytes) -> bytes:
    with Image.open(io.BytesIO(file)) as image:
        return image.convert("RGB").tobytes()
