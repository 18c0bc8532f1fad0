"""Counting processes, and waiting for what happens to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from launcher import AsyncClient, Client

# For whatever takes seconds on an idle machine, where twenty other processes want its cores too. Nothing waits for so
# long unless it fails; pytest's own timeout for a test is longer.
PATIENCE_S = 240.0
ROOT = Path(__file__).parents[2]
# What ends a process that nothing else has ended comes after all patience, so that tests notice, and a command or a
# front-end that others keep from the cores ends in order nevertheless. Nor does a command say that loading takes long.
NO_FALLBACKS = f"""
import sys
if "_rank" in sys.orig_argv:
    from launcher.ranks import worker
    worker._HEARD_S = worker._ORDERS_S = {10 * PATIENCE_S}
elif {{"launcher", "-c"}} & {{*sys.orig_argv}} and "_http" not in sys.orig_argv:
    from launcher import processes as process
    process.ORDERLY_S = {10 * PATIENCE_S}
    exit_after = process.exit_after
    process.exit_after = lambda _: exit_after({10 * PATIENCE_S})
if {{"generate", "serve"}} & {{*sys.orig_argv}}:
    from launcher.cli import progress
    progress.LINE_S = {10 * PATIENCE_S}
"""
# What is started runs before it is known that it does, as on a machine with much else to do.
SLOW_START = """
import subprocess, time
class Process(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        for _ in range(20):
            time.sleep(0.05)
subprocess.Popen = Process
"""
HOLLOW_RANKS = """
import sys
if "_rank" in sys.orig_argv:
    from tests.launcher.hollow_rank import replace_engine
    replace_engine()
"""


def wait_until(happened: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Look until it has happened; fail after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s:g} s"
        time.sleep(0.02)


def memory_of(process: psutil.Process) -> int:
    """The bytes of a process that are no file's: a library's become its own when others that use the same end."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return sum(int(status.partition(f"\n{name}:")[2].split()[0]) << 10 for name in ("RssAnon", "VmSwap"))


def is_stopped(process: psutil.Process) -> bool:
    """Whether all its threads stand still: those of one that was sent SIGSTOP run on for a moment."""
    return all(psutil.Process(thread.id).status() == psutil.STATUS_STOPPED for thread in process.threads())


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """One whose name is short enough for those of the unix sockets in it, wherever temporary files are."""
    return tempfile.TemporaryDirectory(prefix="krea2-test-", dir="/tmp" if len(tempfile.gettempdir()) > 40 else None)


def connect(address: str) -> Client:
    """A client of a server in other processes, which may be slow to answer at first."""
    return Client(address, connect_timeout_s=PATIENCE_S)


def connect_async(address: str, key: Path | None = None) -> AsyncClient:
    return AsyncClient(address, connect_timeout_s=PATIENCE_S, key=key)


def new_marked(folder: Path) -> Marked:
    """With the environment of the tests, but for what they set for themselves."""
    environment = dict(os.environ) | {"TMPDIR": str(folder), "KREA2_TEST_MARK": uuid.uuid4().hex}
    environment.pop("OMP_NUM_THREADS", None)
    marked = Marked(environment, folder)
    marked.run_first(NO_FALLBACKS)
    return marked


def read_log(file: Path) -> list[dict[str, Any]]:
    """The entries of a server's log so far: whoever reads while a line is written may find a part of it."""
    lines = file.read_bytes().splitlines(keepends=True)  # of a character too
    return [json.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"\n")]


def without_logs(stderr: str) -> str:
    """What a server printed, but for its logs: a json object a line."""
    return "".join(line for line in stderr.splitlines(keepends=True) if not line.startswith('{"time":'))


@dataclass
class Marked:
    """Processes that have a mark in their environment, inherited by their children, wherever these move."""

    environment: dict[str, str]
    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *command: str, **options: object) -> subprocess.Popen[str]:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, env=self.environment, text=True, **(streams | options))  # type: ignore[call-overload]
        self.started.append(process)
        return process  # type: ignore[no-any-return]

    def run_first(self, code: str) -> None:
        """Have processes that are started from now on run this, after what they were to run first before."""
        folder = self.folder / "first"
        folder.mkdir(exist_ok=True)
        with (folder / "sitecustomize.py").open("a") as file:
            file.write(code)
        others = self.environment.get("PYTHONPATH", "").split(os.pathsep)
        paths = dict.fromkeys((str(folder), str(ROOT), *others))
        self.environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)

    def use_hollow_ranks(self) -> None:
        """Let ranks that are started from now on compute nothing: see `hollow_rank`."""
        self.run_first(HOLLOW_RANKS)

    def start_krea2(self, *arguments: str, **options: object) -> subprocess.Popen[str]:
        return self.start(sys.executable, "-m", "launcher", *arguments, **options)

    def run_krea2(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        process = self.start_krea2(*arguments)
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
        return process.returncode, stdout, stderr

    def start_script(self, script: str) -> subprocess.Popen[str]:
        return self.start(sys.executable, "-c", script)

    def alive(self, role: str = "") -> list[psutil.Process]:
        """The processes that live, those of one role (`_rank`, `_frontend`) if it is given."""
        mark = self.environment["KREA2_TEST_MARK"]
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("KREA2_TEST_MARK") != mark or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if not role or role in process.cmdline():
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def rank(self, index: int) -> psutil.Process:
        """A process of the newest rank group; ranks are started in order."""
        return sorted(self.alive("_rank"), key=lambda process: process.create_time())[index]

    def wait_for(self, role: str, count: int) -> list[psutil.Process]:
        found: list[psutil.Process] = []

        def are_there() -> bool:
            found[:] = self.alive(role)
            return len(found) == count

        wait_until(are_there, f"{count} processes {role}")
        return found

    def expect_nothing_left(self) -> None:
        """Fail unless all processes and run folders go."""
        wait_until(lambda: not self.alive(), "the end of all processes")
        wait_until(lambda: not list(self.folder.glob("krea2-*")), "the removal of the run folder")

    def kill(self) -> None:
        """End all processes, those that others start meanwhile too."""
        wait_until(lambda: not self._kill_alive(), "the end of all processes")
        for started in self.started:
            started.wait(PATIENCE_S)
            for pipe in (started.stdout, started.stderr):
                if pipe is not None:
                    pipe.close()

    def _kill_alive(self) -> int:
        """Kill those that live. Returns how many these were."""
        alive = self.alive()
        for process in alive:
            with suppress(psutil.NoSuchProcess):  # it ended with one that was killed just before
                process.kill()
        return len(alive)
