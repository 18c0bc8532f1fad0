"""A run folder: the sockets of one engine, and the file at which its ranks rendezvous. Only its user may enter it.

Whoever uses one holds a shared lock on it, which the kernel lets go of when the process ends, however it ends. So the
next engine that starts can tell the folders of killed ones from those in use, and removes them; and systemd-tmpfiles,
which respects such locks, leaves the others alone.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from contextlib import ExitStack, suppress

from engine.errors import LaunchError

# A folder gets such a name only when it is locked. Those of versions before this one had no lock, and names without
# "run": whether they are in use cannot be told, so they stay.
_PREFIX = "krea2-run-"
_NAME = re.compile(_PREFIX + r"\w{8}", re.ASCII)
_LONGEST_PARENT = 76  # characters; a unix socket's whole path may have 103 on macOS


class RunFolder:
    """Holds a run folder, at `path`, until `remove`, or this process ends."""

    def __init__(self, path: str) -> None:
        """Hold one that another process has made."""
        self.path = path
        self._lock = _lock(path, fcntl.LOCK_SH)

    @classmethod
    def make(cls, longest_parent: int = _LONGEST_PARENT) -> RunFolder:
        """Make one, after those that killed processes of this user have left were removed.

        longest_parent: characters that the path of the folder for temporary files may have; else it lies in /tmp.
        Raises `LaunchError` if that cannot be done, as on a full disk.
        """
        parent = "the folder for temporary files"
        try:
            parent = tempfile.gettempdir()
            if len(parent) > longest_parent:
                parent = "/tmp"
            _remove_forsaken(parent)
            new = tempfile.mkdtemp(prefix=".krea2-", dir=parent)
            path = os.path.join(parent, _PREFIX + new[-8:])
            with ExitStack() as undo:
                undo.callback(remove_run_folder, new)
                folder = cls(new)
                undo.callback(folder.remove)
                os.rename(new, path)
                folder.path = path
                undo.pop_all()
        except OSError as error:
            raise LaunchError(f"no folder for sockets can be made in {parent}: {error.strerror or error}") from None
        return folder

    def remove(self) -> None:
        """Remove the folder with all that is in it, if it exists, and let go of it."""
        remove_run_folder(self.path)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def remove_run_folder(path: str) -> None:
    """Remove a run folder with all that is in it, if it exists."""
    shutil.rmtree(path, ignore_errors=True)


def _remove_forsaken(parent: str) -> None:
    """Remove the run folders of this user that nobody holds."""
    for name in os.listdir(parent):
        if not _NAME.fullmatch(name):
            continue
        path = os.path.join(parent, name)
        with suppress(OSError):
            found = os.lstat(path)
            if found.st_uid != os.geteuid():
                continue
            lock = _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock is not None:
                remove_run_folder(path)
                os.close(lock)


def _lock(path: str, how: int) -> int | None:
    """Lock a folder, no link to one. None if somebody else has done so, or folders cannot be locked there."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(folder, how)
    except OSError:
        os.close(folder)
        return None
    return folder
