"""The options of all filters that ask a URL."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from launcher.filters.spec import is_yes, must, wrong
from launcher.filters.urls.address import Address, read_address
from launcher.filters.urls.asking import Service
from launcher.processes import NOT_FOR_CHILDREN

OPTIONS = ("model", "key-env", "connections", "insecure", "negative")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_KEY = re.compile(r"[!-~]{1,4096}")
_MOST_CONNECTIONS = 64
_LONGEST_MODEL = 256


def check(name: str, route: str, value: str, options: Mapping[str, str]) -> Address:
    """Check the URL and these options of the filter `name`. Raises `ArgumentError`."""
    if not value:
        raise wrong(name, f"it needs a URL, as {name}:https://HOST/v1/{route}")
    try:
        address = read_address(value, route, insecure=is_yes(name, options, "insecure"))
    except ValueError as error:
        raise wrong(name, f"its URL {error}") from None
    model = options.get("model")
    if model is not None and not (0 < len(model) <= _LONGEST_MODEL and model.isprintable()):
        raise must(name, "model=", f"a name of at most {_LONGEST_MODEL} characters", model)
    variable = options.get("key-env")
    if variable is not None and not _VARIABLE.fullmatch(variable):
        # Whoever gave the key itself here must not find it in a log.
        raise wrong(name, "key-env= must be the name of an environment variable that holds the key, not the key")
    if variable in NOT_FOR_CHILDREN:
        raise wrong(name, f"key-env= must be another variable than {variable}, which the engine's processes do not get")
    _connections(name, options)
    checks_negative(name, options)
    return address


def make_service(name: str, route: str, value: str, options: Mapping[str, str]) -> Service:
    """Make what asks the URL. Raises `ArgumentError`, also where the variable with the key is not set."""
    address = check(name, route, value, options)
    variable = options.get("key-env")
    key = None if variable is None else os.environ.get(variable, "").strip()
    if key is not None and not _KEY.fullmatch(key):
        raise wrong(name, f"the environment variable {variable}, which key-env= names, is not set or holds no key")
    return Service(address, key=key, connections=_connections(name, options))


def checks_negative(name: str, options: Mapping[str, str]) -> bool:
    """Whether negative prompts, which name what must not be drawn, are asked about, too. Raises `ArgumentError`."""
    return is_yes(name, options, "negative")


def one_of(name: str, options: Mapping[str, str], key: str, allowed: tuple[str, ...]) -> str:
    """Read an option that is a word, the first where it is not given. Raises `ArgumentError`."""
    value = options.get(key, allowed[0])
    if value not in allowed:
        raise must(name, f"{key}=", " or ".join(allowed), value)
    return value


def _connections(name: str, options: Mapping[str, str]) -> int:
    value = options.get("connections", "8")
    if not re.fullmatch(r"[0-9]{1,3}", value) or not 1 <= int(value) <= _MOST_CONNECTIONS:
        raise must(name, "connections=", f"a whole number from 1 to {_MOST_CONNECTIONS}", value)
    return int(value)
