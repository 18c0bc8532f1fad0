"""Lines of an audit log as people read them, and options that all its commands have."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import click

from launcher.audit.entries import Entries, Entry, plain

Command = TypeVar("Command", bound=Callable[..., Any])

_OF_PICTURE = ("file_sha256", "pixels_sha256", "dhash")
_SHOWN_APART = {"time", "event", "findings", "prompt", "negative_prompt", "reason", "width", "height"}
_NOT_SHOWN = {*_OF_PICTURE, "prompt_hash", "negative_prompt_hash"}


def audit_log_option(command: Command) -> Command:
    """Add the option that names the log."""
    return click.option("--audit-log", "audit_log", metavar="FOLDER", required=True, help="The folder of the log.")(
        command
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, an object a line.")


def describe(entry: Entry) -> Iterator[str]:
    """Say a line of the log in one line or a few, without its hashes."""
    said = plain(entry)
    size = f" {entry.width}×{entry.height}" if entry.width is not None else ""
    rest = "".join(f" {name}={said[name]}" for name in said if name not in _SHOWN_APART | _NOT_SHOWN)
    yield f"{entry.time} {entry.event}{size}{rest}"
    for found in entry.findings:
        yield f"    {found.filter}: {found.action} for {found.category} {found.score:.2f} ({found.kind})"
    for name in ("prompt", "negative_prompt", "reason"):
        if name in said:
            yield f"    {name.replace('_', ' ')}: {said[name]}"


def as_json(entry: Entry, **more: object) -> str:
    """Write a line of the log as it is, and what more is known."""
    return json.dumps({**more, **plain(entry)}, ensure_ascii=False)


def tell_unread(entries: Entries) -> None:
    """Say on stderr how many lines of the log could not be read."""
    if entries.unread:
        click.echo(f"warning: {entries.unread} lines of the log cannot be read", err=True)


def joined(lines: Iterable[str]) -> str:
    """Put lines below each other."""
    return "\n".join(lines)
