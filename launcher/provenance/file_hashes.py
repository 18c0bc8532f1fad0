"""Finds the SHA-256 of large files, by which people and sites know them, at no cost to what else is done.

A file's hash is its name in Hugging Face's cache, or was kept when it was last read; otherwise a thread reads it, at
the lowest priority and once for all.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import threading
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

import msgspec

from launcher.kept import read_kept, write_kept
from launcher.logs import log_event

_NAME = "hashes"
_MOST_KEPT = 1000  # files
_AT_ONCE = 1 << 22  # bytes
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HUB_FOLDER = "blobs"  # of files, each named by its hash
_LOWEST_PRIORITY = 19


class Hashed(msgspec.Struct, frozen=True, kw_only=True):
    """A hash, and by what the file is known to be the one that had it."""

    size: int
    mtime_ns: int
    inode: int
    sha256: str

    @classmethod
    def of(cls, file: str, sha256: str = "") -> Hashed:
        """What a file is now. Raises `OSError`."""
        found = os.stat(file)
        return cls(size=found.st_size, mtime_ns=found.st_mtime_ns, inode=found.st_ino, sha256=sha256)


class FileHash:
    """The hash of a file as it was when it was wanted. sha256: in hex, None while it is not known."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.sha256: str | None = None
        self._real = os.path.realpath(file)
        self._wanted: Hashed | None = None
        with suppress(OSError):  # of a file that is gone, which has none
            self._wanted = Hashed.of(self._real)
        self.recall()

    def recall(self) -> None:
        """Look it up, which reads no file."""
        if self._wanted is not None:
            self.sha256 = recall(self._real, self._wanted)

    def read(self) -> None:
        """Read the file, and know its hash unless it is another one by now. Raises `OSError`."""
        sha256, read = read_hash(self._real)
        if read == self._wanted:
            self.sha256 = sha256


class FileHashes:
    """Finds the hashes of the files that are wanted. `begin` has a thread read those that are not known, and from then
    on all that are wanted."""

    def __init__(self) -> None:
        self._unread: SimpleQueue[FileHash] = SimpleQueue()
        self._reader: threading.Thread | None = None

    def want(self, file: Path) -> FileHash:
        """Look up a file's hash, and note it if it is to be read."""
        wanted = FileHash(file)
        if wanted.sha256 is None:
            self._unread.put(wanted)
        return wanted

    def begin(self) -> None:
        """Read what is not known, in a thread that nobody waits for."""
        if self._reader is None:
            self._reader = threading.Thread(target=self._read_all, name="file hashes", daemon=True)
            self._reader.start()

    def _read_all(self) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        while True:
            wanted = self._unread.get()
            try:
                wanted.recall()  # it may be wanted twice
                if wanted.sha256 is None:
                    wanted.read()
            except OSError as error:
                log_event("file hash not known", level="warning", file=os.path.basename(wanted.file), error=str(error))


def find_hash(file: Path) -> str:
    """Return a file's hash, which is read if need be. Raises `OSError`."""
    real = os.path.realpath(file)
    return recall(real, Hashed.of(real)) or read_hash(real)[0]


def recall(real: str, now: Hashed) -> str | None:
    """Return the hash of a file, named without links, if its name or what was kept tells it."""
    folder, name = os.path.split(real)
    if os.path.basename(folder) == _HUB_FOLDER and _SHA256.fullmatch(name):
        return name
    kept = read_kept(_NAME, Hashed).get(real)
    return None if kept is None or msgspec.structs.replace(kept, sha256="") != now else kept.sha256


def read_hash(real: str) -> tuple[str, Hashed]:
    """Read a file, named without links, and keep its hash if it can be kept. Returns it, and what the file was when it
    was read. Raises `OSError`, also if it was written meanwhile."""
    before, digest = Hashed.of(real), hashlib.sha256()
    buffer = memoryview(bytearray(_AT_ONCE))
    with open(real, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
    if Hashed.of(real) != before:
        raise OSError(f"{real} was written while it was read")
    sha256 = digest.hexdigest()
    table = read_kept(_NAME, Hashed)
    table.pop(real, None)
    newest = [*table.items()][1 - _MOST_KEPT :]
    with suppress(OSError):  # then it is read again another time
        write_kept(_NAME, {**dict(newest), real: msgspec.structs.replace(before, sha256=sha256)})
    return sha256, before
