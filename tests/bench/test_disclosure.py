"""The benchmark of what files say of where they come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import disclosure
from tests.launcher.disclosure.authority import certified


def test_files_that_say_nothing_xmp_and_manifests_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = certified().options(tmp_path)
    signing = ["--c2pa-certificate", options["c2pa_certificate"], "--c2pa-key", options["c2pa_key"]]
    assert disclosure.main([*signing, "--side", "32", "--repeats", "1", "--json", str(tmp_path / "lines")]) == 0
    output = capsys.readouterr().out.splitlines()
    lines = [json.loads(line) for line in output if line.startswith("{")]
    assert lines == [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [(line["format"], line["kind"]) for line in lines] == [
        (name, kind) for name in ("png", "jpeg", "webp") for kind in ("bare", "xmp", "c2pa")
    ]
    for bare, xmp, signed in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        assert bare["more_bytes"] == 0 < xmp["more_bytes"] < 1000 < signed["more_bytes"] < 8000


def test_without_a_certificate_there_are_no_manifests(capsys: pytest.CaptureFixture[str]) -> None:
    assert disclosure.main(["--side", "16", "--repeats", "1"]) == 0
    assert "c2pa" not in capsys.readouterr().out
    assert disclosure.main(["--c2pa-key", "key.pem"]) == 2
    assert capsys.readouterr().err == "error: c2pa_key needs c2pa_certificate\n"
