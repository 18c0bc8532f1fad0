"""`krea2 generate` from pictures: what is read, sent and refused, and what `krea2 info` tells of such images."""

from __future__ import annotations

import asyncio
import io
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from PIL import Image

from engine.config.model_config import ModelConfig
from launcher.cli import generate as command
from launcher.cli.main import execute
from launcher.cli.pictures import Pictures
from launcher.messages.client_messages import Generate
from launcher.messages.limits import Limits
from launcher.messages.message_parts import Outpaint
from launcher.pictures.reading import PictureReader
from launcher.requests.image_metadata import save_options
from tests.launcher.conftest import Krea2
from tests.launcher.processes import PATIENCE_S, Marked

PROMPT = "a red circle on a blue background"
NONE: dict[str, Any] = dict.fromkeys(
    ("image", "mask", "strength", "strength_steps", "outpaint", "mask_crop", "mask_feather")
)


def picture(path: Path, size: tuple[int, int] = (96, 128), colour: int = 200) -> str:
    Image.new("L", size, colour).save(path)
    return str(path)


class _Started(Exception):
    """In place of an engine."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, list[Generate]]]:
    """`started(*arguments)`: the configuration and the requests that the command would start an engine with."""
    made: list[list[Generate]] = []
    configs: list[Any] = []
    make_requests = command._make_requests

    def keep_requests(*args: Any, **options: Any) -> list[Generate]:
        made.append(make_requests(*args, **options))
        return made[-1]

    def launch_frontend(config: Any, **_: Any) -> None:
        configs.append(config)
        raise _Started

    monkeypatch.setattr(command, "_make_requests", keep_requests)
    monkeypatch.setattr(command, "launch_frontend", launch_frontend)

    def start(*arguments: str) -> tuple[Any, list[Generate]]:
        configs.clear()
        execute(["generate", *arguments, "--device", "cpu"])
        return (configs or [None])[0], made[-1]

    return start


Started = Callable[..., tuple[Any, list[Generate]]]


def test_options_say_how_a_picture_is_used(started: Started, tmp_path: Path) -> None:
    image, mask = picture(tmp_path / "a.png"), picture(tmp_path / "m.png", colour=255)
    config, (one, two) = started(
        "a red star", "a red ring", "--image", image, "--mask", mask, "--strength", "0.5", "--strength-steps", "full",
        "--outpaint", "left=32, top=16", "--mask-crop", "8", "--mask-feather", "4", "-o", str(tmp_path / "o.png"),
    )  # fmt: skip
    for request in (one, two):
        assert (request.pictures, request.strength, request.strength_steps) == (("image", "mask"), 0.5, "full")
        assert (request.outpaint, request.mask_crop, request.mask_feather) == (Outpaint(left=32, top=16), 8, 4)
    assert config.engine.image_input


def test_only_a_prompt_with_a_picture_has_the_encoder_loaded(started: Started, tmp_path: Path) -> None:
    config, (request,) = started(PROMPT, "-o", str(tmp_path / "o.png"))
    assert (config.engine.image_input, request.pictures) == (False, ())


def test_the_picture_says_what_is_drawn_and_warned_of_before_anything_is_loaded(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = picture(tmp_path / "wide.png", (1200, 600))
    config, _ = started(PROMPT, "--image", wide, "-o", str(tmp_path / "o.png"))
    assert config is not None
    assert "1200 × 600 pixels were scaled to 256 × 128" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "A.png", "--mask", "shape.png"], "--mask must be of the image's size, 96 × 128 pixels"),
        (["--image", "cut.png"], "--image could not be read: the file ends too early"),
        (["--image", "A.png", "--mask", "black.png"], "--mask must be white, or transparent, where the image is"),
    ],
)
def test_what_only_decoding_shows_is_told_before_anything_is_loaded(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    picture(Path("A.png"))
    picture(Path("shape.png"), (64, 128))
    picture(Path("black.png"), colour=0)
    Path("cut.png").write_bytes(Path("A.png").read_bytes()[:-30])
    config, _ = started(PROMPT, *arguments)
    assert config is None
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "2026/may"], "--image must be a picture that can be read (No such file or directory), got '2026/"),
        (["--image", "fax.png"], "--image must be a picture that can be read (No such file or directory), got 'fax.pn"),
        (["--image", "."], "--image must be the path of a file, got '.'"),
        (["--image", "text.png"], "--image must be a PNG, JPEG or WebP file: it is none of these"),
        (["--image", "fox.gif"], "--image must be a PNG, JPEG or WebP file, got GIF"),
        (["--image", "empty.png"], "--image must be a PNG, JPEG or WebP file: it is empty"),
        (["--image", "fox.png", "--mask", "text.png"], "--mask must be a PNG, JPEG or WebP file"),
        (["--image", "fox.png", "--limit", "max_image_bytes=50"], "--image must be a file of at most 5e-05 MB, got "),
        (["--image", "http://localhost/fox.png"], "--image is read from no URL"),
        (["--image", "fox.png", "--image", "a.png"], "--image must be one picture, got 2: all prompts begin from it"),
        (["--mask", "fox.png"], "--mask needs an image to begin from"),
        (["--strength", "0.5"], "--strength needs an image to begin from"),
        (["--outpaint", "left=8"], "--outpaint needs an image to begin from"),
        (["--image", "fox.png", "--strength", "1.5"], "--strength must be between 0 and 1, got 1.5"),
        (["--image", "fox.png", "--strength-steps", "all"], "--strength-steps must be one of partial, full, got 'all'"),
        (["--image", "fox.png", "--outpaint", "west=8"], "--outpaint must be pixels to add by side, as left=256,t"),
        (["--image", "fox.png", "--mask-crop", "8"], "--mask-crop needs a mask, or outpaint"),
        (["--image", "fox.png", "--no-image-input"], "--image needs the encoder, which --no-image-input leaves out"),
        (["--image", "-", "--mask", "-"], "only one of --image, --mask and --prompts can be -, which is stdin"),
        (["--image-strength", "0.35"], "there is no --image-strength here: --strength is 1 less it"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_anything_starts(
    krea2: Krea2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(Path("fox.png"))
    picture(Path("fox.gif"))
    Path("text.png").write_text("no picture")
    Path("empty.png").touch()
    code, stdout, stderr = krea2("generate", PROMPT, *arguments)
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert stderr.startswith(f"error: {message}")
    assert ("did you mean fox.png?" in stderr) == ("fax.png" in arguments)


def test_lines_have_pictures_of_their_own_by_paths_from_their_file(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, krea2: Krea2
) -> None:
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path)
    picture(Path("set/a.png"))
    shared = picture(Path("b.png"), (128, 128))
    lines = Path("set/lines.jsonl")
    lines.write_text(
        '{"prompt": "a red star", "image": "a.png", "strength": 0.3, "outpaint": {"left": 32}}\n'
        '{"prompt": "a red ring", "init_images": ["a.png"], "denoising_strength": "0.4"}\n'
        '{"prompt": "a red heart"}\n'
    )
    _, requests = started("--prompts", str(lines), "--strength", "0.9", "-o", "{index}.png")
    assert [request.strength for request in requests] == [0.3, 0.4, None]
    assert [request.pictures for request in requests] == [("image",), ("image",), ()]
    assert requests[0].outpaint == Outpaint(left=32)
    _, requests = started("--prompts", str(lines), "--image", shared, "-o", "{index}.png")
    assert [request.pictures for request in requests] == [("image",)] * 3
    lines.write_text('{"prompt": "x"}\n{"prompt": "x", "image": "b.png"}\n')
    message = f"{lines}, line 2: image must be a picture that can be read (No such file or directory), got 'set/b.png'"
    assert krea2("generate", "--prompts", str(lines))[2].startswith(f"error: {message}")
    lines.write_text('{"prompt": "x", "image": 3}')
    assert krea2("generate", "--prompts", str(lines))[2] == f"error: {lines}, line 1: image must be text, got 3\n"


def test_files_are_read_when_they_are_sent_and_stdin_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    picture(path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    pictures = Pictures(NONE | {"image": "-", "image_input": True}, [{}, {"image": str(path)}])
    first = pictures.read(0)
    assert first == pictures.read(0) == pictures.read(1)
    picture(path, (64, 64))
    assert pictures.read(1) != first == pictures.read(0)


class _Interrupted(BaseException):
    pass


@pytest.mark.parametrize("called", [False, True])
def test_a_signal_ends_the_reading_of_a_picture_whenever_it_comes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    demo: ModelConfig,
    called: bool,
) -> None:
    """In a callback of the loop, and just before a wait: Python knows of it then, but waits already."""

    def interrupt(number: int, frame: object) -> None:
        raise _Interrupted

    request.addfinalizer(lambda: signal.signal(signal.SIGUSR1, before))
    before = signal.signal(signal.SIGUSR1, interrupt)

    async def read(*_: object) -> None:
        if called:
            asyncio.get_running_loop().call_soon(lambda: signal.raise_signal(signal.SIGUSR1))
        else:
            wait_s = 0.1  # until it waits
            threading.Timer(wait_s, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)).start()
        await asyncio.sleep(PATIENCE_S)

    monkeypatch.setattr(PictureReader, "read", read)
    pictures = Pictures(NONE | {"image": picture(tmp_path / "a.png"), "image_input": True}, [{}])
    asked = Generate(request_id="x", prompt=PROMPT, **pictures.parameters(0))
    with pytest.raises(_Interrupted):
        pictures.lay_out(0, asked, demo, Limits())
    pictures.close()


def test_no_picture_on_stdin_is_said(monkeypatch: pytest.MonkeyPatch, krea2: Krea2) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert krea2("generate", PROMPT, "--image", "-")[2] == "error: --image is -, and there is no file on stdin\n"


def test_images_are_drawn_from_pictures(marked: Marked, tmp_path: Path) -> None:
    marked.use_hollow_ranks()
    image, mask = picture(tmp_path / "a.png", (100, 120)), picture(tmp_path / "m.png", (100, 120), colour=255)
    code, stdout, stderr = marked.run_krea2(
        "generate", PROMPT, PROMPT, "--image", image, "--mask", mask, "--outpaint", "right=20", "--device", "cpu",
        "-o", str(tmp_path / "{index}.png"),
    )  # fmt: skip
    assert code == 0, stderr
    assert sorted(stdout.split()) == [str(tmp_path / f"{index}.png") for index in range(2)]
    assert {Image.open(path).size for path in stdout.split()} == {(120, 120)}
    assert "warning" not in stderr
    marked.expect_nothing_left()


def test_info_tells_what_made_a_picture(krea2: Krea2, tmp_path: Path) -> None:
    made = {
        "prompt": PROMPT, "seed": 7, "negative_prompt": None, "steps": 8, "guidance": 0.0, "strength": 0.6,
        "width": 96, "height": 128, "version": "krea2-engine 1.0", "model": "demo",
        "loras": [{"name": "ink", "strength": 0.5, "sha256": "0123456789abcdef" * 4}],
    }  # fmt: skip
    for suffix, name in (("png", "png"), ("jpg", "jpeg"), ("webp", "webp")):
        path = tmp_path / f"fox.{suffix}"
        Image.new("RGB", (96, 128)).save(path, name, **save_options(name, made))
        code, stdout, _ = krea2("info", str(path))
        assert code == 0
        first, *lines = stdout.splitlines()
        assert first == f"{path}: 96 × 128, made by krea2-engine 1.0"
        assert [line.split(maxsplit=1) for line in lines[:4]] == [
            ["prompt", PROMPT],
            ["seed", "7"],
            ["steps", "8"],
            ["guidance", "0"],
        ]
        assert "  strength        0.6" in lines
        assert "  loras           name ink, strength 0.5, sha256 0123456789" in lines


def test_info_tells_what_another_program_says_or_that_nothing_is_said(krea2: Krea2, tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("parameters", "a fox\nSteps: 20, Sampler: Euler a, Seed: 3")
    path = tmp_path / "theirs.png"
    Image.new("RGB", (64, 64)).save(path, pnginfo=chunks)
    assert krea2("info", str(path))[1] == (
        f"{path}: 64 × 64, made by another program\n  a fox\n  Steps: 20, Sampler: Euler a, Seed: 3\n"
    )
    bare = picture(tmp_path / "bare.png")
    assert krea2("info", bare) == (2, "", f"error: {bare}: 96 × 128, which does not say what made it\n")
    Path(bare).write_text("none")
    code, _, stderr = krea2("info", bare)
    assert code == 2
    assert stderr.startswith(f"error: {bare}: cannot be read as a picture: ")


def test_help_shows_the_options_of_pictures(krea2: Krea2) -> None:
    shown = click.unstyle(krea2("generate", "--help")[1])
    for flag in ("--image", "--mask", "--strength", "--strength-steps", "--outpaint", "--mask-crop", "--mask-feather"):
        assert f"  {flag} " in shown
