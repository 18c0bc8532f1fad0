"""What the command line does whatever the subcommand is."""

from __future__ import annotations

import os
import signal
import sys

import click
import pytest

import engine
from launcher.cli.main import commands
from tests.launcher.conftest import Krea2
from tests.launcher.processes import PATIENCE_S, Marked


def test_the_process_ends_with_that_line_and_that_code(marked: Marked) -> None:
    files = list(marked.folder.iterdir())
    message = "error: --width must be between 64 and 4096, got 100000\n"
    assert marked.run_krea2("generate", "x", "--width", "100000") == (2, "", message)
    assert list(marked.folder.iterdir()) == files


def test_a_signal_while_python_ends_leaves_no_traceback(marked: Marked) -> None:
    """Nobody is left then to catch what unwinds a command."""
    program = (
        "import atexit, os, signal, sys; from launcher.cli.main import run; "
        "atexit.register(os.kill, os.getpid(), signal.SIGINT); sys.argv = ['krea2', '--version']; run()"
    )
    process = marked.start(sys.executable, "-c", program)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stderr) == (-signal.SIGINT, "")


STOPPED_IN_A_CALLBACK = """
import os, signal, sys, threading, weakref
from launcher.cli import main
class Thing: pass
def stop(_): os.kill(os.getpid(), signal.SIGTERM)
def command(*_, **__):
    thing = Thing()
    reference = weakref.ref(thing, stop)
    del thing
    threading.Event().wait({patience})
main.commands.main = command
main.run()
"""


def test_a_signal_where_no_exception_gets_out_stops_all_the_same(marked: Marked) -> None:
    """As in the callbacks of weak references that an import has."""
    process = marked.start_script(STOPPED_IN_A_CALLBACK.format(patience=PATIENCE_S))
    assert process.communicate(timeout=PATIENCE_S) == ("", "")
    assert process.returncode == 128 + signal.SIGTERM


def test_every_option_is_explained() -> None:
    for name, command in commands.commands.items():
        unexplained = [option.name for option in command.params if isinstance(option, click.Option) and not option.help]
        assert not unexplained, name


def test_version_and_help(krea2: Krea2) -> None:
    assert krea2("--version")[:2] == (0, f"krea2, version {engine.__version__}\n")
    code, stdout, _ = krea2("generate", "--help")
    assert code == 0
    assert "--negative-prompt" in stdout
    code, stdout, stderr = krea2()
    assert (code, stdout) == (2, "")
    assert "Commands:" in stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve", "--port", "١٢"),
        ("serve", "--max-body-bytes", "１２"),
        ("serve", "--drain-s", "١"),
        ("serve", "--rpc", "tcp://127.0.0.1:１２"),
        ("generate", "x", "--width", "٥١٢"),
        ("generate", "x", "--guidance", "١.٥"),
        ("generate", "x", "--tp", "١"),
        ("generate", "x", "--start-timeout", "١٠"),
        ("generate", "x", "--limit", "max_steps=١٢"),
        ("generate", "x", "--memory-budget", "١٢GB"),
        ("generate", "x", "--lora", "demo-outlined:١"),
        ("info", "demo", "--gpus", "٢"),
    ],
)
def test_digits_are_those_of_ascii(krea2: Krea2, arguments: tuple[str, ...]) -> None:
    code, stdout, stderr = krea2(*arguments)
    assert (code, stdout) == (2, "")
    assert arguments[-1].rpartition("=")[2] in stderr


@pytest.mark.parametrize("command", ["keys", "info", "generate"])
def test_a_full_disk_behind_stdout_is_named(marked: Marked, command: str) -> None:
    arguments = {
        "keys": (str(marked.folder / "keys"),),
        "info": ("demo",),
        "generate": ("a circle", "--seed", "0", "--device", "cpu", "--output", str(marked.folder / "x.png")),
    }
    marked.use_hollow_ranks()
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    with open("/dev/full", "w") as full:
        process = marked.start_krea2(command, *arguments[command], stdout=full)
        _, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stderr) == (1, "error: stdout cannot be written: No space left on device\n")
