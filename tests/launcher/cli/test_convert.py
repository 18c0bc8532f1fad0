"""`krea2 convert`, as users run it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat
from safetensors.torch import load_file, save_file

from engine.config.demo_checkpoints import DEMO_LORAS
from launcher import Client
from tests.damage import FULL, full_disk
from tests.launcher.conftest import Krea2
from tests.launcher.processes import Marked

PROMPT = "a red circle on a blue background"


def test_the_demo_in_8_bits_draws_the_same_picture(
    marked: Marked, krea2: Krea2, client: Client, tmp_path: Path
) -> None:
    file, picture = (str(tmp_path / name) for name in ("demo.safetensors", "fp8.png"))
    assert marked.run_krea2("convert", file, "--layout", "native", "--weights", "fp8") == (0, f"{file}\n", "")
    parts = ("--model", "demo", "--transformer", file)
    draw = ("generate", PROMPT, "--device", "cpu", "--seed", "0", "--output")
    assert marked.run_krea2(*draw, picture, *parts)[:2] == (0, f"{picture}\n")
    expected = client.generate(PROMPT, seed=0).images[0]
    difference = ImageChops.difference(Image.open(picture), expected).convert("L")
    mean = ImageStat.Stat(difference).mean[0]
    assert 0 < mean < 2  # of 255 levels

    code, stdout, _ = krea2("info", *parts[1:])
    assert code == 0
    assert "F8_E4M3" in stdout or "float8_e4m3fn" in stdout
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    marked.expect_nothing_left()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layout", "onnx"], "--layout must be one of diffusers, native, gguf, sharded, got 'onnx'"),
        (["--component", "clip"], "--component must be one of transformer, text_encoder, vae, got 'clip'"),
        (["--weights", "fp8"], "--weights must be one of keep, bfloat16, float32 for the layout diffusers, got 'fp8'"),
        (["--tp", "3"], "--tp must be one of 1, 2, 4, got 3"),
        (["--model", "nowhere/at/all"], "nowhere/at/all: there is no such folder or file"),
        (["--lora", "nowhere.safetensors"], "nowhere.safetensors: No such file or directory"),
        (["--lora", "demo-outlined:11"], "the strength of a LoRA must be between -10 and 10, got 11"),
    ],
)
def test_what_cannot_be_converted_is_one_line(krea2: Krea2, tmp_path: Path, arguments: list[str], message: str) -> None:
    code, stdout, stderr = krea2("convert", str(tmp_path / "out"), *arguments)
    assert (code, stdout, stderr) == (2, "", f"error: {message}\n")
    assert not os.listdir(tmp_path)


def test_loras_become_part_of_what_is_written(
    krea2: Krea2, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    again = tmp_path_factory.mktemp("loras") / "again.safetensors"
    save_file(load_file(DEMO_LORAS["demo-outlined"]), again, {"krea2.steps": "4"})
    file, rounded = (str(tmp_path / f"{name}.safetensors") for name in ("outlined", "rounded"))
    native = ("--layout", "native", "--lora", "demo-outlined:0.5", "--lora", f"{again}:0.5")
    note = f"note: {again}: was made for 4 steps, which the merged checkpoint does not say: each request has to\n"
    assert krea2("convert", file, *native, "--weights", "float32") == (0, f"{file}\n", note)
    assert "; with demo-outlined at 0.5, again at 0.5 merged into it\n" in krea2("info", file)[1]
    code, _, stderr = krea2("convert", str(tmp_path / "vae.safetensors"), *native, "--component", "vae")
    assert (code, stderr) == (2, "error: --lora changes the transformer, and vae is what is written\n")

    assert krea2("convert", rounded, *native[:2], "--weights", "fp8") == (0, f"{rounded}\n", "")
    parts = ("--model", "demo", "--transformer", rounded)
    code, _, stderr = krea2("convert", str(tmp_path / "twice.safetensors"), *native, "--weights", "fp8", *parts)
    assert code == 2
    assert stderr.removeprefix(note).startswith("error: --lora would have to round ")
    assert ", which the checkpoint has as float8_e4m3fn, once more, and lose most of the LoRA: write it " in stderr
    assert sorted(os.listdir(tmp_path)) == ["outlined.safetensors", "rounded.safetensors"]


def test_a_file_s_suffix_does_not_contradict_its_layout(krea2: Krea2, tmp_path: Path) -> None:
    file = str(tmp_path / "text.safetensors")
    code, stdout, stderr = krea2("convert", file)
    assert (code, stdout) == (2, "")
    allowed = "without .safetensors for the layout diffusers; for such a file, add --layout native"
    assert stderr.startswith(f"error: OUTPUT must be {allowed}, got '")
    for layout, suffix in (("native", ".safetensors"), ("gguf", ".gguf")):
        code, _, stderr = krea2("convert", str(tmp_path / "text"), "--layout", layout)
        assert code == 2
        assert stderr.startswith(f"error: OUTPUT must be a file's name that ends in {suffix} for the layout {layout}, ")
    part = ("--layout", "native", "--component", "text-encoder")
    assert krea2("convert", file, *part) == (0, f"{file}\n", "")


def test_what_is_not_what_was_asked_for_is_said_beside_the_path(krea2: Krea2, tmp_path: Path) -> None:
    file = str(tmp_path / "demo.gguf")
    code, stdout, stderr = krea2("convert", file, "--layout", "gguf", "--weights", "q5_k")
    assert (code, stdout) == (0, f"{file}\n")
    assert re.fullmatch(
        r"note: 0 of \d+ matrices are Q5_K; the others, whose columns are no multiple of 256: \d+ Q5_1\n", stderr
    )


@pytest.mark.parametrize("layout", ["diffusers", "sharded", "native", "gguf"])
def test_a_full_disk_names_what_was_to_be_written_and_leaves_nothing(krea2: Krea2, tmp_path: Path, layout: str) -> None:
    output = tmp_path / {"native": "out.safetensors", "gguf": "out.gguf"}.get(layout, "out")
    with full_disk(room=64 * 1024):
        code, stdout, stderr = krea2("convert", str(output), "--layout", layout)
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"error: {output}")
    assert ".part" not in stderr
    assert "cannot be written: " in stderr
    assert FULL in stderr or "the disk may be full" in stderr
    assert stderr.count("\n") == 1
    assert not os.listdir(tmp_path)
