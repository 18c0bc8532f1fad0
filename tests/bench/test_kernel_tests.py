"""python -m bench.kernel_tests: on files that pass, fail and hang."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.kernel_tests import main


def test_files_run_at_once_and_each_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_good.py").write_text("def test_it():\n    assert True\n")
    results = tmp_path / "results.jsonl"
    assert main([str(tmp_path), "--json", str(results)]) == 0
    (tmp_path / "test_bad.py").write_text("def test_it():\n    assert 1 + 1 == 3\n")
    assert main([str(tmp_path), "--json", str(results)]) == 1
    assert "assert (1 + 1) == 3" in capsys.readouterr().out
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    summaries = {Path(line["file"]).name: (line["status"], line["summary"].split(" in ")[0]) for line in lines}
    assert summaries == {"test_good.py": (0, "1 passed"), "test_bad.py": (1, "1 failed")}


def test_a_file_that_hangs_is_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_slow.py").write_text("import time\ndef test_it():\n    time.sleep(60)\n")
    (tmp_path / "test_zlate.py").write_text("def test_it():\n    assert True\n")
    assert main([str(tmp_path), "--jobs", "1", "--seconds", "2"]) == 1
    output = capsys.readouterr().out
    assert "test_slow.py: stopped: the time was up" in output
    assert "test_zlate.py: not begun: the time was up" in output


def test_no_files_is_no_success(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 1
