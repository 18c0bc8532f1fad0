"""Keeps small tables in the user's cache from one run to the next, each a json file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

_LARGEST = 1 << 20  # bytes of a file, of which an entry takes a few hundred

T = TypeVar("T")


def read_kept(name: str, kind: type[T]) -> dict[str, T]:
    """Return what is kept under a name, by its keys; nothing if it cannot be read."""
    try:
        with _file(name).open("rb") as file:
            return msgspec.json.decode(file.read(_LARGEST), type=dict[str, kind])  # type: ignore[valid-type]
    except (OSError, msgspec.DecodeError):
        return {}


def write_kept(name: str, table: Mapping[str, object]) -> None:
    """Keep a table under a name, in place of what was there. Raises `OSError` if it cannot be written."""
    file = _file(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        new.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n")
        new.replace(file)  # so that others read the old or the new one, whole
    except OSError as error:  # which names no file if writing fails, as on a full disk
        raise OSError(error.errno, error.strerror or str(error), str(file)) from None
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)


def _file(name: str) -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "krea2-engine" / f"{name}.json"
    except RuntimeError as error:  # a user without a home
        raise FileNotFoundError(str(error)) from None
