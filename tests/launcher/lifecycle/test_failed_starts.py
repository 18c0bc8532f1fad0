"""Programs that cannot start: they end with the error of the one who failed, and leave nothing."""

from __future__ import annotations

import os
import shutil
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from tests.launcher.lifecycle.broken_torch import fake_torch
from tests.launcher.processes import PATIENCE_S, Marked, without_logs


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("raises", "rank 0: RuntimeError: no torch"),
        ("exits", "rank 0 ended with exit code 3: my last words"),
        (
            "is killed",
            "rank 0 was killed by SIGKILL, by somebody, or by the kernel because memory ran out (it had up to 0.?? GB, "
            "and there are *.?? GB)",
        ),
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
    process = marked.start_krea2("generate", "a circle", "--seed", "0", "--output", str(marked.folder / "x.png"))
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (1, "")
    expected = f"error: {message.format(folder=marked.folder)}\n"
    assert fnmatchcase(stderr, expected.replace("[", "[[]"))
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
    distributed.CHECK_S = 5.0
"""


def test_ranks_that_cannot_talk_end_the_program_before_anything_is_loaded(marked: Marked) -> None:
    marked.run_first(MUTE_RANK_1)
    words = ("--model", "demo", "--device", "cpu", "--seed", "0", "--sp", "2", "--output", str(marked.folder / "x.png"))
    code, stdout, stderr = marked.run_krea2("generate", "a circle", *words)
    assert (code, stdout) == (1, "")
    reason = "over gloo was not done within 5 s; GLOO_SOCKET_IFNAME is the network interface by which ranks reach"
    # whichever is heard first: the rank that waited, or the one that was mute
    assert stderr.startswith(("error: the first all_reduce of the world group, ranks 0, 1, ", "error: connecting "))
    assert reason in stderr
    assert stderr.count("\n") == 1
    marked.expect_nothing_left()


def test_a_rank_that_never_gets_ready_is_given_up(marked: Marked) -> None:
    fake_torch(marked, "hangs")
    process = marked.start_krea2("generate", "a circle", "--seed", "0", "--tp", "2", "--start-timeout", "1.5")
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (1, "")
    longer = "a slow disk, or a large model, needs a longer --start-timeout"
    assert stderr == f"error: ranks 0 and 1 were not ready within 1.5 s: {longer}\n"
    marked.expect_nothing_left()


# Of one rank: a rank reads and refuses its files alone at any degree; the other case has it.
# test_a_rank_that_fails_ends_everything_with_its_own_error has its way to the front-end.
@pytest.mark.parametrize("tp", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_a_damaged_checkpoint_is_named_by_the_rank_that_finds_it(marked: Marked, tp: str) -> None:
    folder = marked.folder / "damaged"
    shutil.copytree(DEMO_CHECKPOINT, folder)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    process = marked.start_krea2(
        "generate", "a circle", "--model", str(folder), "--tp", tp, "--device", "cpu", "--seed", "0"
    )
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


SIGNALS_AT_THE_END = """
import sys
if "serve" in sys.orig_argv:
    import os, signal
    from launcher import awake
    run = awake.run
    def run_and_interrupt(main):
        try:
            run(main)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(os.getpid(), number)
    awake.run = run_and_interrupt
"""


def test_a_signal_that_comes_when_a_start_has_failed_leaves_nothing_either(marked: Marked) -> None:
    folder = marked.folder / "damaged"
    shutil.copytree(DEMO_CHECKPOINT, folder)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    marked.use_hollow_ranks()
    marked.run_first(SIGNALS_AT_THE_END)
    code, _, stderr = marked.run_krea2("serve", "--no-http", "--device", "cpu", "--model", str(folder))
    assert code == 2, stderr
    assert without_logs(stderr).startswith(f"error: {folder}/tokenizer/tokenizer.json: is not a tokenizer")
    marked.expect_nothing_left()


@pytest.mark.skipif(sys.platform == "darwin", reason="no CUDA there, but other words for that")
def test_a_device_that_is_not_there_is_an_argument_error(marked: Marked) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    process = marked.start_krea2("generate", "a circle", "--device", "cuda", "--seed", "0")
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (2, "")
    assert stderr.startswith("error: --device cuda is not available: ")
    assert "--device cpu does without" in stderr


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


def test_the_engine_does_not_import_what_lies_in_the_working_folder(marked: Marked, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('the wrong torch')")
    process = marked.start(
        str(Path(sys.executable).with_name("krea2")),
        "generate",
        "a circle",
        "--device",
        "cpu",
        "--steps",
        "1",
        cwd=tmp_path,
    )
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (0, "krea2.png\n"), stderr
    assert (tmp_path / "krea2.png").exists()
