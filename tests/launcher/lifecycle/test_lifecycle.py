"""How it ends, by a signal, an exception or a kill: with no process and no file left.

Ranks are hollow where it does not matter what they do: their processes are real, but start without torch.
"""

from __future__ import annotations

import os
import pty
import signal
import sys
import termios

import pytest

from engine.errors import ServerError
from tests.launcher.lifecycle.broken_torch import fake_torch
from tests.launcher.processes import PATIENCE_S, Marked, connect, wait_until, without_logs

LONG = """
from launcher import launch
with launch(device="cpu", tp={tp}) as client:
    for event in client.stream("a red circle", steps=200, num_images=10):
        print(type(event).__name__, flush=True)
"""
REAL_RANKS = pytest.param("real", marks=pytest.mark.slow)


def choose_ranks(marked: Marked, ranks: str) -> None:
    if ranks == "hollow":
        marked.use_hollow_ranks()


def wait_for_progress(process: object) -> None:
    for line in process.stdout:  # type: ignore[attr-defined]
        if line == "Progress\n":
            return
    raise AssertionError(process.communicate()[1])  # type: ignore[attr-defined]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_loading_leaves_nothing(marked: Marked, number: signal.Signals, code: int) -> None:
    fake_torch(marked, "hangs")
    process = marked.start_krea2("generate", "a circle", "--seed", "0", "--tp", "2")
    marked.wait_for("_rank", 2)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout, stderr) == (code, "", "")
    assert not marked.alive()  # it has waited for all of them
    marked.expect_nothing_left()


# Of real ranks: test_ctrl_c_in_a_script_leaves_nothing has them.
@pytest.mark.parametrize("ranks", ["hollow", REAL_RANKS])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_denoising_leaves_nothing(marked: Marked, number: signal.Signals, code: int, ranks: str) -> None:
    choose_ranks(marked, ranks)
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (25, 80))
    process = marked.start_krea2(
        "generate", "a circle", "--seed", "0", "--device", "cpu", "--tp", "2", "--steps", "200", "--num-images", "10",
        "--output", str(marked.folder / "x.png"), stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    while b"image 1 of 10" not in shown:
        shown += os.read(controller, 1000)
    process.send_signal(number)
    stdout, _ = process.communicate(timeout=PATIENCE_S)
    os.close(controller)
    assert b"starting" in shown
    assert (process.returncode, stdout) == (code, "")
    assert not marked.alive()
    marked.expect_nothing_left()
    assert not list(marked.folder.glob("x*"))


# Of real ranks: test_nothing_outlives_a_script_that_is_killed has them.
@pytest.mark.parametrize("ranks", ["hollow", REAL_RANKS])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_server_that_gets_a_signal_tells_its_clients_and_leaves_nothing(
    marked: Marked, number: signal.Signals, code: int, ranks: str
) -> None:
    choose_ranks(marked, ranks)
    server = marked.start_krea2("serve", "--no-http", "--device", "cpu", "--drain-s", "0")
    assert server.stdout is not None
    with connect(server.stdout.readline().strip().removeprefix("rpc: ")) as client:
        stream = client.stream("a red circle", steps=200, num_images=10)
        next(stream)
        server.send_signal(number)
        with pytest.raises(ServerError, match="the server was stopped"):
            list(stream)
        with pytest.raises(ServerError, match="the server was stopped"):
            client.status()
    assert without_logs(server.communicate(timeout=PATIENCE_S)[1]) == ""
    assert server.returncode == code
    assert not marked.alive()
    marked.expect_nothing_left()


def test_a_server_whose_terminal_is_closed_leaves_nothing(marked: Marked) -> None:
    marked.use_hollow_ranks()
    address = f"ipc://{marked.folder}/rpc"
    server = marked.start_krea2("serve", "--no-http", "--device", "cpu", "--rpc", address)
    assert server.stdout is not None
    assert server.stdout.readline() == f"rpc: {address}\n"
    server.send_signal(signal.SIGHUP)
    assert without_logs(server.communicate(timeout=PATIENCE_S)[1]) == ""
    assert server.returncode == 129
    assert not (marked.folder / "rpc").exists()
    marked.expect_nothing_left()


def test_a_server_started_with_nohup_outlives_its_terminal(marked: Marked) -> None:
    marked.use_hollow_ranks()
    server = marked.start("nohup", sys.executable, "-m", "launcher", "serve", "--no-http", "--device", "cpu")
    assert server.stdout is not None
    address = server.stdout.readline().strip().removeprefix("rpc: ")
    server.send_signal(signal.SIGHUP)
    with connect(address) as client:
        assert client.ping() >= 0
    server.terminate()
    server.communicate(timeout=PATIENCE_S)
    assert server.returncode == 143
    marked.expect_nothing_left()


STOPPED = """
import signal
from engine.errors import ServerError
from launcher import launch
from launcher.setup.engine_process import EngineProcess
wait = EngineProcess.wait_until_started
def wait_and_stop(engine, on_loading):
    wait(engine, on_loading)
    engine._child.send_signal(signal.SIGTERM)
    engine._child.wait({patience})
{patch}
try:
    with launch(device="cpu", tp=1):
        print("started")
except ServerError as error:
    print(error)
"""


def test_a_front_end_that_is_stopped_before_its_client_connects_says_so(marked: Marked) -> None:
    marked.use_hollow_ranks()
    patch = "EngineProcess.wait_until_started = wait_and_stop"
    process = marked.start_script(STOPPED.format(patch=patch, patience=PATIENCE_S))
    assert process.communicate(timeout=PATIENCE_S)[0] == "the server was stopped\n"
    marked.expect_nothing_left()


def test_a_front_end_that_is_stopped_while_it_starts_says_so(marked: Marked) -> None:
    fake_torch(marked, "hangs")
    process = marked.start_script(STOPPED.format(patch="", patience=PATIENCE_S))
    wait_until(lambda: bool(list(marked.folder.glob("krea2-*/ranks-0"))), "the front-end's start")
    marked.wait_for("_frontend", 1)[0].terminate()
    assert process.communicate(timeout=PATIENCE_S)[0] == "the server was stopped\n"
    marked.expect_nothing_left()


def test_ctrl_c_in_a_script_leaves_nothing(marked: Marked) -> None:
    process = marked.start_script(LONG.format(tp=2))
    wait_for_progress(process)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=PATIENCE_S)[1]
    marked.expect_nothing_left()


# Of real ranks: test_ctrl_c_in_a_script_leaves_nothing has them.
@pytest.mark.parametrize("ranks", ["hollow", REAL_RANKS])
def test_an_exception_inside_launch_leaves_nothing(marked: Marked, ranks: str) -> None:
    choose_ranks(marked, ranks)
    process = marked.start_script("""
from launcher import launch
with launch(device="cpu", tp=2) as client:
    stream = client.stream("a red circle", steps=200, num_images=10)
    next(stream)
    raise KeyError("mine")
""")
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert stderr.endswith("KeyError: 'mine'\n")
    assert not marked.alive()
    marked.expect_nothing_left()


# By SIGTERM with real ranks: Python does not catch it either, so it is the same to them.
@pytest.mark.parametrize(
    ("number", "ranks"),
    [
        (signal.SIGTERM, "hollow"),
        pytest.param(signal.SIGTERM, "real", marks=pytest.mark.slow),
        (signal.SIGKILL, "real"),
    ],
)
def test_nothing_outlives_a_script_that_is_killed(marked: Marked, number: signal.Signals, ranks: str) -> None:
    choose_ranks(marked, ranks)
    process = marked.start_script(LONG.format(tp=2))
    wait_for_progress(process)
    process.send_signal(number)
    process.wait(PATIENCE_S)
    marked.expect_nothing_left()


@pytest.mark.parametrize("role", ["_frontend", "serve"])
def test_nothing_outlives_a_front_end_that_is_killed(marked: Marked, role: str) -> None:
    fake_torch(marked, "hangs")
    if role == "serve":
        marked.start_krea2("serve", "--no-http", "--tp", "2")
    else:
        process = marked.start_krea2("generate", "a circle", "--seed", "0", "--tp", "2")
    marked.wait_for("_rank", 2)
    wait_until(lambda: bool(list(marked.folder.glob("krea2-*/ranks-0"))), "the front-end's start")
    (frontend,) = marked.wait_for(role, 1)
    frontend.kill()  # once a rank has been told of the run folder, which nobody else is left to remove
    marked.expect_nothing_left()
    if role != "serve":
        assert process.communicate(timeout=PATIENCE_S)[1].startswith("error: the front-end was killed by SIGKILL")


def test_a_front_end_that_is_killed_fails_the_requests_that_wait(marked: Marked) -> None:
    marked.use_hollow_ranks()
    process = marked.start_script(f"""
from engine.errors import ServerError
try:
    {LONG.format(tp=1).strip().replace(chr(10), chr(10) + "    ")}
except ServerError as error:
    print("failed:", error, flush=True)
""")
    wait_for_progress(process)
    marked.wait_for("_frontend", 1)[0].kill()
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert "failed: the front-end was killed by SIGKILL" in stdout, stderr
    marked.expect_nothing_left()
