"""The benchmark of the filter of words measures what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.words import main


def test_it_finds_a_word_in_what_is_disguised_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "words.jsonl"
    assert main(["--seconds", "0", "--languages", "en", "--json", str(file)]) == 0
    results = [json.loads(line) for line in file.read_text().splitlines()]
    found = {result["kind"]: result["found"] for result in results}
    assert found == {**dict.fromkeys(found, 0), "disguised": 56}
    assert all(result["prompts_a_second"] > 0 for result in results)
    assert "prompts/s" in capsys.readouterr().out


def test_a_language_that_is_none_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--languages", "klingon"]) == 2
    assert "languages= must be some of" in capsys.readouterr().err
