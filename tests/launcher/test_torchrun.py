"""The same program under torchrun, whose processes are the ranks."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import RankError
from launcher import Client
from tests.launcher.processes import PATIENCE_S, Marked

PROMPT = "a red circle on a blue background"


def torchrun(marked: Marked, processes: int, *arguments: str) -> subprocess.Popen[str]:
    return marked.start(
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
        "-m", "launcher", *arguments,
    )  # fmt: skip


@pytest.mark.parametrize("mode", [(), ("--sp", "2"), ("--cfg-parallel",)])
def test_generate_writes_the_picture_that_spawned_ranks_write(
    marked: Marked, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    arguments = ("generate", PROMPT, "--device", "cpu", "--seed", "1", "--steps", "4", "--output")
    process = torchrun(marked, 2, *arguments, str(tmp_path / "torchrun.png"), *mode)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (0, f"{tmp_path}/torchrun.png\n"), stderr
    marked.expect_nothing_left()
    spawned = marked.start_krea2(*arguments, str(tmp_path / "spawned.png"))
    assert spawned.wait(PATIENCE_S) == 0
    pictures = [np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("torchrun", "spawned")]
    assert abs(pictures[0] - pictures[1]).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", "3"], "error: width must be between 64 and 4096, got 3"),
        (["--tp", "4"], "error: tp · sp must be 2, the number of processes that torchrun started, got 4 · 1"),
        (["--sp", "4"], "error: tp · sp must be 2, the number of processes that torchrun started, got 1 · 4"),
        (
            ["--sp", "2", "--cfg-parallel"],
            "error: tp · sp · 2 must be 2, the number of processes that torchrun started, got 1 · 2 · 2",
        ),
    ],
)
def test_a_mistake_is_told_once(marked: Marked, arguments: list[str], message: str) -> None:
    process = torchrun(marked, 2, "generate", "x", *arguments)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    assert stdout == ""
    assert [line for line in stderr.splitlines() if line.startswith("error:")] == [message]
    marked.expect_nothing_left()


def test_info_is_printed_once(marked: Marked) -> None:
    stdout, stderr = torchrun(marked, 2, "info", "demo").communicate(timeout=PATIENCE_S)
    assert stdout.count("Krea 2 Turbo") == 1, stderr
    marked.expect_nothing_left()


def test_a_rank_that_is_killed_fails_the_requests_that_wait(marked: Marked) -> None:
    process = torchrun(marked, 2, "serve", "--no-http", "--device", "cpu")
    assert process.stdout is not None
    address = process.stdout.readline().strip().removeprefix("rpc: ")
    with Client(address) as client:
        stream = client.stream(PROMPT, steps=200, num_images=10, width=512, height=512)
        next(stream)
        victim = next(rank for rank in marked.alive("launcher") if rank.environ().get("RANK") == "1")
        victim.kill()
        with pytest.raises(RankError, match="rank 1 died"):
            list(stream)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    assert "error: rank 1 died" in stderr.splitlines()
    marked.expect_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_torchrun_ends_everything_in_order(marked: Marked, number: signal.Signals) -> None:
    process = torchrun(marked, 2, "serve", "--no-http", "--device", "cpu")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("rpc: ")
    process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    assert "error:" not in stderr
    marked.expect_nothing_left()
