"""On the command line: the options of whoever starts an engine, and what `krea2 info` tells of files."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from launcher.disclosure.xmp import DRAWN, packet
from launcher.requests.image_metadata import save_options
from tests.launcher.conftest import Krea2
from tests.launcher.disclosure.authority import certified, key_file, new_key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--c2pa-key", "key.pem"], "--c2pa-key needs --c2pa-certificate"),
        (["--c2pa-timestamp", "https://x"], "--c2pa-timestamp needs --c2pa-certificate"),
        (["--c2pa-timestamp", "x"], "--c2pa-timestamp must be an http or https URL, got 'x'"),
        (
            ["--c2pa-certificate", "/no/file", "--c2pa-key", "x"],
            "--c2pa-certificate: /no/file cannot be read: No such file or directory",
        ),
        (
            ["--c2pa-certificate", "x", "--c2pa-key", "x", "--no-disclosure"],
            "--c2pa-certificate needs disclosure, which is off",
        ),
    ],
)
@pytest.mark.parametrize("command", [["generate", "a fox"], ["serve"]])
def test_what_contradicts_itself_is_refused_before_anything_starts(
    command: list[str], arguments: list[str], message: str, krea2: Krea2
) -> None:
    assert krea2(*command, *arguments) == (2, "", f"error: {message}\n")


def test_another_s_key_is_refused_before_anything_starts(krea2: Krea2, tmp_path: Path) -> None:
    options = certified().options(tmp_path)
    (tmp_path / "key.pem").write_bytes(key_file(new_key()))
    flags = [text for name, file in options.items() for text in (f"--{name.replace('_', '-')}", file)]
    told = "--c2pa-key must be the certificate's: the first certificate of --c2pa-certificate is another key's"
    assert krea2("generate", "a fox", *flags) == (2, "", f"error: {told}\n")


def test_info_tells_that_a_model_drew_a_picture(krea2: Krea2, tmp_path: Path) -> None:
    path = tmp_path / "fox.jpg"
    Image.new("RGB", (96, 128)).save(path, **save_options("jpeg", None, xmp=packet(DRAWN, model="Krea-2-Turbo")))
    said = f"{path}: 96 × 128, which does not say what made it\n  digital source  trainedAlgorithmicMedia\n"
    assert krea2("info", str(path)) == (0, said, "")
