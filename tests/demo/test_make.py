"""The stages of the recipe: their order, and how they go on after a stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from demo.__main__ import SCHEDULES, make
from tests.launcher.processes import PATIENCE_S, SLOW_START, wait_until


def stage(name: str) -> list[str]:
    return ["tests.demo.stage", name]


def log(work: Path) -> list[str]:
    return (work / "log").read_text().split("\n")[:-1]


def test_stages_run_in_order_and_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "new" / "folder"
    (tmp_path / "new").mkdir()
    make([stage("first"), stage("second")], work)
    make([stage("first"), stage("second"), stage("third")], work)
    assert log(work) == ["first", "second", "third"]
    assert f"[3/3] python -m tests.demo.stage third --work {work}\n" in capfd.readouterr().out


def test_a_stage_that_fails_ends_it_and_is_run_again(tmp_path: Path) -> None:
    make([stage("first")], tmp_path)
    (tmp_path / "broken").touch()
    with pytest.raises(SystemExit, match=r"tests\.demo\.stage ended with exit code 3"):
        make([stage("first"), stage("second"), stage("third")], tmp_path)
    assert log(tmp_path) == ["first"]
    (tmp_path / "broken").unlink()
    make([stage("first"), stage("second"), stage("third")], tmp_path)
    assert log(tmp_path) == ["first", "second", "third"]


def test_a_folder_belongs_to_one_schedule(tmp_path: Path) -> None:
    make([stage("first")], tmp_path)
    with pytest.raises(SystemExit, match="was begun with another schedule"):
        make([stage("other"), stage("second")], tmp_path)
    assert log(tmp_path) == ["first"]


@pytest.mark.parametrize("late", [False, True])
def test_an_interrupted_stage_has_time_to_save(tmp_path: Path, late: bool) -> None:
    code = (
        f"{SLOW_START * late}"
        "import pathlib, signal; from demo.__main__ import make\n"
        # Not ignored, as it is by what a shell without a terminal starts in the background.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"make({[stage('wait')]}, pathlib.Path({str(tmp_path)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: (tmp_path / "log").exists() and bool(log(tmp_path)), "the stage's start")
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(PATIENCE_S) != 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the stage too
        process.wait()
    assert log(tmp_path) == ["waits", "saved"]
    assert not (tmp_path / "finished.json").exists()


def test_every_schedule_ends_with_a_release() -> None:
    for schedule in SCHEDULES.values():
        assert schedule.stages()[-1] == ["demo.release"]
