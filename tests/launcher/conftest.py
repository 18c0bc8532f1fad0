"""Fixtures of the launcher's tests: the demo's config, and processes that are counted."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.config.demo_checkpoints import DEMO_CHECKPOINT
from engine.config.model_config import ModelConfig
from launcher import Client, logs
from launcher.cli.main import execute
from tests.launcher.demo_server import Server, serve_demo
from tests.launcher.processes import Marked, connect, new_marked, temporary_folder

Krea2 = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal() -> Iterator[None]:
    """Let child processes be interrupted and hung up on, also where these tests themselves run in the background.

    `nohup` ignores SIGHUP, and a shell without job control SIGINT for what it starts with `&`. What is ignored is
    inherited; a handler is not, and this one ignores the signal as well.
    """
    ignored = [number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda *_: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def demo() -> ModelConfig:
    return ModelConfig.from_folder(DEMO_CHECKPOINT)


@pytest.fixture
def run_folder() -> Iterator[Path]:
    with temporary_folder() as folder:
        yield Path(folder)


@pytest.fixture
def marked(run_folder: Path) -> Iterator[Marked]:
    """An environment for child processes in which they can be counted, and so can the folders they leave behind."""
    marked = new_marked(run_folder)
    yield marked
    marked.kill()


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    """A server of one real rank with the demo, for all tests that only read from one."""
    with serve_demo() as server:
        yield server


@pytest.fixture(scope="package")
def client(server: Server) -> Iterator[Client]:
    with connect(server.rpc) as client:
        yield client


@pytest.fixture
def krea2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Krea2:
    """`krea2(*arguments)` runs a command in this process, which starts no other and leaves no run folder.

    Returns exit code, stdout and stderr.
    """
    folder = tmp_path_factory.mktemp("temporary")

    def start_nothing(*command: object, **_: object) -> None:
        raise AssertionError(f"{command} was started")

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(tempfile, "tempdir", str(folder))
            patch.setattr(subprocess, "Popen", start_nothing)
            patch.setattr(logs, "configure_logs", lambda _: None)  # of the whole process, for good
            code = execute(arguments)
        assert not list(folder.iterdir())
        return code, *capsys.readouterr()

    return run
