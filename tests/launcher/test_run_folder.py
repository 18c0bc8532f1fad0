"""Run folders: those that killed processes have left go at the next start, and no other does."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import LaunchError
from launcher import run_folder
from launcher.run_folder import RunFolder
from tests.launcher.processes import PATIENCE_S, Marked

HOLD = """
import sys
from launcher.run_folder import RunFolder
folder = RunFolder.make()
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def parent(run_folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    tmp_path_factory.getbasetemp()  # which other tests share, and which would be made here
    monkeypatch.setattr(tempfile, "tempdir", str(run_folder))
    return run_folder


@pytest.fixture
def holder(parent: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, with a run folder."""
    process = subprocess.Popen(
        (sys.executable, "-c", HOLD),
        env=os.environ | {"TMPDIR": str(parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate(timeout=PATIENCE_S)


def path_of(holder: subprocess.Popen[str]) -> Path:
    assert holder.stdout is not None
    return Path(holder.stdout.readline().strip())


def test_a_run_folder_is_its_users_alone_and_goes_with_all_that_is_in_it(parent: Path) -> None:
    folder = RunFolder.make()
    assert os.stat(folder.path).st_mode & 0o777 == 0o700
    (Path(folder.path) / "socket").touch()
    folder.remove()
    assert list(parent.iterdir()) == []
    folder.remove()  # which does nothing


def test_what_a_killed_process_left_goes_at_the_next_start_and_what_is_held_stays(
    holder: subprocess.Popen[str],
) -> None:
    held = path_of(holder)
    (held / "ranks-0").touch()
    ours = RunFolder.make()
    assert (held / "ranks-0").exists()
    holder.kill()
    holder.wait(PATIENCE_S)
    RunFolder.make().remove()
    assert not held.exists()
    assert Path(ours.path).exists()
    ours.remove()


def test_one_that_is_held_by_another_than_its_maker_stays(holder: subprocess.Popen[str]) -> None:
    folder = RunFolder(str(path_of(holder)))  # as a front-end that `launch` started does
    holder.kill()
    holder.wait(PATIENCE_S)
    RunFolder.make().remove()
    assert Path(folder.path).exists()
    folder.remove()


def test_what_is_not_a_run_folder_of_ours_stays(parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "precious").touch()
    (parent / "krea2-run-12345678").symlink_to(tmp_path)
    (parent / "krea2-run-23456789").touch()
    others = ["krea2-abcdefgh", "krea2-run-1234", "krea2-run-1234567890", "krea2-run-1234-678"]
    for name in others:
        (parent / name).mkdir()
    before = sorted(parent.iterdir())
    RunFolder.make().remove()
    assert sorted(parent.iterdir()) == before
    assert (tmp_path / "precious").exists()
    (parent / "krea2-run-abcdefgh").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)  # so that all are somebody else's
        RunFolder.make().remove()
    assert (parent / "krea2-run-abcdefgh").exists()
    RunFolder.make().remove()
    assert not (parent / "krea2-run-abcdefgh").exists()


def test_starts_at_the_same_time_leave_each_others_folders(parent: Path) -> None:
    folders: list[RunFolder] = []
    threads = [threading.Thread(target=lambda: folders.append(RunFolder.make())) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(folder.path for folder in folders) == sorted(map(str, parent.iterdir()))
    assert len(folders) == 32
    for folder in folders:
        folder.remove()


@pytest.mark.parametrize("fails", ["mkdtemp", "rename"])
def test_where_no_folder_can_be_made_the_error_says_where_and_why(
    parent: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    lock, close = run_folder._lock, os.close
    held: list[int | None] = []

    def note_lock(path: str, how: int) -> int | None:
        held.append(lock(path, how))
        return held[-1]

    def note_close(descriptor: int) -> None:
        if descriptor in held:
            held.remove(descriptor)
        close(descriptor)

    monkeypatch.setattr(run_folder, "_lock", note_lock)
    monkeypatch.setattr(os, "close", note_close)
    monkeypatch.setattr(*{"mkdtemp": (tempfile, "mkdtemp"), "rename": (run_folder.os, "rename")}[fails], full)  # type: ignore[attr-defined]
    with pytest.raises(LaunchError, match=f"no folder for sockets can be made in {parent}: No space left on device"):
        RunFolder.make()
    assert list(parent.iterdir()) == []
    assert not held


def test_a_server_whose_processes_were_all_killed_leaves_a_folder_for_the_next_start(marked: Marked) -> None:
    marked.use_hollow_ranks()
    left: list[Path] = []
    for _ in range(2):
        server = marked.start_krea2("serve", "--no-http", "--device", "cpu", stderr=subprocess.DEVNULL)
        assert server.stdout is not None
        assert server.stdout.readline().startswith("rpc: ")
        folders = list(marked.folder.glob("krea2-*"))
        assert len(folders) == 1
        assert folders != left
        left = folders
        marked.kill()
        if not folders[0].exists():  # a rank was a little faster
            folders[0].mkdir(mode=0o700)
