"""How it ends: with the error of the one who failed, and with no process and no file left.

Ranks are hollow where it does not matter what they do: their processes are real, but start without torch.
"""

from __future__ import annotations

import os
import pty
import shutil
import signal
import sys
import termios
from pathlib import Path

import pytest

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.errors import ServerError
from tests.launcher.processes import PATIENCE_S, Marked, connect, wait_until, without_logs

LONG = """
from launcher import launch
with launch(device="cpu", tp={tp}) as client:
    for event in client.stream("a red circle", steps=200, num_images=10):
        print(type(event).__name__, flush=True)
"""

CPP_ERROR = """terminate called after throwing an instance of 'c10::DistBackendError'
  what():  [Rank 0] watchdog thread terminated with exception: CUDA error: an illegal memory access was encountered
CUDA kernel errors might be asynchronously reported at some other API call.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.

Exception raised from c10_cuda_check_implementation at CUDAException.cpp:44 (most recent call first):
""" + "".join(f"frame #{i}: <unknown function> + 0x{i} (0x7f{i} in libc10.so)\n" for i in range(40))

FAKE_TORCH = {
    "hangs": "import threading; threading.Event().wait()",
    "raises": "raise RuntimeError('no torch\\nfor you')",
    "exits": "import os, sys; print('my last words', file=sys.stderr, flush=True); os._exit(3)",
    "is killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "aborts": f"import os, sys; sys.stderr.write({CPP_ERROR!r}); sys.stderr.flush(); os.abort()",
    "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
}


REAL_RANKS = pytest.param("real", marks=pytest.mark.slow)


def choose_ranks(marked: Marked, ranks: str) -> None:
    if ranks == "hollow":
        marked.use_hollow_ranks()


def fake_torch(marked: Marked, behaviour: str) -> None:
    """Let ranks find a torch that behaves so, instead of waiting for the real one."""
    folder = marked.folder / "fake"
    folder.mkdir()
    (folder / "torch.py").write_text(FAKE_TORCH[behaviour])
    marked.environment["PYTHONPATH"] = os.pathsep.join((str(folder), marked.environment["PYTHONPATH"]))


def wait_for_progress(process: object) -> None:
    for line in process.stdout:  # type: ignore[attr-defined]
        if line == "Progress\n":
            return
    raise AssertionError(process.communicate()[1])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("raises", "rank 0: RuntimeError: no torch"),
        ("exits", "rank 0 ended with exit code 3: my last words"),
        ("is killed", "rank 0 was killed by SIGKILL (the system does that when memory runs out)"),
        (
            "aborts",
            "rank 0 was killed by SIGABRT: [Rank 0] watchdog thread terminated with exception: CUDA error: an illegal "
            'memory access was encountered: Fatal Python error: Aborted, File "{folder}/fake/torch.py", line 1 in '
            "<module>",
        ),
        (
            "crashes",
            "rank 0 was killed by SIGSEGV: Fatal Python error: Segmentation fault, "
            'File "{folder}/fake/torch.py", line 1 in <module>',
        ),
    ],
)
def test_a_rank_that_cannot_start_ends_the_program_with_its_own_error(
    marked: Marked, behaviour: str, message: str
) -> None:
    fake_torch(marked, behaviour)
    process = marked.start_krea2("generate", "x", "--seed", "0", "--output", str(marked.folder / "x.png"))
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout, stderr) == (1, "", f"error: {message.format(folder=marked.folder)}\n")
    marked.expect_nothing_left()


MUTE_RANK_1 = """
import sys
if "_rank" in sys.orig_argv:
    import threading
    from engine.parallel import distributed
    try_groups = distributed.try_groups
    def mute(mesh, *arguments):
        if mesh.world.rank == 1:
            threading.Event().wait()
        try_groups(mesh, *arguments)
    distributed.try_groups = mute
    distributed.connect_mesh.__kwdefaults__["check_s"] = 5.0
"""


def test_ranks_that_cannot_talk_end_the_program_before_anything_is_loaded(marked: Marked) -> None:
    marked.run_first(MUTE_RANK_1)
    words = ("--model", "demo", "--device", "cpu", "--seed", "0", "--sp", "2", "--output", str(marked.folder / "x.png"))
    code, stdout, stderr = marked.run_krea2("generate", "x", *words)
    assert (code, stdout) == (1, "")
    reason = "over gloo was not done within 5 s; GLOO_SOCKET_IFNAME is the network interface by which ranks reach"
    # whichever is heard first: the rank that waited, or the one that was mute
    assert stderr.startswith(("error: the first all_reduce of the world group, ranks 0, 1, ", "error: connecting "))
    assert reason in stderr
    assert stderr.count("\n") == 1
    marked.expect_nothing_left()


def test_a_rank_that_never_gets_ready_is_given_up(marked: Marked) -> None:
    fake_torch(marked, "hangs")
    process = marked.start_krea2("generate", "x", "--seed", "0", "--tp", "2", "--start-timeout", "1.5")
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (1, "")
    assert stderr == "error: rank 0 and 1 were not ready within 1.5 s\n"
    marked.expect_nothing_left()


# Of one rank: a rank reads and refuses its files alone at any degree; the other case has it.
# test_a_rank_that_fails_ends_everything_with_its_own_error has its way to the front-end.
@pytest.mark.parametrize("tp", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_a_damaged_checkpoint_is_named_by_the_rank_that_finds_it(marked: Marked, tp: str) -> None:
    folder = marked.folder / "damaged"
    shutil.copytree(DEMO_CHECKPOINT, folder)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    process = marked.start_krea2("generate", "x", "--model", str(folder), "--tp", tp, "--device", "cpu", "--seed", "0")
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (2, "")
    assert stderr.startswith(f"error: {file}: ")
    assert stderr.count("\n") == 1
    marked.expect_nothing_left()


def test_a_damaged_tokenizer_is_a_checkpoint_error_in_python(marked: Marked) -> None:
    folder = marked.folder / "damaged"
    shutil.copytree(DEMO_CHECKPOINT, folder)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    marked.use_hollow_ranks()
    process = marked.start_script(f"""
from engine.errors import CheckpointError
from launcher import launch
try:
    with launch({str(folder)!r}, device="cpu"):
        print("started")
except CheckpointError as error:
    print(error, error.exit_code)
""")
    stdout, _ = process.communicate(timeout=PATIENCE_S)
    assert stdout.startswith(f"{folder}/tokenizer/tokenizer.json: is not a tokenizer that can be read")
    assert stdout.endswith(" 2\n")
    marked.expect_nothing_left()


@pytest.mark.skipif(sys.platform == "darwin", reason="no CUDA there, but other words for that")
def test_a_device_that_is_not_there_is_an_argument_error(marked: Marked) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    process = marked.start_krea2("generate", "x", "--device", "cuda", "--seed", "0")
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (2, "")
    assert stderr == "error: device cuda is not available: torch finds no CUDA device\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_loading_leaves_nothing(marked: Marked, number: signal.Signals, code: int) -> None:
    fake_torch(marked, "hangs")
    process = marked.start_krea2("generate", "x", "--seed", "0", "--tp", "2")
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
        "generate", "x", "--seed", "0", "--device", "cpu", "--tp", "2", "--steps", "200", "--num-images", "10",
        "--output", str(marked.folder / "x.png"), stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    while b"denoising" not in shown:
        shown += os.read(controller, 1000)
    process.send_signal(number)
    stdout, _ = process.communicate(timeout=PATIENCE_S)
    os.close(controller)
    assert b"loading" in shown
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


@pytest.mark.parametrize("stdout", ["full", "closed"])
def test_a_server_that_cannot_print_its_address_ends_with_one_error(marked: Marked, stdout: str) -> None:
    marked.use_hollow_ranks()
    if stdout == "full":
        if not os.path.exists("/dev/full"):
            pytest.skip("there is no /dev/full")
        output, reason = os.open("/dev/full", os.O_WRONLY), "No space left on device"
    else:
        reader, output = os.pipe()
        os.close(reader)
        reason = "Broken pipe"
    server = marked.start_krea2("serve", "--no-http", "--device", "cpu", stdout=output)
    os.close(output)
    _, stderr = server.communicate(timeout=PATIENCE_S)
    message = f"error: the server's address cannot be written to stdout: {reason}\n"
    assert (server.returncode, without_logs(stderr)) == (1, message)
    marked.expect_nothing_left()


STOPPED = """
import signal
from engine.errors import ServerError
from launcher import launch
from launcher.setup import launch as spawn
wait = spawn._FrontendProcess.wait_until_started
def wait_and_stop(frontend):
    address = wait(frontend)
    frontend._child.send_signal(signal.SIGTERM)
    frontend._child.wait({patience})
    return address
{patch}
try:
    with launch(device="cpu", tp=1):
        print("started")
except ServerError as error:
    print(error)
"""


def test_a_front_end_that_is_stopped_before_its_client_connects_says_so(marked: Marked) -> None:
    marked.use_hollow_ranks()
    patch = "spawn._FrontendProcess.wait_until_started = wait_and_stop"
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
        process = marked.start_krea2("generate", "x", "--seed", "0", "--tp", "2")
    marked.wait_for("_rank", 2)
    (frontend,) = marked.wait_for(role, 1)
    frontend.kill()
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


def test_the_engine_does_not_import_what_lies_in_the_working_folder(marked: Marked, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('the wrong torch')")
    process = marked.start(
        str(Path(sys.executable).with_name("krea2")), "generate", "x", "--device", "cpu", "--steps", "1", cwd=tmp_path
    )
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (0, "krea2.png\n"), stderr
    assert (tmp_path / "krea2.png").exists()
