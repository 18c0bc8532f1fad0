"""Child processes that end with their parent, whatever ends it.

A parent keeps the write end of its child's stdin open, and a thread of the child reads it to the end: when the parent
is gone, even by SIGKILL, the kernel closes the pipe and the child ends too. Linux's parent-death signal is no
substitute: it fires when the *thread* that started the child ends, and macOS does not have it.

Children run in a session of their own, so Ctrl-C in a terminal reaches only the program that the user started, which
then stops its children itself.
"""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from engine.device.host_memory import HostMemory, taken_by_children, who_kills
from engine.errors import printable
from launcher.awake import AwakeClock
from launcher.lines import LONGEST
from launcher.logs import log_output
from launcher.messages.encoding import encode

STOP_S = 5.0  # for a child to end after its stdin closed
TERMINATE_S = 1.0  # and then after SIGTERM, before SIGKILL
ORDERLY_S = STOP_S + 2 * TERMINATE_S + 2.0  # for a front-end to stop its ranks and send its last replies
# What stops us; a program started with nohup goes on when its terminal is closed.
SIGNALS = tuple(
    number
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
)
_READ_S = 1.0  # for what a child has said to be read after its end
_CONFIGURE_S = 0.5  # for a child that is to stop to have read its configuration
_TAIL_LINES = 20
# Lines of a C++ error that are not its cause: its stack, and torch's advice.
_NO_CAUSE = (
    "frame #",
    "Exception raised from ",
    "terminate called ",
    "CUDA kernel errors might ",
    "For debugging consider ",
    "Compile with `TORCH_USE_CUDA_DSA`",
    "Search for `cudaError",
)
_ACCESS = re.compile(
    r'\{"time": ?"[^"]*", ?"level": ?"info", ?"event": ?"http"|[0-9TZ:.-]{24} INFO +http '
)  # nor is a request
_ABORTED = "Fatal Python error: Aborted"
# Of the environment, what is for this process alone: secrets, which children get on their stdin if they need them, and
# what systemd wants to hear from the process that it started.
NOT_FOR_CHILDREN = (
    "KREA2_API_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "RAY_AUTH_TOKEN",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
)
_LENGTH = struct.Struct(">I")
_STOP = b"stop"  # the last bytes from a parent that lives on; a dead one sends none

T = TypeVar("T")


# ---- the parent's side


class Child:
    """Runs `python -m launcher ROLE` with `config` as msgpack on its stdin.

    environment: variables besides ours. on_report: called, in a thread, with each frame that the child sends by a
    `Reporter`; without it, stdout goes where stderr goes. echo: what it is called in our log, which then has the lines
    of its output, too; has_log: it writes a log itself, of lines as ours. `tail` keeps the last 20 lines. pass_fds:
    open in the child under the same numbers. Raises `OSError` if the process cannot be started.
    """

    def __init__(
        self,
        role: str,
        config: msgspec.Struct,
        *,
        environment: Mapping[str, str] | None = None,
        echo: str | None = None,
        has_log: bool = False,
        on_report: Callable[[bytes], None] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._fault: list[str] = []  # what Python says of a crash, and where it was
        self._last_words = ""  # before that
        self._exited: Future[None] = Future()  # and its output has been read
        self._process = subprocess.Popen(
            python_command(role),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if on_report is None else subprocess.PIPE,
            start_new_session=True,
            pass_fds=pass_fds,
            env=child_environment() | dict(environment or {}),
        )
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdin is not None
        assert stdout is not None
        self._stdin = stdin
        readers = [_start_thread(self._read_output, stderr or stdout, echo, has_log)]
        if on_report is not None:
            readers.append(_start_thread(_read_frames, stdout, on_report))
        _start_thread(self._watch, readers)
        data = encode(config)
        self._configuring = _start_thread(self._configure, _LENGTH.pack(len(data)) + data)

    def wait(self, timeout_s: float) -> bool:
        """Wait `timeout_s` seconds at most for it to end. Returns whether it has."""
        return bool(wait([self._exited], timeout_s).done)

    def on_exit(self, callback: Callable[[], None]) -> None:
        """Call back, in another thread or at once, when the process has ended and its output has been read."""
        self._exited.add_done_callback(lambda _: callback())

    def describe_exit(self) -> str:
        """Describe in one line how it ended, with where Python crashed or the last line of its output."""
        code = self._process.returncode
        said = [", ".join(self._fault)] if self._fault else []
        if self._last_words and (not said or said[0].startswith(_ABORTED)):  # whoever aborts says why before
            said.insert(0, self._last_words)
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            how = f"was killed by {name}"
            if name == "SIGKILL":
                how += f", {who_kills(taken_by_children(), HostMemory.read())}"
        else:
            how = f"ended with exit code {code}"
        return ": ".join([how, *said])

    def ask_to_stop(self) -> None:
        """Close its stdin, which is what it waits for. Kill it if it does not read its configuration."""
        self._configuring.join(_CONFIGURE_S)
        if self._configuring.is_alive():  # it has begun nothing, and what we write would wait
            self.send_signal(signal.SIGKILL)
            return
        with suppress(BrokenPipeError, ValueError):  # it has ended, or was asked before
            self._stdin.write(_STOP)
            self._stdin.close()

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        self._process.send_signal(number)

    def _configure(self, data: bytes) -> None:
        """Write more than a pipe takes, perhaps, to a process that may not read it."""
        with suppress(BrokenPipeError):  # it ended at once; whoever waits for it hears that
            self._stdin.write(data)
            self._stdin.flush()

    def _read_output(self, output: BinaryIO, echo: str | None, has_log: bool) -> None:
        """Read its output as it comes, and wait for nobody meanwhile: the child would wait for us."""
        with output:
            while line := output.readline(LONGEST):
                said = line.decode(errors="replace").rstrip()
                text = printable(said)
                self.tail.append(text)
                words = text.strip().removeprefix("what():").strip()
                if text.startswith("Fatal Python error:") or (len(self._fault) == 1 and text.startswith("  File ")):
                    self._fault.append(words)
                elif words and not self._fault and not words.startswith(_NO_CAUSE) and not _ACCESS.match(words):
                    self._last_words = words
                if echo is not None:
                    log_output(echo, said, has_log=has_log)

    def _watch(self, readers: list[threading.Thread]) -> None:
        self._process.wait()
        for reader in readers:  # they end with the process, unless it has left children of its own
            AwakeClock().wait(partial(_has_ended, reader), _READ_S)
        self._exited.set_result(None)


def stop_all(children: Sequence[Child], *, patience_s: float = STOP_S) -> None:
    """Ask children to stop. Terminate, then kill, any that have not ended `patience_s` seconds later."""
    for child in children:
        child.ask_to_stop()
    for patience, number in ((patience_s, signal.SIGTERM), (TERMINATE_S, signal.SIGKILL)):
        clock = AwakeClock()
        deadline = clock() + patience
        for child in children:
            if not clock.wait(child.wait, max(0.0, deadline - clock())):
                child.send_signal(number)
    for child in children:
        child.wait(TERMINATE_S)


def python_command(*arguments: str) -> list[str]:
    """Return the command line of a process of ours. -P keeps a file torch.py in the user's folder from being
    imported."""
    return [sys.executable, "-P", "-m", "launcher", *arguments]


def child_environment(*, secrets: bool = False) -> dict[str, str]:
    """Return our environment, such that the child finds this package even in a source tree. secrets: with API keys and
    tokens, for a child that is the command itself."""
    environment = dict(os.environ)
    if not secrets:
        forget_secrets(environment)
    package_root = Path(__file__).resolve().parent.parent
    if package_root.name not in ("site-packages", "dist-packages"):
        paths = [str(package_root), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return environment


def forget_secrets(environment: MutableMapping[str, str]) -> None:
    """Take out of an environment what is not for the processes that an engine consists of."""
    for name in NOT_FOR_CHILDREN:
        environment.pop(name, None)


# ---- the child's side


def read_config(kind: type[T]) -> T:
    """Read the configuration that the parent wrote to our stdin. Raises `EOFError` if the parent ended before."""
    (length,) = _LENGTH.unpack(_read_exactly(0, _LENGTH.size))
    return msgspec.msgpack.decode(_read_exactly(0, length), type=kind)


def watch_parent(on_end: Callable[[bool], None]) -> None:
    """Call `on_end(parent_died)` in a thread when the parent asks us to stop, or is gone."""

    def read_to_end() -> None:
        received = b""
        while data := os.read(0, 64):  # not sys.stdin: its lock would be held when the interpreter ends
            received += data
        on_end(received != _STOP)

    _start_thread(read_to_end)


def exit_after(seconds: float) -> None:
    """End this process after `seconds`, with exit code 1, if it has not ended by itself."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()


class Reporter:
    """Sends messages to the parent's `on_report` over what was stdout. Anything printed goes to stderr from now on."""

    def __init__(self) -> None:
        self._fd = os.dup(1)
        os.dup2(2, 1)

    def send(self, message: msgspec.Struct) -> None:
        """Send a message, or drop it if the parent is gone."""
        data = encode(message)
        with suppress(BrokenPipeError):  # the parent is gone, and soon so are we
            os.write(self._fd, _LENGTH.pack(len(data)) + data)  # far below what a pipe takes at once


def _read_exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(fd, size - len(data))
        if not part:
            raise EOFError("the parent ended before it sent its configuration")
        data += part
    return data


def _start_thread(target: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def _has_ended(thread: threading.Thread, timeout_s: float) -> bool:
    thread.join(timeout_s)
    return not thread.is_alive()


def _read_frames(stream: BinaryIO, on_frame: Callable[[bytes], None]) -> None:
    with stream:
        while len(header := stream.read(_LENGTH.size)) == _LENGTH.size:
            on_frame(stream.read(*_LENGTH.unpack(header)))
