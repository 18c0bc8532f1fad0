"""Reads files of keys and of their limits again while a server runs, as SIGHUP asks for, and compares them."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING

from engine.errors import ArgumentError
from launcher.logs import log_event, log_exception
from launcher.messages.api_keys import ANONYMOUS
from launcher.threads import in_own_thread

if TYPE_CHECKING:
    from launcher.frontend.admission.key_limits import KeyLimits

_MOST_WARNINGS = 10  # at a time


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


async def warn_of_unknown(limits: KeyLimits | None, known: Collection[str]) -> None:
    """Log, in a thread, which limits are of keys that there are not, and which of the known ones may be meant."""
    if limits is None:
        return
    try:
        await in_own_thread(partial(_compare, limits, known))
    except Exception as error:  # as above, or there are too many threads
        log_exception(error)


def _compare(limits: KeyLimits, known: Collection[str]) -> None:
    unknown = [name for name in limits.named if name not in known and name != ANONYMOUS]
    for name in unknown[:_MOST_WARNINGS]:
        close = difflib.get_close_matches(name, known, n=1)
        log_event("limits of no key", level="warning", key=name, near=close[0] if close else None)
    if len(unknown) > _MOST_WARNINGS:
        log_event("limits of no key", level="warning", more=len(unknown) - _MOST_WARNINGS)


def _check_kind(file: str) -> None:
    """Raise `ArgumentError` for a pipe and the like: who reads one may wait for ever."""
    try:
        mode = os.stat(file).st_mode
    except OSError:
        return  # which the reading tells better
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ArgumentError(f"{file}: only a file can be read again, and this is a pipe or a device")
