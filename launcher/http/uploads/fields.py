"""What the names of a form's fields mean, where they have brackets: `image[]`, `outpaint[left]`, `loras[][name]`."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from engine.config.bounded_json import JsonLimits, read_json
from engine.errors import ArgumentError, shortened

_NAME = re.compile(r"([^\[\]]{1,100})(?:\[([0-9]{0,3})\])?(?:\[([A-Za-z_]{1,100})\])?")
_WRITTEN = ("loras", "lora", "outpaint", "cache", "cache_dit_params", "extra_body")  # fields whose text may be JSON
_MOST = JsonLimits(values=256, depth=4, key=100, string=4096)
_SHOWN = 60  # characters


class Part(NamedTuple):
    """A field or a file of a form."""

    name: str
    value: str | bytes


def nest(parts: list[Part]) -> dict[str, Any]:
    """Make parameters of the parts of a form, in the order in which they came.

    `a[]` and `a[0]` are items of a list, and so is each of several `a`; `a[b]` is a field of an object; `a[][b]` one of
    an object of a list, the first of all `a[][b]` being of the first. Raises `ArgumentError` for a name that fits none
    of these, and for names that do not fit each other.
    """
    values: dict[str, Any] = {}
    columns: dict[str, dict[str, list[Any]]] = {}  # of lists of objects
    for written, value in parts:
        match = _NAME.fullmatch(written)
        if match is None:
            raise _wrong(written, "is no name of a field, as image, image[] or outpaint[left]")
        name, index, key = match.groups()
        if key is not None and index is not None:
            columns.setdefault(name, {}).setdefault(key, []).append(value)
        elif key is not None:
            if not isinstance(inner := values.setdefault(name, {}), dict) or key in inner:
                raise _wrong(written, "is there twice, or beside another of its name")
            inner[key] = value
        elif index is not None or name in values:
            if isinstance(items := values.setdefault(name, []), dict):
                raise _wrong(written, "stands beside fields of an object of its name")
            values[name] = [*(items if isinstance(items, list) else [items]), value]
        else:
            values[name] = value
    for name, fields in columns.items():
        if name in values or len({len(items) for items in fields.values()}) > 1:
            raise _wrong(name, "does not say which fields belong together: give it as JSON, as [{…}, {…}]")
        values[name] = [dict(zip(fields, items, strict=True)) for items in zip(*fields.values(), strict=True)]
    for name in _WRITTEN:
        if isinstance(text := values.get(name), str) and text.lstrip()[:1] in ("[", "{"):
            values[name] = _read(name, text)
        elif name == "loras" and isinstance(text, str) and text:
            values[name] = [text]
    return values


def _read(name: str, text: str) -> Any:
    try:
        return read_json(text, _MOST)
    except json.JSONDecodeError as error:
        raise ArgumentError(f"{name} is no JSON: {error.msg}", parameter=name) from None


def _wrong(name: str, problem: str) -> ArgumentError:
    return ArgumentError(f"{shortened(name, _SHOWN)!a} {problem}", parameter=name[:_SHOWN].partition("[")[0])
