"""msgspec's complaints about a message, in the words of the other errors about parameters."""

from __future__ import annotations

import re

from engine.errors import ArgumentError

_TYPE_MISMATCH = re.compile(r"Expected `(?P<expected>[^`]+)`, got `(?P<found>[^`]+)`")
_FIELD = re.compile(r"(?P<problem>.*) - at `\$\.(?P<path>(?P<name>\w+)[^`]*)`")
_TYPE_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a map",
    "null": "null",
    "None": "null",
}


def explain_malformed(complaint: str) -> ArgumentError:
    """The error to answer, with the field at fault as its parameter if the complaint names one."""
    field = _FIELD.fullmatch(complaint)
    mismatch = None if field is None else _TYPE_MISMATCH.fullmatch(field["problem"])
    if field is None or mismatch is None:
        name = field["name"] if field is not None and field["name"] != "type" else None
        return ArgumentError(f"the message does not follow the protocol: {complaint}", parameter=name)
    allowed = " or ".join(_TYPE_NAMES.get(name, name) for name in mismatch["expected"].split(" | "))
    found = _TYPE_NAMES.get(mismatch["found"], mismatch["found"])
    return ArgumentError(f"{field['path']} must be {allowed}, got {found}", parameter=field["name"])
