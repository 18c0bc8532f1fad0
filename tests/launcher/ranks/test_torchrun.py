"""The same program under torchrun, whose processes are the ranks."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from engine.errors import RankError
from launcher import Client
from launcher.ranks.torchrun import ExternalRanks
from tests.launcher.conftest import Krea2
from tests.launcher.processes import PATIENCE_S, Marked, connect

PROMPT = "a red circle on a blue background"


# As NCCL says its version.
TALKING_RANKS = """
import os
if "RANK" in os.environ and "TORCHELASTIC_RUN_ID" in os.environ:
    from launcher.ranks import worker
    serve = worker.serve
    def talk(config):
        os.write(1, b"NCCL version 2.28.9\\n")
        serve(config)
    worker.serve = talk
"""


def torchrun(marked: Marked, processes: int, *arguments: str) -> subprocess.Popen[str]:
    return marked.start(
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
        "-m", "launcher", *arguments,
    )  # fmt: skip


# In other modes: test_torchrun_machines has --sp, and test_two_ranks_make_the_same_picture of test_launch the other.
@pytest.mark.parametrize(
    "mode", [(), *(pytest.param(mode, marks=pytest.mark.slow) for mode in (("--sp", "2"), ("--cfg-parallel",)))]
)
def test_generate_writes_the_picture_that_spawned_ranks_write(
    marked: Marked, client: Client, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    marked.run_first(TALKING_RANKS)
    path = tmp_path / "torchrun.png"
    arguments = ("generate", PROMPT, "--device", "cpu", "--seed", "1", "--steps", "4", "--output", str(path), *mode)
    process = torchrun(marked, 2, *arguments)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (0, f"{path}\n"), stderr
    assert stderr.count("NCCL version 2.28.9") == 2
    marked.expect_nothing_left()
    expected = client.generate(PROMPT, seed=1, steps=4).images[0]
    assert abs(np.asarray(Image.open(path)).astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", "3"], "--width must be between 64 and 4096, got 3"),
        (["--tp", "4"], "--tp · --sp must be 2, the number of processes that torchrun started, got 4 · 1"),
        (["--sp", "4"], "--tp · --sp must be 2, the number of processes that torchrun started, got 1 · 4"),
        (
            ["--sp", "2", "--cfg-parallel"],
            "--tp · --sp · 2 must be 2, the number of processes that torchrun started, got 1 · 2 · 2",
        ),
    ],
)
def test_a_mistake_is_told_by_the_command_that_rank_0_starts(
    krea2: Krea2, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    ranks = ExternalRanks(total=2, local=2, machines=1, run_folder="folder", host="127.0.0.1")
    monkeypatch.setenv("KREA2_EXTERNAL_RANKS", msgspec.json.encode(ranks).decode())
    assert krea2("generate", "x", *arguments) == (2, "", f"error: {message}\n")


@pytest.mark.parametrize("mode", [(), ("--parallel", "auto")])
def test_a_count_of_processes_that_nothing_divides_is_told_as_torchruns(
    krea2: Krea2, monkeypatch: pytest.MonkeyPatch, mode: tuple[str, ...]
) -> None:
    ranks = ExternalRanks(total=3, local=3, machines=1, run_folder="folder", host="127.0.0.1")
    monkeypatch.setenv("KREA2_EXTERNAL_RANKS", msgspec.json.encode(ranks).decode())
    message = "torchrun must start 1, 2 or 4 processes, on all machines together, and started 3"
    assert krea2("generate", "x", *mode) == (2, "", f"error: {message}\n")


def test_a_mistake_is_told_once(marked: Marked) -> None:
    process = torchrun(marked, 2, "generate", "x", "--tp", "4")
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    assert stdout == ""
    told = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert told == ["error: --tp · --sp must be 2, the number of processes that torchrun started, got 4 · 1"]
    marked.expect_nothing_left()


def test_info_is_printed_once(marked: Marked) -> None:
    """By rank 0 of the processes that torchrun starts, as their environment says."""
    shown = []
    for rank in ("0", "1"):
        marked.environment |= {"TORCHELASTIC_RUN_ID": "none", "RANK": rank, "WORLD_SIZE": "2"}
        code, stdout, _ = marked.run_krea2("info", "demo")
        assert code == 0
        shown.append(stdout.count("Krea 2 Turbo"))
    assert shown == [1, 0]


def test_a_rank_that_is_killed_fails_the_requests_that_wait(marked: Marked) -> None:
    process = torchrun(marked, 2, "serve", "--no-http", "--device", "cpu")
    assert process.stdout is not None
    address = process.stdout.readline().strip().removeprefix("rpc: ")
    with connect(address) as client:
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


# SIGINT: torchrun hands on either in the same way, and test_a_signal_while_denoising_leaves_nothing sends both.
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_to_torchrun_ends_everything_in_order(marked: Marked, number: signal.Signals) -> None:
    process = torchrun(marked, 2, "serve", "--no-http", "--device", "cpu")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("rpc: ")
    process.send_signal(number)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert "error:" not in stderr
    marked.expect_nothing_left()
