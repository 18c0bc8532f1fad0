"""`krea2 generate`, as users run it."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

import engine
from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.model_config import ModelConfig
from engine.errors import FilterUnavailableError, ModerationBlockedError
from launcher import Client
from launcher.cli.explain import Explaining
from launcher.cli.generate import _make_images
from launcher.cli.progress import GenerateProgress
from launcher.client.results import ImageFile, Result
from launcher.disclosure.xmp import DRAWN
from launcher.messages.client_messages import Generate
from launcher.requests.image_metadata import read_made
from tests.engine.checkpoint.layouts.layouts import (
    language_model,
    load_text_encoder,
    load_transformer,
    load_vae,
    native_transformer,
    prefixed,
    save,
    wan_vae,
)
from tests.launcher.conftest import Krea2
from tests.launcher.disclosure.test_xmp import AI_SYSTEM, SOURCE, TOLD, said
from tests.launcher.processes import Marked

PROMPT = "a red circle on a blue background"


def test_generate_writes_a_file_and_says_only_where(marked: Marked, tmp_path: Path) -> None:
    path = tmp_path / "fox.png"
    code, stdout, stderr = marked.run_krea2("generate", PROMPT, "--device", "cpu", "--seed", "0", "--output", str(path))
    assert (code, stdout) == (0, f"{path}\n")
    assert re.fullmatch(r"1 image in \d+\.\d s, after \d+\.\d s of loading; seed 0\n", stderr)
    image = Image.open(path)
    assert image.size == (128, 128)
    made = read_made(image) or {}
    made.pop("hashes", None)  # known if another test's server has read the files
    assert made == {
        "prompt": PROMPT, "seed": 0, "negative_prompt": None, "steps": 8, "guidance": 0.0, "mu": None, "width": 128,
        "height": 128, "model": "demo", "variant": "turbo", "version": f"krea2-engine {engine.__version__}",
    }  # fmt: skip
    assert str(image.info["parameters"]).startswith(
        f"{PROMPT}\nNegative prompt: \nSteps: 8, Sampler: Euler, CFG scale: 1, "
    )
    assert said(path.read_bytes()) == {SOURCE: DRAWN, **TOLD, AI_SYSTEM: "demo"}
    assert os.listdir(tmp_path) == ["fox.png"]
    marked.expect_nothing_left()


def test_several_images_are_numbered_prompt_by_prompt_with_seeds_in_a_row(
    marked: Marked, tmp_path: Path, demo: ModelConfig
) -> None:
    marked.use_hollow_ranks()
    code, stdout, stderr = marked.run_krea2(
        "generate", "a red fox", "", "--device", "cpu", "--tp", "2", "--num-images", "2", "--steps", "2",
        "--width", "100", "--seed", "40", "--output", str(tmp_path / "out.png"),
    )  # fmt: skip
    assert code == 0
    assert sorted(stdout.splitlines()) == [str(tmp_path / f"out_{index}.png") for index in range(4)]
    made = [json.loads(Image.open(tmp_path / f"out_{index}.png").info["krea2"]) for index in range(4)]
    assert [(each["prompt"], each["seed"]) for each in made] == [
        ("a red fox", 40),
        ("a red fox", 41),
        ("", 42),
        ("", 43),
    ]
    assert made[0]["steps"] == 2
    assert demo.prompt_domain is not None
    *warnings, last = stderr.splitlines()
    assert warnings == [
        "warning: the size 100 × 128 was rounded up to 112 × 128, multiples of 16",
        f"warning: {demo.prompt_domain.warning('a red fox')}",
    ]
    assert re.fullmatch(r"4 images in .* s of loading; seeds 40 to 43", last)


def test_a_drawn_seed_is_reported_and_metadata_can_be_left_out(marked: Marked, tmp_path: Path) -> None:
    marked.use_hollow_ranks()
    path = tmp_path / "a.webp"
    code, stdout, stderr = marked.run_krea2(
        "generate", PROMPT, "--device", "cpu", "--steps", "1", "--no-metadata", "--output", str(path)
    )
    assert (code, stdout) == (0, f"{path}\n")
    assert re.fullmatch(r"1 image in .* s of loading; seed \d+\n", stderr)
    assert Image.open(path).format == "WEBP"
    assert not Image.open(path).getexif()


def test_seeds_of_64_bits_and_a_compression_are_honoured_and_told(marked: Marked, tmp_path: Path) -> None:
    marked.use_hollow_ranks()
    lines = tmp_path / "prompts.jsonl"
    lines.write_text(f'{{"prompt": "{PROMPT}"}}\n{{"prompt": "{PROMPT}", "seed": -7, "output_compression": 90}}\n')
    code, stdout, stderr = marked.run_krea2(
        "generate", "--prompts", str(lines), "--device", "cpu", "--steps", "1", "--seed", str(2**64 - 5),
        "--output-compression", "20", "--output", str(tmp_path / "{seed}.jpg"),
    )  # fmt: skip
    first, second = tmp_path / f"{2**53 - 5}.jpg", tmp_path / f"{2**53 - 7}.jpg"
    assert (code, {*stdout.split()}) == (0, {str(first), str(second)})
    quantized = [sum(Image.open(path).quantization[0]) for path in (first, second)]  # type: ignore[attr-defined]
    assert quantized[0] > 5 * quantized[1]
    warned = [line for line in stderr.splitlines() if line.startswith("warning: ")]
    assert [warning.partition(",")[0] for warning in warned] == [
        f"warning: seed {2**64 - 5} was reduced to {2**53 - 5}",
        f"warning: seed -7 was reduced to {2**53 - 7}",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--tp", "3"], "--tp must be one of 1, 2, 4, got 3"),
        (["x", "--tp", "2", "--sp", "4"], "--sp must be at most 2 with --tp 2, got 4"),
        (["x", "--width", "100000"], "--width must be between 64 and 4096, got 100000"),
        (["x", "--width", "wide"], "Invalid value for '--width': 'wide' is not a valid integer."),
        (["x", "--sigmas", "1,x"], "--sigmas must be numbers in a list, as 1,0.75,0.5,0.25, got 'x'"),
        (["x", "--sigmas", "0.5,1"], "--sigmas must be numbers that fall from at most 1 to above 0, by 0.000001 at "),
        (["x", "--guidance", "nan"], "--guidance must be between 0 and 20, got nan"),
        (["x", "--device", "tpu"], "--device must be one of auto, cuda, cpu, got 'tpu'"),
        (["x", "--quantization", "int4"], "--quantization must be one of auto, none, fp8, int8, got 'int4'"),
        (
            ["x", "--attention", "fast"],
            "--attention must be one of auto, cudnn, flash, fa2, fa3, fa3-fp8, fa4, triton, torch",
        ),
        (
            ["x", "--output", "x.gif"],
            "--output must be a path that ends in .png, .jpg, .jpeg, .webp, or a folder, as i",
        ),
        (
            ["x", "-o", "/dev/null/x.png"],
            "--output must be a path that can be written (Not a directory), got '/dev/nul",
        ),
        (["x", "-o", "{sed}.png"], "--output must be a path in which braces hold index, seed or prompt, as {index:03}"),
        (["x", "y", "-o", "{prompt:3}.png"], "--output must be a path in which braces hold index, seed or prompt"),
        (["a b", "a-b", "-o", "{prompt}.png"], "--output must have {index} in it: two images would be a-b.png"),
        (["x", "--size", "96x96", "--width", "80"], "--width 80 contradicts --size, which says 96"),
        (["x", "--size", "64x5000"], "--size 64x5000: height must be between 64 and 4096, got 5000"),
        (["x", "--size", "wide"], "--size must be WIDTHxHEIGHT, as 512x768, got 'wide'"),
        (["x", "--output", "x" * 300 + ".png"], "--output must be a path that can be written (File name too long)"),
        (["x", "--limit", "max_side"], "--limit must be NAME=VALUE with a number, got 'max_side'"),
        (["x", "--limit", "max_side=256", "--width", "512"], "--width must be between 64 and 256, got 512"),
        (["x", "--model", "/no/such"], "/no/such: there is no such folder"),
        (["x", "--seed", str(2**64)], f"--seed must be between {-(2**63)} and {2**64 - 1}, got {2**64}"),
        (["x", "--output-compression", "101"], "--output-compression must be between 0 and 100, got 101"),
        (["x", "--sed", "1"], "No such option"),
        (["x", "--start-timeout", "nan"], "--start-timeout must be above 0 and at most 604800, got nan"),
        ([], 'no prompt is given: write one in quotes, as krea2 generate "a red circle", or --prompts FILE'),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_before_anything_starts(
    krea2: Krea2, arguments: list[str], message: str
) -> None:
    code, stdout, stderr = krea2("generate", *arguments)
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"error: {message}")
    assert stderr.count("\n") == 1


def test_an_attention_that_the_device_lacks_is_named_with_those_that_it_has(marked: Marked) -> None:
    code, stdout, stderr = marked.run_krea2("generate", PROMPT, "--device", "cpu", "--attention", "fa2")
    assert (code, stdout) == (2, "")
    assert stderr.startswith(
        "error: --attention fa2 is not available: it needs a CUDA device, not cpu; available here: auto, "
    )


def test_a_prompt_that_is_not_text_is_refused(krea2: Krea2) -> None:
    code, _, stderr = krea2("generate", os.fsdecode(b"\xff\xfe"))
    assert (code, stderr) == (2, "error: PROMPT must be valid Unicode text, got lone surrogates\n")


def test_parts_in_other_files_make_the_same_image(marked: Marked, client: Client, tmp_path: Path) -> None:
    parts = {
        "--transformer": save(native_transformer(load_transformer(DEMO_CHECKPOINT)), tmp_path / "native.safetensors"),
        "--text-encoder": save(language_model(load_text_encoder(DEMO_CHECKPOINT)), tmp_path / "text.safetensors"),
        "--vae": save(wan_vae(load_vae(DEMO_CHECKPOINT), 1), tmp_path / "wan.safetensors"),
        "--tokenizer": DEMO_CHECKPOINT / "tokenizer" / "tokenizer.json",
    }
    options = [text for option, path in parts.items() for text in (option, str(path))]
    path = tmp_path / "parts.png"
    shared = ("generate", PROMPT, "--device", "cpu", "--seed", "0", "--steps", "2", "--model", "demo")
    code, _, stderr = marked.run_krea2(*shared, "--output", str(path), "--no-metadata", *options)
    assert code == 0
    note, _ = stderr.splitlines()
    assert note == "note: the checkpoint does not say what it is, Turbo is assumed: see --variant"
    assert path.read_bytes() == client.generate(PROMPT, seed=0, steps=2, metadata=False).files[0]


def test_a_missing_part_is_named(krea2: Krea2, tmp_path: Path) -> None:
    file = save(native_transformer(load_transformer(DEMO_CHECKPOINT)), tmp_path / "native.safetensors")
    code, _, stderr = krea2("generate", PROMPT, "--transformer", str(file))
    assert code == 2
    together = load_file(file) | prefixed("vae.", wan_vae(load_vae(DEMO_CHECKPOINT), 1))
    two = save(together, tmp_path / "two.safetensors")
    message = krea2("generate", PROMPT, "--model", str(two))[2]
    assert message.startswith("error: missing: --text-encoder, --tokenizer; give each as a file or a folder")
    assert message.endswith(f" beside {two}, which holds the DiT and a VAE\n")
    assert stderr.startswith("error: missing: --text-encoder, --vae, --tokenizer; give each as a file or a folder")


def test_what_filters_hold_back_ends_no_other_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Filtered:
        async def follow(self, request: Generate, files: object) -> AsyncIterator[ImageFile | Result]:
            for index in range(request.num_images):
                if (request.prompt, index) == ("bad image", 1):
                    raise ModerationBlockedError("the image was blocked")
                if request.prompt == "late filter":
                    raise FilterUnavailableError("the filter is late")
                yield ImageFile("", 1, index, (request.seed or 0) + index, 16, 16, "png", request.prompt.encode())
                await asyncio.sleep(0)
            if request.prompt == "last":
                yield Result("", 1, [], [30, 31], 16, 16, "png", {}, ("the image was blurred",))

    class NoPictures:
        def read(self, index: int) -> Mapping[str, bytes]:
            return {}

    async def make(*prompts: str) -> tuple[list[int], int]:
        asked = [Generate(request_id="", prompt=each, seed=10 * n, num_images=2) for n, each in enumerate(prompts)]
        wheres = [f"line {number}" for number, _ in enumerate(prompts, 1)]
        paths = [tmp_path / f"{number}.png" for number in range(2 * len(prompts))]
        with closing(GenerateProgress([1] * len(paths))) as progress, closing(Explaining(None, print)) as explaining:
            made: Any = (Filtered(), asked, wheres, NoPictures(), paths, progress, explaining)
            return await _make_images(*made, ahead=2)

    assert asyncio.run(make("first", "late filter", "bad image", "last")) == ([0, 1, 20, 30, 31], 2)
    assert sorted(os.listdir(tmp_path)) == ["0.png", "1.png", "4.png", "6.png", "7.png"]
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "error: line 2: the filter is late",
        "error: line 3: the image was blocked",
        "warning: line 4: the image was blurred",
    ]
    with pytest.raises(ModerationBlockedError, match=r"^the image was blocked$"):
        asyncio.run(make("bad image"))
