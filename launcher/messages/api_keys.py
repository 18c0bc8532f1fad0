"""API keys of HTTP clients: whose each is, and the file that has them.

A line of the file is `NAME KEY`, or `KEY` alone; lines that begin with # are comments. A name may have several keys,
as while a client changes from one to another.
"""

from __future__ import annotations

import hmac
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

import msgspec

from engine.errors import ArgumentError

ANONYMOUS = "anonymous"  # whoever has sent no key
MAX_FILE_BYTES = 2**20
MAX_KEYS = 1000
KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_ALLOWED = "1 to 64 letters, digits, '.', '_' and '-', not anonymous"
_KEY_BYTES = 1024


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key, and the name of whoever has it, which logs, metrics and limits know it by."""

    name: str
    key: str

    def __repr__(self) -> str:
        return f"ApiKey(name={self.name!r})"


def is_key_name(name: str) -> bool:
    """Whether a key may have this name."""
    return KEY_NAME.fullmatch(name) is not None and name != ANONYMOUS


def name_keys(keys: Iterable[str], known: Iterable[ApiKey] = ()) -> tuple[ApiKey, ...]:
    """Name the keys of the command line `api-key-1` and so on, and put those that a file has after them."""
    return (*(ApiKey(name=f"api-key-{number}", key=key) for number, key in enumerate(keys, 1)), *known)


def read_keys(file: str | os.PathLike[str]) -> tuple[ApiKey, ...]:
    """Read a file of keys. Keys without a name are called `line-3` and so on, by where they are.

    Raises `ArgumentError` for a file that cannot be read, has no key, or a line that is none.
    """
    keys: dict[str, ApiKey] = {}
    for number, line in enumerate(read_lines("api_key_file", file), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        name, key = words if len(words) == 2 else (f"line-{number}", words[0])
        if len(words) > 2 or not is_key_name(name) or len(key.encode()) > _KEY_BYTES:
            allowed = f"NAME KEY or KEY, a name being {NAME_ALLOWED}, a key at most {_KEY_BYTES} bytes"
            raise _damaged(file, f"line {number} must be {allowed}")
        if keys.setdefault(key, ApiKey(name=name, key=key)).name != name:
            raise _damaged(file, f"line {number} has a key that {keys[key].name} has too")
    if not 1 <= len(keys) <= MAX_KEYS:
        raise _damaged(file, f"it must have 1 to {MAX_KEYS} keys, got {len(keys)}")
    return tuple(keys.values())


def others_can_read(file: str | os.PathLike[str]) -> bool:
    """Whether every user of the machine can read the file."""
    return bool(Path(file).stat().st_mode & stat.S_IROTH)


def read_lines(parameter: str, file: str | os.PathLike[str]) -> list[str]:
    """Read a small file of text. Raises `ArgumentError` if it cannot be read, or is large."""
    try:
        with open(file, "rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"it is larger than {MAX_FILE_BYTES} bytes")
        return data.decode("utf-8-sig").split("\n")  # some editors begin a file with a mark
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    raise ArgumentError.of(parameter, f"a text file that can be read ({reason})", os.fspath(file))


class KeyRing:
    """Tells whose a key is, in a time that tells nothing of the keys that there are."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._keys = [(key.name, key.key.encode()) for key in keys]

    def __len__(self) -> int:
        return len(self._keys)

    def name_of(self, sent: bytes) -> str | None:
        """Give the name of a key; None for one that is not known."""
        matches = [name for name, key in self._keys if hmac.compare_digest(sent, key)]  # all are compared
        return matches[0] if matches else None


def _damaged(file: str | os.PathLike[str], problem: str) -> ArgumentError:
    return ArgumentError(f"api_key_file {os.fspath(file)}: {problem}", parameter="api_key_file")
