"""The benchmark of loading, run on a small checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import load


def test_loads_are_timed_against_plain_reads(turbo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lines"
    words = ["--checkpoint", str(turbo), "--cache", "warm,cold", "--repeats", "1", "--json", str(file)]
    assert load.main(words) == 0
    output = capsys.readouterr().out.splitlines()
    lines = [json.loads(line) for line in output if line.startswith("{")]
    assert lines == [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["cache"] for line in lines] == ["warm", "cold"]
    for line in lines:
        weights = turbo / "transformer" / "diffusion_pytorch_model.safetensors"
        assert (line["bytes"], line["files"]) == (weights.stat().st_size, 1)
        assert (line["device"], line["dtype"]) == ("cpu", "bfloat16")
        for side in ("load", "read", "read_to_memory"):
            assert line[side]["count"] == 2
            assert line[f"{side}_rate"] == pytest.approx(line["bytes"] / line[side]["median"])
        assert line["of_read"] == pytest.approx(line["load_rate"] / line["read_rate"])
        assert line["of_read_to_memory"] == pytest.approx(line["load_rate"] / line["read_to_memory_rate"])
    assert any(row.split()[:1] == ["cold"] for row in output)


def test_a_random_checkpoint_is_written_and_removed(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--size", "tiny", "--layers", "1", "--cache", "warm", "--repeats", "1", "--dtype", "float32"]
    assert load.main(words) == 0
    (line,) = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert (line["size"], line["dtype"]) == ("tiny", "float32")
    assert not Path(line["checkpoint"]).exists()


@pytest.mark.parametrize("words", [["--cache", "hot"], ["--layers", "0"]])
def test_a_mistake_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert load.main(["--size", "tiny", *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")
