"""torchrun over several machines, which are torchruns on this one: they share no run folder and no parent."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

import launcher
from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.errors import RankError
from launcher import Client
from launcher.ranks.torchrun import ExternalRanks, tp_warning
from tests.launcher.processes import PATIENCE_S, Marked, connect

PROMPT = "a red circle on a blue background"


def free_port() -> int:
    """One that no other process gets meanwhile by asking for any: those are from 32768 on."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def torchruns(
    marked: Marked, *arguments: str, processes: int = 1, folders: tuple[Path, Path] = (Path(), Path())
) -> list[subprocess.Popen[str]]:
    """One for each of two machines, with the working folders there."""
    port = free_port()
    return [
        marked.start(
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(machine),
            "--nproc-per-node", str(processes), "--master-addr", "127.0.0.1", "--master-port", str(port),
            "-m", "launcher", *arguments, cwd=folder,
        )
        for machine, folder in enumerate(folders)
    ]  # fmt: skip


def serve(marked: Marked) -> tuple[list[subprocess.Popen[str]], str]:
    """Two torchruns with a server over both, and its address."""
    nodes = torchruns(marked, "serve", "--no-http", "--device", "cpu", "--sp", "2")
    stdout = nodes[0].stdout
    assert stdout is not None
    return nodes, stdout.readline().strip().removeprefix("rpc: ")


def rank(marked: Marked, number: int) -> psutil.Process:
    return next(process for process in marked.alive("launcher") if process.environ().get("RANK") == str(number))


def ends(nodes: list[subprocess.Popen[str]]) -> list[tuple[int, list[str]]]:
    """Exit code and errors of ours, of each torchrun."""
    outputs = [node.communicate(timeout=PATIENCE_S)[1] for node in nodes]
    return [
        (node.returncode, [line for line in output.splitlines() if line.startswith("error:")])
        for node, output in zip(nodes, outputs, strict=True)
    ]


def expect_the_picture_of_a_single_rank(path: Path, client: Client) -> None:
    alone = client.generate(PROMPT, seed=1, steps=4).images[0]
    assert abs(np.asarray(Image.open(path)).astype(int) - np.asarray(alone)).max() <= 1


def test_ranks_on_two_machines_make_the_picture_of_a_single_rank(
    marked: Marked, client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "two.png"
    arguments = ("generate", PROMPT, "--device", "cpu", "--seed", "1", "--steps", "4", "--output", str(path))
    nodes = torchruns(marked, *arguments, "--sp", "2")
    assert ends(nodes) == [(0, []), (0, [])]
    marked.expect_nothing_left()
    expect_the_picture_of_a_single_rank(path, client)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [("--tp", "2", "--sp", "2"), ("--sp", "2", "--cfg-parallel"), ("--tp", "4")])
def test_several_ranks_on_each_machine_make_it_too(
    marked: Marked, client: Client, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    path = tmp_path / "two.png"
    arguments = ("generate", PROMPT, "--device", "cpu", "--seed", "1", "--steps", "4", "--output", str(path))
    nodes = torchruns(marked, *arguments, *mode, processes=2)
    outputs = [node.communicate(timeout=PATIENCE_S)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert outputs[0].count("warning: tp 4 with 4 ranks on 2 machines") == (mode == ("--tp", "4"))
    marked.expect_nothing_left()
    expect_the_picture_of_a_single_rank(path, client)


# In the fast run: test_torchrun kills a rank of torchrun's, and test_the_front_end_learns_that_a_lifeline_is_broken has
# the lifeline of another machine and this error.
@pytest.mark.slow
def test_a_rank_that_is_killed_on_another_machine_fails_the_requests_that_wait(marked: Marked) -> None:
    nodes, address = serve(marked)
    with connect(address) as client:
        stream = client.stream(PROMPT, steps=200, num_images=10, width=512, height=512)
        next(stream)
        rank(marked, 1).kill()
        with pytest.raises(RankError, match="rank 1 died"):
            list(stream)
    (code, errors), (code_there, errors_there) = ends(nodes)
    assert code != 0
    assert code_there != 0
    assert (errors, errors_there) == (["error: rank 1 died, or its machine cannot be reached"], [])
    marked.expect_nothing_left()


@pytest.mark.slow
def test_a_machine_that_falls_silent_is_noticed(marked: Marked) -> None:
    nodes, address = serve(marked)
    with connect(address) as client:
        stream = client.stream(PROMPT, steps=200, num_images=10, width=512, height=512)
        next(stream)
        rank(marked, 1).suspend()  # connections stay open, and nothing comes
        with pytest.raises(RankError, match="rank 1 died, or its machine cannot be reached"):
            list(stream)
    nodes[0].communicate(timeout=PATIENCE_S)
    rank(marked, 1).resume()
    ends(nodes[1:])
    marked.expect_nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank 0", "front-end", "torchrun"])
def test_both_machines_end_when_the_first_loses(marked: Marked, victim: str) -> None:
    nodes, _ = serve(marked)
    if victim == "rank 0":
        rank(marked, 0).kill()
    elif victim == "front-end":
        agents = {node.pid for node in nodes}
        others = [process for process in marked.alive("launcher") if process.pid not in agents]
        next(process for process in others if "RANK" not in process.environ()).kill()
    else:
        nodes[0].kill()
    (code, _), (code_there, errors_there) = ends(nodes)
    assert code != 0
    assert (code_there == 0) == (victim == "torchrun")  # whose ranks end in order
    assert errors_there == []
    marked.expect_nothing_left()


@pytest.mark.slow
def test_a_signal_to_the_first_torchrun_ends_both_machines_in_order(marked: Marked) -> None:
    nodes, _ = serve(marked)
    nodes[0].send_signal(signal.SIGINT)
    assert [errors for _, errors in ends(nodes)] == [[], []]
    marked.expect_nothing_left()


@pytest.mark.slow
def test_a_signal_to_the_second_torchrun_ends_both_machines(marked: Marked) -> None:
    nodes, _ = serve(marked)
    nodes[1].send_signal(signal.SIGINT)
    assert ends(nodes)[0][1] == ["error: rank 1 died, or its machine cannot be reached"]
    marked.expect_nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", "3"], "error: --width must be between 64 and 4096, got 3"),
        (["--sp", "4"], "error: --tp · --sp must be 2, the number of processes that torchrun started, got 1 · 4"),
    ],
)
def test_a_mistake_is_told_on_the_first_machine_and_ends_both(
    marked: Marked, arguments: list[str], message: str
) -> None:
    (code, errors), (code_there, errors_there) = ends(torchruns(marked, "generate", "x", *arguments))
    assert errors == [message]
    assert errors_there == []
    assert code != 0
    assert code_there != 0
    marked.expect_nothing_left()


@pytest.mark.slow
def test_a_command_that_needs_no_ranks_ends_on_both(marked: Marked) -> None:
    assert ends(torchruns(marked, "generate", "--help")) == [(0, []), (0, [])]
    marked.expect_nothing_left()


@pytest.mark.slow
def test_a_checkpoint_that_is_missing_on_another_machine_is_said_to_be(marked: Marked, tmp_path: Path) -> None:
    folders = tmp_path / "0", tmp_path / "1"
    for folder in folders:
        folder.mkdir()
    (folders[0] / "model").symlink_to(DEMO_CHECKPOINT)
    marked.environment["PYTHONPATH"] = str(Path(launcher.__file__).parent.parent)
    (_, errors), _ = ends(torchruns(marked, "generate", "x", "--model", "model", "--sp", "2", folders=folders))
    assert len(errors) == 1
    assert errors[0].startswith("error: rank 1: model")
    marked.expect_nothing_left()


@pytest.mark.parametrize(
    ("tp", "ranks_of_machines", "warns"),
    [
        (1, [1, 1], False),
        (2, [2, 2], False),
        (2, [1, 1], True),
        (4, [2, 2], True),
        (4, [4], False),
        (2, [3, 1], True),
        (2, [2, 1, 1], True),
    ],
)
def test_tensor_parallelism_between_machines_is_warned_of(tp: int, ranks_of_machines: list[int], warns: bool) -> None:
    machines, (local, *_) = len(ranks_of_machines), ranks_of_machines
    warning = tp_warning(tp, ExternalRanks(sum(ranks_of_machines), local, machines, "folder", "host"))
    assert (warning is not None) == warns
    if warning is not None:
        assert warning.startswith(f"tp {tp} with {sum(ranks_of_machines)} ranks on {machines} machines")
        assert "--sp" in warning
        assert "--cfg-parallel" in warning
