from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.output import append_json, publish


def test_a_line_says_what_it_was_measured_on_and_with_what(tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.jsonl"
    append_json(file, "one", {"value": 1})
    append_json(file, "two", {"value": 2})
    first, second = (json.loads(line) for line in file.read_text().splitlines())
    assert (first["benchmark"], first["value"], second["benchmark"]) == ("one", 1, "two")
    assert {"cpu", "cores", "threads", "gpu", "gpus"} <= first["hardware"].keys()
    assert {"python", "torch", "triton", "cuda", "cudnn", "driver"} <= first["versions"].keys()


def test_a_result_goes_to_the_file_or_to_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish("one", {"value": 1}, tmp_path / "results.jsonl")
    assert capsys.readouterr().out == ""
    publish("one", {"value": 1}, None)
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "results.jsonl").read_text())


def test_where_there_is_no_checkout_the_commit_is_what_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench import output

    monkeypatch.setattr(output, "_output_of", lambda *_: None)
    monkeypatch.setenv("KREA2_COMMIT", "abc123")
    assert output._commit() == "abc123"
