"""What made a picture, as other programs read it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from launcher.requests.image_metadata import read_infotext, read_made, save_options
from launcher.requests.infotext import infotext, model_hash
from tests.launcher.requests.a1111_reader import imported_by_comfyui, read

MADE: dict[str, Any] = {
    "prompt": "a 'red' fox, sitting: here\nsnow 🦊",
    "seed": 7,
    "negative_prompt": "blur,\nnoise",
    "steps": 28,
    "guidance": 3.5,
    "mu": None,
    "width": 512,
    "height": 768,
    "loras": [{"name": "ink", "strength": 0.5, "sha256": "12" * 32}, {"name": "öl: a, <b>", "strength": -1.0}],
    "merged_loras": [{"name": "base", "strength": 1.0, "sha256": "34" * 32}],
    "model": 'Krea: 2, "Turbo"',
    "hashes": {"transformer": {"t.safetensors": "ab" * 32}, "vae": {"v.safetensors": "cd" * 32}},
    "version": "krea2-engine 1.0",
}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
PROMPTS = st.lists(TEXTS | st.sampled_from(["\n", "Negative prompt:", "Steps: 8, Seed: 1, Size: 1x1", "\0"])).map(
    "".join
)


def as_read(text: str) -> str:
    """What is left of a prompt: the words that readers look for are no more to be found, nor space around lines."""
    lines = [
        line.strip()
        for line in text.replace("\0", "\ufffd").replace("Negative prompt:", "Negative prompt :").split("\n")
    ]
    # a lone carriage return begins a line for some readers, too
    return "\n".join(re.sub(r"(^|\r)([^\S\r\n]*)Steps:", r"\1\2Steps :", line) for line in lines).strip()


def written(image_format: str, made: dict[str, Any]) -> Image.Image:
    Image.new("RGB", (16, 32)).save(data := io.BytesIO(), image_format, **save_options(image_format, made))
    return Image.open(data)


def test_a_prompt_of_empty_lines_is_searched_once() -> None:
    def seconds(prompt: str) -> float:
        """What this thread computes, at best: the garbage collector may come now and then."""
        took = []
        for _ in range(3):
            began = time.thread_time()
            infotext(MADE | {"prompt": prompt})
            took.append(time.thread_time() - began)
        return min(took)

    assert seconds("\n" * 16_000) < 50 * seconds("x\n" * 8000)


def test_the_text_is_a1111s() -> None:
    assert infotext(MADE) == (
        "a 'red' fox, sitting: here\nsnow 🦊 <lora:ink:0.5> <lora:öl_ a_ _b_:-1> <lora:base:1>\n"
        "Negative prompt: blur,\nnoise\n"
        "Steps: 28, Sampler: Euler, CFG scale: 4.5, Seed: 7, Size: 512x768, Model hash: ababababab, "
        'Model: "Krea: 2, \\"Turbo\\"", VAE hash: cdcdcdcdcd, Lora hashes: "ink: 1212121212, base: 3434343434", '
        'Version: krea2-engine 1.0, Hashes: {"model": "ababababab", "vae": "cdcdcdcdcd", "lora:ink": "1212121212", '
        '"lora:base": "3434343434"}'
    )
    assert read(infotext(MADE))[2]["Model"] == MADE["model"]


def test_what_was_saved_of_the_steps_is_said_in_words_of_ours() -> None:
    cache = {"method": "velocity", "order": 0}
    made = {"steps": 8, "mu": 1.5, "cache": cache, "computed": {"prompt": "1-3,8", "block_evaluations": "24 of 48"}}
    window = {"guidance_from": 0.0, "guidance_until": 0.5, "guidance_outside": "last"}
    said = "Guidance from: 0.0, Guidance until: 0.5, Guidance outside: last, Block evaluations: 24 of 48"
    assert infotext({**made, **window}).endswith(f'Mu: 1.5, Cache: "method=velocity, order=0", {said}')
    assert read(infotext({**made, "cache": "fast"}))[2]["Cache"] == "fast"


def test_what_is_not_known_is_left_out() -> None:
    made = {"prompt": "", "seed": 0, "steps": 8, "guidance": 0.0, "width": 64, "height": 64}
    text = infotext(made)
    assert text == "\nNegative prompt: \nSteps: 8, Sampler: Euler, CFG scale: 1, Seed: 0, Size: 64x64"
    assert read(text) == ("", "", {"Steps": "8", "Sampler": "Euler", "CFG scale": "1", "Seed": "0", "Size": "64x64"})


@given(PROMPTS, PROMPTS, TEXTS, TEXTS)
@example("Negative prompt: a", "Steps: 1", '"', "}")
@example("0\rSteps:", "0\rSteps:", "", "")
@example("a\n \tSteps: 1, Seed: 2, Size: 3x4", "\nNegative prompt: b\r\nSteps: 9", "a\nb", '", Seed: 5')
def test_a_reader_finds_what_was_asked_whatever_stands_in_it(prompt: str, negative: str, model: str, name: str) -> None:
    loras = [{"name": name, "strength": 0.25, "sha256": "ef" * 32}]
    made = MADE | {"prompt": prompt, "negative_prompt": negative, "model": model, "loras": loras, "merged_loras": []}
    text = infotext(made)
    found, avoided, values = read(text)
    said, _, tag = found.rpartition("<lora:")
    assert (said.strip(), tag[-6:]) == (as_read(prompt), ":0.25>")
    assert avoided.strip() == as_read(negative)
    assert (values["Steps"], values["Seed"], values["Size"], values["CFG scale"]) == ("28", "7", "512x768", "4.5")
    assert values["Model"].strip() == model.strip()
    assert json.loads(values["Hashes"])["model"] == "ab" * 5
    imported = imported_by_comfyui(text)
    assert imported is not None
    assert (imported[2]["steps"], imported[2]["seed"], imported[2]["cfg scale"]) == ("28", "7", "4.5")
    made["loras"] = []
    for image_format in ("png", "webp"):
        image = written(image_format, made)
        assert read_made(image) == made
        assert read_infotext(image) == infotext(made)


@pytest.mark.parametrize("image_format", ["png", "webp", "jpeg"])
def test_every_format_has_it_as_programs_expect_it(image_format: str) -> None:
    image = written(image_format, MADE)
    if image_format == "png":
        assert image.info == {"parameters": infotext(MADE), "krea2": json.dumps(MADE)}
    else:
        exif = image.getexif()
        assert (exif.endian, json.loads(exif[0x010E])) == (">", MADE)
        assert exif.get_ifd(0x8769)[0x9286] == b"UNICODE\0" + infotext(MADE).encode("utf-16-be")
        undefined = b"\x92\x86\x00\x07"  # tag and type
        assert undefined in image.info["exif"]


@pytest.mark.parametrize("image_format", ["png", "webp", "jpeg"])
def test_the_longest_prompts_fit_or_are_left_out(image_format: str) -> None:
    for prompt, negative in (("a" * 16_000, None), ("a" * 16_000, "b" * 16_000), ("🦊" * 4_000, "雪" * 5_333)):
        made = MADE | {"prompt": prompt, "negative_prompt": negative}
        image = written(image_format, made)
        fits = image_format != "jpeg" or negative is None  # in 64 kB
        assert read_infotext(image) == (infotext(made) if fits or prompt.isascii() else None)
        assert read_made(image) == (made if fits or prompt.isascii() else None)
        comment = image.getexif().get_ifd(0x8769).get(0x9286, b"")
        assert (len(comment) > 8) == (fits and image_format != "png")


def test_files_of_older_releases_are_read() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("prompt", "a\nfox 🦊")
    text.add_text("seed", "8")
    text.add_text("settings", '{"steps": 8, "guidance": 0.0, "width": 16, "height": 32}')
    Image.new("RGB", (16, 32)).save(data := io.BytesIO(), "png", pnginfo=text)
    made = {"prompt": "a\nfox 🦊", "seed": 8, "steps": 8, "guidance": 0.0, "width": 16, "height": 32}
    assert read_made(Image.open(data)) == made
    assert read_infotext(Image.open(data)) == infotext(made)


@pytest.mark.parametrize("chunk", ["prompt", "settings", "krea2", "parameters", "Comment"])
def test_files_of_others_are_read_as_far_as_they_go(chunk: str) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text(chunk, '["a fox"]')
    Image.new("RGB", (16, 32)).save(data := io.BytesIO(), "png", pnginfo=text)
    assert read_made(Image.open(data)) is None
    assert read_infotext(Image.open(data)) == ('["a fox"]' if chunk == "parameters" else None)
    exif = Image.Exif()
    exif[0x010E] = "a fox"
    Image.new("RGB", (16, 32)).save(data := io.BytesIO(), "webp", exif=exif)
    assert read_made(Image.open(data)) is read_infotext(Image.open(data)) is None


def test_a_hash_of_several_files_can_be_checked_by_hand(tmp_path: Path) -> None:
    for name in ("b-2.safetensors", "a-1.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    printed = subprocess.run("sha256sum *.safetensors", shell=True, cwd=tmp_path, capture_output=True, check=True)
    files = {line.split()[1]: line.split()[0] for line in printed.stdout.decode().splitlines()}
    whole = subprocess.run(
        "sha256sum *.safetensors | sha256sum", shell=True, cwd=tmp_path, capture_output=True, check=True
    )
    assert model_hash(files) == whole.stdout.decode().split()[0]
