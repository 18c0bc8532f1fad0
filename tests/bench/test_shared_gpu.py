"""Ranks that share a device, here the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import shared_gpu
from bench.engines import rank_processes
from bench.engines.rank_processes import ProcessFailed
from bench.shared_gpu import Parity, compare, main
from engine.config.degrees import Degrees
from tests.launcher.processes import PATIENCE_S


@pytest.mark.timeout(600)
# In the fast run tests/engine/parity/test_parallel_modes.py guards every mode, its ranks being threads, and
# tests/engine/parallel that processes are connected in every mode.
@pytest.mark.parametrize("mode", ["tp2", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("sp2", "cfg"))])
def test_two_ranks_make_what_one_makes(tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str) -> None:
    file = tmp_path / "results.jsonl"
    assert main(["--modes", mode, "--device", "cpu", "--seconds", "500", "--json", str(file)]) == 0
    assert "FAILED" not in capsys.readouterr().out
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["precision"] for line in lines] == ["float32", "bfloat16", "fp8"]
    for line in lines:
        assert (line["benchmark"], line["mode"], line["ranks"]) == ("shared_gpu", mode, 2)
        assert (line["device"], line["backend"]) == ("cpu", "gloo")
        assert line["holds"]
    assert lines[0]["error"] < 1e-5
    assert (lines[0]["error"] > 0) == (mode == "tp2")  # only sums over ranks are in another order
    assert 1e-4 < lines[1]["error"] < lines[2]["error"]  # otherwise nothing ran in these precisions


def test_a_parity_holds_within_its_tolerances() -> None:
    assert Parity("tp2", 2, "cpu", "gloo", "float32", error=1e-5, allowed=1e-4, between_ranks=0.0).holds
    assert not Parity("tp2", 2, "cpu", "gloo", "float32", error=2e-4, allowed=1e-4, between_ranks=0.0).holds
    assert not Parity("tp2", 2, "cpu", "gloo", "float32", error=1e-5, allowed=1e-4, between_ranks=0.1).holds
    assert not Parity("tp2", 2, "cpu", "gloo", "float32", error=float("inf"), allowed=1e-4, between_ranks=0.0).holds


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Every process that is started from here on."""
    processes: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def keep(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        processes.append(start(*arguments, **options))  # type: ignore[call-overload]
        return processes[-1]

    monkeypatch.setattr(rank_processes.subprocess, "Popen", keep)
    return processes


def test_a_rank_that_fails_is_quoted_and_the_others_are_stopped(
    started: list[subprocess.Popen[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stub = tmp_path / "python"
    fails = '*"--modes one "*|*"--rank 2 "*'
    stub.write_text(f'#!/bin/sh\ncase "$*" in {fails}) echo no such plan; exit 3;; esac\nexec sleep 60\n')
    stub.chmod(0o700)
    monkeypatch.setattr(rank_processes.sys, "executable", str(stub))
    assert main(["--modes", "tp4", "--device", "cpu", "--seconds", "60"]) == 1
    assert "ranks [0] of 1 ended with [3]; rank 0 said:\nno such plan" in capsys.readouterr().err
    with pytest.raises(ProcessFailed, match=r"ranks \[2\] of 4 ended with \[3\]; rank 2 said:\nno such plan"):
        shared_gpu._run_group(Degrees(4), "cpu", tmp_path / "four", time.monotonic() + 60)
    assert len(started) == 1 + 4
    assert all(process.returncode is not None for process in started)


def test_a_mode_that_fails_leaves_its_cause_and_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results, stub = tmp_path / "results.jsonl", tmp_path / "python"
    cases = f"""*"--modes tp2 "*"--rank 0 "*) cp {results} {tmp_path}/before; echo peer is gone; exit 3;;
*"--modes tp2 "*) echo an illegal memory access; kill -SEGV $$;;
*"--modes tp2xcfg "*) exit 5;;"""
    stub.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}\nesac\nexec {sys.executable} "$@"\n')
    stub.chmod(0o700)
    monkeypatch.setattr(rank_processes.sys, "executable", str(stub))
    monkeypatch.setattr(rank_processes, "_FAILING_S", PATIENCE_S)  # all of a group fail, one of them perhaps late
    assert main(["--modes", "one,tp2,tp2xcfg", "--device", "cpu", "--seconds", "500", "--json", str(results)]) == 1
    output = capsys.readouterr()
    assert "FAILED: tp2: ranks [0, 1] of 2 ended with [3, -11]; rank 0 said:\npeer is gone" in output.err
    assert "rank 1 said:\nan illegal memory access" in output.err
    assert "FAILED: tp2xcfg: ranks " in output.err, "though another failed before it"
    assert "FAILED, see above: tp2, tp2xcfg" in output.out
    assert (tmp_path / "before").read_text() == results.read_text(), "published before the next mode began"
    assert [json.loads(line)["mode"] for line in results.read_text().splitlines()] == ["one"] * 3


def test_ranks_that_hang_say_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline has passed as soon as both hang."""
    folder = tmp_path / "ranks"
    (tmp_path / "hangs.py").write_text(
        "import os, time\nfrom bench.measure.arguments import end_with\n"
        "def wait_for_nothing():\n    print(os.environ['GLOO_SOCKET_IFNAME'], flush=True)\n    time.sleep(600)\n"
        "    return 0\nend_with(wait_for_nothing)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)

    def now() -> float:
        logs = [folder / f"rank{rank}.log" for rank in range(2)]
        return time.monotonic() + all(log.exists() and "\n" in log.read_text() for log in logs) * 10 * PATIENCE_S

    monkeypatch.setattr(rank_processes, "time", SimpleNamespace(monotonic=now, sleep=time.sleep))
    monkeypatch.setattr(rank_processes, "_LAST_WORDS_S", PATIENCE_S)
    with pytest.raises(ProcessFailed, match=r"ranks \[0, 1\] of 2 were not done in time") as failed:
        rank_processes.run_ranks("hangs", [], 2, folder, time.monotonic() + PATIENCE_S)
    first, second = str(failed.value).split("rank 0 said:")[1].split("rank 1 said:")
    for said in (first, second):
        assert "in wait_for_nothing" in said
        assert said.splitlines()[1] in ("lo", "lo0")


def test_gloo_takes_the_interface_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert rank_processes._environment()["GLOO_SOCKET_IFNAME"] == "eth7"


def test_impossible_modes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--modes", "tp2,tp2xsp4"])
    assert (
        "must be of one, cfg, sp2, sp2xcfg, sp4, tp2, tp2xcfg, tp2xsp2, tp4, got tp2,tp2xsp4" in capsys.readouterr().err
    )


def test_ranks_that_are_not_done_in_time_are_stopped(started: list[subprocess.Popen[bytes]]) -> None:
    with pytest.raises(ProcessFailed, match="not done in time"):
        list(compare([Degrees(2)], "cpu", seconds=0.3))
    assert all(process.returncode is not None for process in started)


def test_a_rank_ends_when_whoever_started_it_is_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.shared_gpu", "--modes", "tp2", "--rank", "1", "--device", "cpu"]
    command += ["--folder", str(tmp_path), "--seconds", "280"]  # waits for rank 0, which nobody starts
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while not (tmp_path / "store").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=120) == 1
    finally:
        process.kill()
        process.wait()
