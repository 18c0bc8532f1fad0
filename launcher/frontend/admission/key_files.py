"""Reads files of keys and of their limits again while a server runs, as SIGHUP asks for."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from functools import partial

from engine.errors import ArgumentError
from launcher.logs import log_event, log_exception
from launcher.threads import in_own_thread


async def read_again(files: Mapping[str, Callable[[], int]]) -> None:
    """Read each file, or folder, in a thread, and log how many keys it has. A damaged one leaves what was."""
    for file, read in files.items():
        try:
            await in_own_thread(partial(_check_kind, file))
            log_event("keys read again", file=file, keys=await in_own_thread(read))
        except ArgumentError as error:
            log_event("keys not read again", level="error", message=error.message)
        except Exception as error:  # our own mistake, which must not cost the next time
            log_exception(error)


def _check_kind(file: str) -> None:
    """Raise `ArgumentError` for a pipe and the like: who reads one may wait for ever."""
    try:
        mode = os.stat(file).st_mode
    except OSError:
        return  # which the reading tells better
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ArgumentError(f"{file}: only a file can be read again, and this is a pipe or a device")
