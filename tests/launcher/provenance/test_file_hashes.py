"""Hashes of files: from names, from what was kept, and read in a thread that nobody waits for."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from pathlib import Path

import pytest

from launcher.provenance import file_hashes
from launcher.provenance.file_hashes import FileHashes, read_hash
from tests.launcher.processes import wait_until

DATA = b"weights" * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "krea2-engine" / "hashes.json"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "a.safetensors"
    file.write_bytes(DATA)
    return file


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is read, file by file."""
    done: list[str] = []

    def noted(real: str) -> tuple[str, file_hashes.Hashed]:
        done.append(real)
        return read_hash(real)

    monkeypatch.setattr(file_hashes, "read_hash", noted)
    return done


def known(file: Path, *, read: bool = False) -> str | None:
    hashes = FileHashes()
    wanted = hashes.want(file)
    if read:
        hashes.begin()
        wait_until(lambda: wanted.sha256 is not None, "the hash")
    return wanted.sha256


def test_a_file_is_read_once_for_all_and_only_when_it_may_be(file: Path, reads: list[str], cache: Path) -> None:
    assert known(file) is None
    assert known(file, read=True) == SHA256
    assert known(file) == known(Path(os.path.relpath(file))) == SHA256
    assert reads == [str(file.resolve())]
    (kept,) = json.loads(cache.read_text()).items()
    assert kept == (
        str(file.resolve()),
        {"size": len(DATA), "mtime_ns": file.stat().st_mtime_ns, "inode": file.stat().st_ino, "sha256": SHA256},
    )


def test_a_file_that_is_wanted_twice_before_it_is_read_is_read_once(file: Path, reads: list[str]) -> None:
    hashes = FileHashes()
    wanted = [hashes.want(file), hashes.want(file)]
    hashes.begin()
    wait_until(lambda: all(each.sha256 == SHA256 for each in wanted), "the hash")
    assert len(reads) == 1


def test_a_file_that_was_written_again_has_another_hash(file: Path, reads: list[str]) -> None:
    known(file, read=True)
    file.write_bytes(b"other weights")
    assert known(file) is None
    assert known(file, read=True) == hashlib.sha256(b"other weights").hexdigest()
    assert len(reads) == 2


def test_a_file_that_is_not_the_one_that_was_loaded_has_none(file: Path, tmp_path: Path) -> None:
    hashes, other = FileHashes(), tmp_path / "b.safetensors"
    wanted = [hashes.want(file), hashes.want(tmp_path / "missing")]
    file.write_bytes(b"other weights")
    other.write_bytes(DATA)
    last = hashes.want(other)
    hashes.begin()
    wait_until(lambda: last.sha256 is not None, "the last hash")
    assert [each.sha256 for each in wanted] == [None, None]
    assert known(file, read=True) == hashlib.sha256(b"other weights").hexdigest()


def test_a_file_that_is_written_while_it_is_read_has_none(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stated = iter(range(2))
    monkeypatch.setattr(
        file_hashes.Hashed, "of", lambda _: file_hashes.Hashed(size=next(stated), mtime_ns=0, inode=0, sha256="")
    )
    with pytest.raises(OSError, match="was written while it was read"):
        read_hash(str(file))


def test_hugging_faces_cache_names_files_by_their_hashes(tmp_path: Path, reads: list[str], cache: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / SHA256).write_bytes(b"not read")
    (blobs / SHA256[:40]).write_bytes(DATA)  # a hash of git's
    for name, blob in (("large", SHA256), ("small", SHA256[:40])):
        (snapshot / name).symlink_to(blobs / blob)
    assert known(snapshot / "large") == SHA256
    assert known(snapshot / "small") is None
    assert reads == []
    assert not cache.exists()


def test_what_cannot_be_read_is_told_and_what_cannot_be_kept_is_known_all_the_same(
    file: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.parent.write_text("a file where the folder would be")
    assert known(file, read=True) == SHA256
    hashes, other = FileHashes(), file.with_name("b")
    other.write_bytes(b"other")
    wanted = [hashes.want(file), hashes.want(other)]
    file.unlink()
    with caplog.at_level("WARNING", "krea2"):
        hashes.begin()
        wait_until(lambda: wanted[1].sha256 is not None, "the last hash")
    assert wanted[0].sha256 is None
    assert [record.getMessage() for record in caplog.records] == ["file hash not known"]


def test_only_the_newest_are_kept(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "_MOST_KEPT", 2)
    for name in "abca":
        (tmp_path / name).write_bytes(name.encode())
        read_hash(str(tmp_path / name))
    assert [Path(name).name for name in json.loads(cache.read_text())] == ["c", "a"]


@pytest.mark.skipif(sys.platform != "linux", reason="threads share their process' priority")
def test_the_thread_that_reads_gives_way_to_all_others_and_ends_with_the_process(file: Path) -> None:
    hashes = FileHashes()
    wanted = hashes.want(file)
    hashes.begin()
    wait_until(lambda: wanted.sha256 is not None, "the hash")
    reader = hashes._reader
    assert reader is not None
    assert reader.daemon
    assert reader.native_id is not None
    assert os.getpriority(os.PRIO_PROCESS, reader.native_id) == 19
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) < 19
