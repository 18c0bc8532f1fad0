"""python -m bench.kernel_tests: on files that pass, fail and hang."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.kernel_tests import __main__ as kernel_tests
from bench.kernel_tests.__main__ import main
from tests.launcher.processes import wait_until


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


def test_a_file_that_hangs_is_stopped_and_says_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The time is up as soon as it hangs."""
    hangs = tmp_path / "hangs"
    (tmp_path / "test_slow.py").write_text(
        f"import pathlib, time\ndef test_that_hangs():\n    pathlib.Path({str(hangs)!r}).touch()\n    time.sleep(600)\n"
    )
    (tmp_path / "test_zlate.py").write_text("def test_it():\n    assert True\n")

    class Process(subprocess.Popen[str]):
        def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]:
            if timeout is None or hangs.exists():
                return super().communicate(input)
            wait_until(hangs.exists, "hanging")
            raise subprocess.TimeoutExpired("pytest", 0.0)

    monkeypatch.setattr(kernel_tests.subprocess, "Popen", Process)
    now = SimpleNamespace(monotonic=lambda: time.monotonic() + hangs.exists() * 1000)
    monkeypatch.setattr(kernel_tests, "time", now)
    assert main([str(tmp_path), "--jobs", "1", "--seconds", "500"]) == 1
    output, errors = capfd.readouterr()
    assert "in test_that_hangs" in errors
    assert "test_slow.py: stopped: the time was up" in output
    assert "test_zlate.py: not begun: the time was up" in output


def test_files_that_crash_or_lose_the_gpu_cost_themselves_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test_crash.py").write_text(
        "import os, signal\ndef test_it():\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    illegal = "CUDA error: an illegal memory access was encountered"
    (tmp_path / "test_lost.py").write_text(
        f"def test_first():\n    assert True\ndef test_second():\n    raise RuntimeError('{illegal}')\n"
        "def test_third():\n    assert not 'to be seen'\n"
    )
    (tmp_path / "test_zgood.py").write_text("def test_it():\n    assert True\n")
    assert main([str(tmp_path), "--jobs", "3"]) == 1
    output, errors = capfd.readouterr()
    lines = [line.partition(": ") for line in output.splitlines()[-3:]]
    summaries = {Path(file).name: summary for file, _, summary in lines}
    assert summaries["test_crash.py"] == "crashed: SIGSEGV"
    assert summaries["test_zgood.py"].startswith("1 passed in ")
    assert re.fullmatch(
        r"1 failed, 1 passed in [\d.]+s; the GPU is lost in \S*test_lost.py::test_second", summaries["test_lost.py"]
    )
    assert "Fatal Python error: Segmentation fault" in errors
    assert 'test_crash.py", line 3 in test_it' in errors
    assert "FAILED at once: " in errors
    assert "to be seen" not in output + errors


def test_only_those_that_are_chosen_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_two.py").write_text("def test_a():\n    assert True\ndef test_b():\n    assert False\n")
    assert main([str(tmp_path), "-k", "test_a", "-m", ""]) == 0
    assert "1 passed, 1 deselected" in capsys.readouterr().out


def test_no_files_is_no_success(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 1
