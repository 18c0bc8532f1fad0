"""Reads JSON that others wrote: nothing is built beyond its limits, and no single call keeps other threads waiting.

`json.loads` makes a gigabyte of lists of 16 MB, and holds the interpreter's lock until all are there. This reader takes
one token after another, about twenty times slower. For what lies within the limits both return the same, but for keys
that an object has twice, which are an error here.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

# Of a file: far above what published checkpoints and LoRAs have, which is some 10,000 values for a thousand tensors,
# and in one string the tags of a training set.
LARGEST_JSON = 16 << 20  # bytes

_TOKEN = re.compile(
    r"""[ \t\n\r]{0,65536}+ (?:
        " ([^"\\\x00-\x1f]{0,255}+) "  # 1: a short string without escapes
        | ([][{},:])  # 2
        | (-? (?:0 | [1-9][0-9]{0,4300}+) (?:\.[0-9]{1,4300}+)? (?:[eE][-+]?[0-9]{1,4300}+)?)  # 3
        | (null | true | false | NaN | -?Infinity)  # 4
        | (")  # 5: where any other string begins
    )""",
    re.VERBOSE,
)
_PART = re.compile(r'(?:[^"\\\x00-\x1f]{1,256}+|\\.){1,1024}+')
_CONSTANTS = {
    "null": None, "true": True, "false": False,
    "NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf"),
}  # fmt: skip
_LONGEST_NUMBER = 4300  # characters, Python's own limit; a longer one matches in part, and is refused for it
_SHOWN_KEY = 60  # characters
_decode_at = json.JSONDecoder().raw_decode


class JsonLimits(NamedTuple):
    """The most that a text may hold: values (keys not counted), objects and lists within one another, and characters of
    a key and of any other string."""

    values: int
    depth: int
    key: int
    string: int


FILE_LIMITS = JsonLimits(values=1 << 20, depth=64, key=1024, string=2 << 20)


def read_json(text: str | bytes, limits: JsonLimits = FILE_LIMITS) -> Any:
    """Parse a text. Raises `json.JSONDecodeError` for what is no JSON, has a key twice or exceeds a limit, and
    `UnicodeDecodeError`; both are ValueErrors."""
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text))
    return _Reader(text, limits).document()


class _Reader:
    """Reads the text from one token to the next."""

    def __init__(self, text: str, limits: JsonLimits) -> None:
        self._text, self._limits = text, limits
        self._position = 0  # behind the last token
        self._values = 0

    def document(self) -> Any:
        value = self._value(self._next(), 1)
        if self._text[self._position :].strip(" \t\n\r"):
            raise self._error("Extra data")
        return value

    def _next(self) -> re.Match[str]:
        token = _TOKEN.match(self._text, self._position)
        if token is None:
            raise self._error("Expecting value")
        self._position = token.end()
        return token

    def _value(self, token: re.Match[str], depth: int) -> Any:
        """The value that begins with a token. depth: of a list or an object that would begin here."""
        self._values += 1
        if self._values > self._limits.values:
            raise self._error(f"at most {self._limits.values} values are allowed")
        match token.lastindex:
            case 1 | 5:
                return self._string(token, "strings", self._limits.string)
            case 3:
                return self._number(token[3])
            case 4:
                return _CONSTANTS[token[4]]
        if token[2] not in "[{":
            raise self._error("Expecting value")
        if depth > self._limits.depth:
            raise self._error(f"at most {self._limits.depth} objects and lists within one another are allowed")
        return self._list(depth + 1) if token[2] == "[" else self._object(depth + 1)

    def _list(self, depth: int) -> list[Any]:
        items: list[Any] = []
        token = self._next()
        if token[2] == "]":
            return items
        while True:
            items.append(self._value(token, depth))
            if self._ends("]"):
                return items
            token = self._next()

    def _object(self, depth: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        token = self._next()
        if token[2] == "}":
            return fields
        while True:
            key = self._key(token)
            if key in fields:
                raise self._error(f"the key {key[:_SHOWN_KEY]!a} is there twice")
            if self._next()[2] != ":":
                raise self._error("Expecting ':' delimiter")
            fields[key] = self._value(self._next(), depth)
            if self._ends("}"):
                return fields
            token = self._next()

    def _ends(self, end: str) -> bool:
        """Whether a list or object ends after a value; else a comma must follow."""
        mark = self._next()[2]
        if mark != end and mark != ",":
            raise self._error("Expecting ',' delimiter")
        return mark == end

    def _key(self, token: re.Match[str]) -> str:
        if token.lastindex not in (1, 5):
            raise self._error("Expecting property name enclosed in double quotes")
        return self._string(token, "keys", self._limits.key)

    def _string(self, token: re.Match[str], what: str, most: int) -> str:
        """The string that a token is, or begins. most: characters, as they are written, escapes included."""
        text = token[1] if token.lastindex == 1 else self._long_string(most)
        if text is None or len(text) > most:
            raise self._error(f"{what} of at most {most} characters are allowed")
        return text

    def _long_string(self, most: int) -> str | None:
        """The string behind the last token, which is its quote; None if it is too long."""
        begin = end = self._position
        while (part := _PART.match(self._text, end)) is not None:
            end = part.end()
            if end - begin > most:
                return None
        text, self._position = _decode_at(self._text, begin - 1)
        return str(text)

    def _number(self, text: str) -> int | float:
        if len(text) > _LONGEST_NUMBER:
            raise self._error(f"numbers of at most {_LONGEST_NUMBER} characters are allowed")
        return int(text) if text.lstrip("-").isdecimal() else float(text)

    def _error(self, problem: str) -> json.JSONDecodeError:
        return json.JSONDecodeError(problem, self._text, self._position)
