"""Errors about parameters, in the words of whoever sent them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from engine.errors import ArgumentError, Krea2Error, shortened
from launcher.messages.parameter_names import PROMPTS, SYNONYMS
from launcher.parameters.other_programs import named_of_dbcache

_SHOWN = 40  # characters of a size
_SECRET = (*PROMPTS, "messages")  # what has prompts, which errors do not show, since these are logged
_KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}


def in_words_of(sent: Mapping[str, Any], error: Krea2Error, aliases: Mapping[str, str] = SYNONYMS) -> Krea2Error:
    """Name the parameter that an error is about as the client sent it; other errors are returned as they are.

    sent: what the client sent. aliases: our names by the client's.
    """
    name = error.parameter
    if name is None or not isinstance(error, ArgumentError):
        return error
    told, message = name, error.message
    if sent.get(name) is None and " contradicts " not in message:  # which names both as they were sent
        sizes = ("size", *(alias for alias, own in aliases.items() if own == "size"))
        size = next((alias for alias in sizes if sent.get(alias) is not None), None)
        if name in ("width", "height") and size is not None:
            return ArgumentError(f"{size} {shortened(str(sent[size]), _SHOWN)}: {message}", parameter=size)
        told = next((alias for alias, own in aliases.items() if own == name and sent.get(alias) is not None), name)
    if told == "cache_dit_params":
        message = named_of_dbcache(message)
    if message.startswith(f"{name} "):
        message = told + message.removeprefix(name)
    return ArgumentError(message, parameter=told)


def explain_invalid(problems: Sequence[Any], known: Collection[str]) -> ArgumentError:
    """Put the first of pydantic's complaints about a body in the words of the other errors about parameters.

    known: the parameters of the body.
    """
    problem = problems[0]
    where = [part for part in problem["loc"] if part != "body"]
    name = next((part for part in where if isinstance(part, str)), None)
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
    match problem["type"]:
        case "json_invalid":
            message = f"the body is not valid JSON: {problem['ctx']['error']}"
        case _ if name is None:
            message = "the body must be a JSON object of valid Unicode text"
        case "missing":
            message = f"{path} is required"
        case "extra_forbidden" if len(where) > 1:
            message = f"unknown parameter {_short(path)}"
        case "extra_forbidden":
            close = difflib.get_close_matches(name, known, n=1)
            message = f"unknown parameter {_short(name)}" + (f": did you mean {close[0]}?" if close else "")
            name = _short(name).strip("'")
        case kind:
            match = re.match(r"Input should be (.*)", problem["msg"], re.DOTALL)
            allowed = match[1] if match else f"as follows: {problem['msg']}"
            if kind == "model_attributes_type":
                allowed = 'a name, or {"name": …, "strength": …}'
            got = problem["input"]
            if name in _SECRET:
                message = f"{path} must be {allowed}, got {_KINDS.get(type(got), 'a number')}"
            else:
                message = ArgumentError.of(path, allowed, got).message
    return ArgumentError(message, parameter=name)


def _short(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:57] + "...")
