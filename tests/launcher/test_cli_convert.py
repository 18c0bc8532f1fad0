"""`krea2 convert`, as users run it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from tests.launcher.processes import PATIENCE_S, Marked

PROMPT = "a red circle on a blue background"


def krea2(marked: Marked, *arguments: str) -> tuple[int, str, str]:
    process = marked.start_krea2(*arguments)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    return process.returncode, stdout, stderr


def test_the_demo_in_8_bits_draws_the_same_picture(marked: Marked, tmp_path: Path) -> None:
    file, picture, expected = (str(tmp_path / name) for name in ("demo.safetensors", "fp8.png", "demo.png"))
    assert krea2(marked, "convert", file, "--layout", "native", "--weights", "fp8") == (0, f"{file}\n", "")
    parts = ("--model", "demo", "--transformer", file)
    draw = ("generate", PROMPT, "--device", "cpu", "--seed", "0", "--output")
    assert krea2(marked, *draw, expected)[0] == 0
    assert krea2(marked, *draw, picture, *parts)[:2] == (0, f"{picture}\n")
    difference = ImageChops.difference(Image.open(picture), Image.open(expected)).convert("L")
    mean = ImageStat.Stat(difference).mean[0]
    assert 0 < mean < 2  # of 255 levels

    code, stdout, _ = krea2(marked, "info", *parts[1:])
    assert code == 0
    assert "F8_E4M3" in stdout or "float8_e4m3fn" in stdout
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    marked.expect_nothing_left()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layout", "onnx"], "layout must be one of diffusers, native, gguf, sharded, got 'onnx'"),
        (["--component", "clip"], "component must be one of transformer, text_encoder, vae, got 'clip'"),
        (["--weights", "fp8"], "weights must be one of keep, bfloat16, float32 for the layout diffusers, got 'fp8'"),
        (["--tp", "3"], "tp must be one of 1, 2, 4, got 3"),
        (["--model", "nowhere/at/all"], "nowhere/at/all: there is no such folder or file"),
    ],
)
def test_what_cannot_be_converted_is_one_line(
    marked: Marked, tmp_path: Path, arguments: list[str], message: str
) -> None:
    code, stdout, stderr = krea2(marked, "convert", str(tmp_path / "out"), *arguments)
    assert (code, stdout, stderr) == (2, "", f"error: {message}\n")
    assert not os.listdir(tmp_path)
