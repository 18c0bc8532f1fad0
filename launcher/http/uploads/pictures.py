"""Takes the pictures out of a request's parameters: bytes of a form's files, and data URLs or base64 within JSON."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.errors import ArgumentError
from launcher.messages.parameter_names import SYNONYMS
from launcher.parameters.values import PICTURES

NAMES = frozenset({*PICTURES, *(name for name, own in SYNONYMS.items() if own in PICTURES)})
_DATA_URL = re.compile(r"\s*data:([\w.+/-]{0,100})((?:;[\w.+-]{1,100}=[^;,]{0,100}){0,4})(;base64)?,", re.IGNORECASE)
_HEAD = 600  # characters in which the beginning of a data URL ends
_LONG = 64 * 1024  # characters: what takes longer to decode than other requests should wait
_FILE_NAME = re.compile(r"[\w ./~:\\-]{1,60}\.(?:png|jpe?g|webp)", re.ASCII | re.IGNORECASE)
_BLANK = str.maketrans("", "", " \t\r\n")
_ALLOWED = "a PNG, JPEG or WebP file as base64 or as a data URL, as data:image/png;base64,iVBORw0…"
_FETCHES_NOTHING = "this server fetches nothing: send the picture itself, as a file of a form or as a data URL"


def base64_bytes(size: int) -> int:
    """How long a file of a size is as a data URL."""
    return -(-size // 3) * 4 + 1024


@dataclass
class Pictures:
    """The pictures of one request, until they are sent on. Nobody else holds them."""

    _sent: dict[str, Any] = field(default_factory=dict)

    def take(self, plain: dict[str, Any], given: dict[str, Any]) -> None:
        """Take them out of parameters by our names, and out of what the client sent, whose names are any."""
        for name in PICTURES:
            if name in plain and not _is_nothing(plain[name]):
                self._sent[name] = plain[name]
                plain[name] = SENT
            else:
                plain.pop(name, None)
        for names in (given, given.get("extra_body")):
            if isinstance(names, dict):
                names.update((name, SENT) for name in NAMES & names.keys() if names[name])

    def __bool__(self) -> bool:
        return bool(self._sent)

    def __contains__(self, name: str) -> bool:
        return name in self._sent

    def add(self, name: str, value: Any) -> None:
        """Add one from elsewhere."""
        self._sent[name] = value

    async def files(self, most: int) -> dict[str, bytes]:
        """Give their files, and keep none. most: bytes of each. Raises `ArgumentError`."""
        files = {}
        while self._sent:
            name = next(iter(self._sent))
            value = self._sent.pop(name)
            is_long = isinstance(value, str) and len(value) > _LONG
            files[name] = await asyncio.to_thread(read, name, value, most) if is_long else read(name, value, most)
        return files


SENT = "…"  # what stands in the place of a picture that was taken


def read(name: str, value: Any, most: int) -> bytes:
    """Read a picture: bytes, or a text, or an object as OpenAI's chats have them. Raises `ArgumentError`."""
    value = _inner(name, value)
    if isinstance(value, bytes):
        return _bounded(name, value, most)
    if not isinstance(value, str):
        raise ArgumentError(f"{name} must be {_ALLOWED}", parameter=name)
    head = value[:_HEAD].lstrip().lower()
    if head.startswith(("http:", "https:", "ftp:", "file:", "blob:", "//")):
        raise ArgumentError(f"{name} is an address, and {_FETCHES_NOTHING}", parameter=name)
    url = _DATA_URL.match(value[:_HEAD])
    if url is None and head.startswith("data:"):
        raise ArgumentError(f"{name} must be {_ALLOWED}", parameter=name)
    if url is not None and (url[3] is None or not (url[1] or "image/").lower().startswith(_TYPES)):
        raise ArgumentError(
            f"{name} must be {_ALLOWED}, got a data URL that begins {url[0].strip()[:60]!a}", parameter=name
        )
    start = 0 if url is None else url.end()
    if (len(value) - start) * 3 // 4 > most + _LONG:
        raise _too_large(name, (len(value) - start) * 3 // 4, most)
    return _bounded(name, _decode(name, value[start:] if start else value), most)


_TYPES = ("image/", "application/octet-stream")


def _inner(name: str, value: Any) -> Any:
    """The picture in what some programs put around it."""
    for _ in range(4):
        if isinstance(value, list | tuple) and len(value) == 1:
            (value,) = value
        elif isinstance(value, list | tuple):
            raise one_alone(name, len(value))
        elif isinstance(value, Mapping):
            if value.get("file_id"):
                raise ArgumentError(f"{name} names a file of OpenAI's, and {_FETCHES_NOTHING}", parameter=name)
            value = next(
                (value[key] for key in ("image_url", "url", "b64_json", "data", "image") if value.get(key)), None
            )
        else:
            break
    return value


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, str | bytes | list | tuple | Mapping) and not value)


def is_file(value: Any) -> bool:
    """Whether a value is a file of a form, or a list with one."""
    return isinstance(value, bytes) or (isinstance(value, list) and any(isinstance(each, bytes) for each in value))


def one_alone(name: str, got: int) -> ArgumentError:
    """The error for more pictures than one can be drawn over."""
    told = "one picture is drawn over, and more, as references, are not taken yet" if got else "a picture"
    return ArgumentError(f"{name} must be one: {told}, got {got}", parameter=name)


def _decode(name: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        plain = text.translate(_BLANK).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        if _FILE_NAME.fullmatch(text):
            told = f"a file's name, {text!a}, and no file: send what is in it, with curl as -F {name}=@{text}"
            raise ArgumentError(f"{name} is {told}", parameter=name) from None
        raise ArgumentError(f"{name} is no base64: it must be {_ALLOWED}", parameter=name) from None


def _bounded(name: str, file: bytes, most: int) -> bytes:
    if len(file) > most:
        raise _too_large(name, len(file), most)
    if not file:
        raise ArgumentError(f"{name} is empty: it must be {_ALLOWED}", parameter=name)
    return file


def _too_large(name: str, size: int, most: int) -> ArgumentError:
    return ArgumentError(f"{name} must be a file of at most {most} bytes, got {size}", parameter=name)
