"""Makes one of our errors of what Serve says of an application that did not start: a traceback, as text."""

from __future__ import annotations

import re
from collections.abc import Iterable

from engine.errors import Krea2Error, LaunchError, shortened

# The last line of a traceback: the error's class and message.
_OURS = re.compile(r"^engine\.errors\.(?P<kind>\w+): (?P<message>.+)$", re.MULTILINE)
_ANY = re.compile(r"^(?P<kind>[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)): (?P<message>.+)$", re.MULTILINE)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 400  # characters of a message that nobody of us wrote


def of_ours(messages: Iterable[str]) -> Krea2Error | None:
    """Find the error of ours that ended a replica in what Serve says of each deployment; None if there is none."""
    for message in messages:
        if found := [*_OURS.finditer(message)]:
            kind = next(
                (each for each in Krea2Error.__subclasses__() if each.__name__ == found[-1]["kind"]), Krea2Error
            )
            return kind(found[-1]["message"])
    return None


def failure(messages: Iterable[str]) -> Krea2Error:
    """Make the error that a deployment ended with, of whatever kind."""
    said = [_COLOURS.sub("", message).strip() for message in messages]
    if (known := of_ours(said)) is not None:
        return known
    for message in said:
        if found := [*_ANY.finditer(message)]:
            cause = f"{found[-1]['kind'].rpartition('.')[2]}: {found[-1]['message']}"
            return LaunchError(f"a replica did not start: {shortened(cause, _LONGEST)}")
    lines = [line.strip() for message in said for line in message.splitlines() if line.strip()]
    return LaunchError(
        f"the replicas did not start: {shortened(lines[-1] if lines else 'Ray does not say why', _LONGEST)}"
    )
