"""Images behind urls: files in the run folder, which whichever HTTP process is asked finds."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock

from engine.errors import Krea2Error

HELD_S = 3600.0  # an image behind a url
HELD_BYTES = 512 * 2**20  # of all images behind urls
HELD_FILES = 10_000  # as many, so that they are counted in a moment
SWEEP_S = 60.0  # between looks for what is held no more
_NAME = re.compile(r"[\w-]{32}\.[a-z]{3,5}", re.ASCII)
_UNFINISHED = "."  # what the name of a file begins with that is being written


def shared_files(folder: str) -> HeldFiles:
    """Give the files in a folder that several machines share, whose clocks agree to the minute."""
    return HeldFiles(folder, time.time)


class HeldFiles:
    """Keeps image files by names that nobody can guess, each for `HELD_S`.

    Above `HELD_BYTES`, or `HELD_FILES`, the oldest go first. Several processes may use the same folder, which is made
    if it is not there. Methods wait for the disk, and may be called in any thread.

    clock: seconds of a clock that all who use the folder have in common. By default no setting of a machine's clock
    moves it, and only its own processes have it.
    """

    def __init__(self, run_folder: str | Path, clock: Callable[[], float] | None = None) -> None:
        self._folder = Path(run_folder) / "images"
        self._clock = clock or (lambda: time.monotonic())
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._lock = Lock()

    def add(self, file: bytes, suffix: str) -> str:
        """Hold a file. Returns its new name, which ends in `suffix`. Raises `Krea2Error` where the disk is full."""
        name = f"{secrets.token_urlsafe(24)}.{suffix}"
        unfinished = self._folder / (_UNFINISHED + name)
        try:
            with open(unfinished, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as output:
                output.write(file)
                output.flush()  # which gives it the kernel's time
                now = int(self._clock() * 10**9)
                os.utime(output.fileno(), ns=(now, now))
            unfinished.rename(self._folder / name)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            reason = error.strerror or str(error)
            raise Krea2Error(f"the image cannot be kept as {self._folder / name}: {reason}") from None
        self.remove_old()
        return name

    def get(self, name: str) -> bytes | None:
        """Return a file that is held, None if there is none of that name, or no more."""
        if not _NAME.fullmatch(name):
            return None
        with suppress(FileNotFoundError), open(self._folder / name, "rb") as file:
            return file.read() if not self._is_old(os.fstat(file.fileno())) else None
        return None

    def remove_old(self) -> None:
        """Remove what is held no more."""
        with self._lock:
            size = number = 0
            for path, found in sorted(self._list(), key=lambda each: -each[1].st_mtime_ns):
                size, number = size + found.st_size, number + 1
                too_many = number > 1 and (size > HELD_BYTES or number > HELD_FILES)
                if too_many or self._is_old(found):
                    Path(path).unlink(missing_ok=True)

    async def sweep(self) -> None:
        """Remove what is held no more, whichever process has added it, again and again until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            with suppress(OSError):  # of a disk that may be well the next time
                await asyncio.to_thread(self.remove_old)

    def _list(self) -> Iterator[tuple[str, os.stat_result]]:
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another process has removed it
                    yield entry.path, entry.stat()

    def _is_old(self, found: os.stat_result) -> bool:
        return self._clock() - found.st_mtime > HELD_S
