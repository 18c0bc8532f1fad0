"""Makes one answer of what all say of themselves: the status of engines, and metrics of engines or of ingresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from launcher.messages.client_messages import StatusReply

_ADDED = ("waiting", "running", "done", "failed", "dropped_messages", "restarts")


def add_status(found: Sequence[StatusReply]) -> StatusReply:
    """Make one status of at least one: requests are added up, and it is ready if one engine is.

    backlog_s is that of the engine with the least work; memory and LoRAs are those of one engine, since all have alike.
    """
    shown = next((status for status in found if status.ready), found[0])
    counts = {name: sum(getattr(status, name) for status in found) for name in _ADDED}
    return msgspec.structs.replace(
        shown,
        **counts,
        uptime_s=max(status.uptime_s for status in found),
        backlog_s=min((each.backlog_s for each in found if each.ready and each.backlog_s is not None), default=None),
        given_up=all(status.given_up for status in found),
        quarantined=tuple(each for status in found for each in status.quarantined),
    )


def join_metrics(found: Mapping[str, bytes], label: str) -> bytes:
    """Put texts in Prometheus' format into one, where each sample has a label with its text's name."""
    families: dict[str, tuple[list[str], list[str]]] = {}  # about each, and its samples
    for name, text in found.items():
        about, samples = families.setdefault("", ([], []))
        for line in text.decode().splitlines():
            if line.startswith("# HELP "):
                about, samples = families.setdefault(line.split(" ", 3)[2], ([], []))
                about[:] = [line]
            elif line.startswith("#"):
                about[1:] = [line]
            elif line:
                samples.append(_labelled(line, f'{label}="{name}"'))
    return "".join(f"{line}\n" for about, samples in families.values() for line in (*about, *samples)).encode()


def _labelled(sample: str, label: str) -> str:
    """Add a label to a sample: `name value` or `name{labels} value`."""
    name, brace, labels = sample.partition("{")
    if brace and " " not in name:
        return f"{name}{{{label},{labels}"
    name, _, value = sample.partition(" ")
    return f"{name}{{{label}}} {value}"
