"""`krea2 audit show` and `krea2 audit reports`: lines of the log, and what reports lead to."""

from __future__ import annotations

from datetime import datetime

import click

from engine.errors import ArgumentError
from launcher.audit.entries import EVENTS, Entries, plain
from launcher.audit.find import find_reported, select
from launcher.audit.hashes import hash_text, known_key
from launcher.cli.audit import lines
from launcher.cli.options.command import Command
from launcher.cli.stdout import say

_MOST_LEADS = 10  # lines that a report is shown with

_EARLIEST = "0001-01-01T00:00:00.000Z"


def _time(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse what is not how a time of a line begins, of which nothing, or all, would be later."""
    if value is None:
        return None
    time = value.strip().upper().replace(" ", "T")
    try:
        if len(time) not in (4, 7, 10, 13, 16, 19, 23, 24):  # down to the year, month, day, hour and so on
            raise ValueError
        datetime.strptime(time + _EARLIEST[len(time) :], "%Y-%m-%dT%H:%M:%S.%fZ")
    except ValueError:
        message = f"{value!r} is not a time in UTC, or its beginning, as 2026-11-30 or 2026-11-30T09:15"
        raise click.BadParameter(message, ctx, param) from None
    return time


_since = click.option(
    "--since", metavar="TIME", callback=_time, help="In UTC, as lines have it, or its beginning: 2026-11-30T09."
)
_until = click.option("--until", metavar="TIME", callback=_time, help="The last, as --since has it.")


@click.command(cls=Command)
@lines.audit_log_option
@click.option("--event", "events", type=click.Choice(EVENTS), multiple=True, help="May be repeated.  [default: all]")
@click.option("--request", "request_id", metavar="ID", help="Of one request: the engine's id, or an X-Request-ID.")
@click.option("--key", help="Of requests with the API key of this name.")
@click.option("--user", help="Of requests that were for somebody.")
@click.option("--prompt", help="Of requests with this very prompt, whose hash the log has.")
@_since
@_until
@lines.json_option
def show(
    *,
    audit_log: str,
    events: tuple[str, ...],
    request_id: str | None,
    key: str | None,
    user: str | None,
    prompt: str | None,
    since: str | None,
    until: str | None,
    as_json: bool,
) -> None:
    """List lines of an audit log, those that all of the options fit."""
    entries = Entries(audit_log)
    selected = select(
        entries, events=events, request_id=request_id, key=key, user=user, since=since, until=until,
        prompt_hash=None if prompt is None else _hash(audit_log, prompt),
    )  # fmt: skip
    for entry in sorted(selected, key=lambda entry: entry.time):
        say(lines.as_json(entry) if as_json else lines.joined(lines.describe(entry)))
    lines.tell_unread(entries)


@click.command(cls=Command)
@lines.audit_log_option
@_since
@_until
@lines.json_option
def reports(*, audit_log: str, since: str | None, until: str | None, as_json: bool) -> None:
    """List reports of pictures, each with lines of the log that its picture or its request leads to."""
    entries = Entries(audit_log)
    known = [*entries]
    for report in sorted(select(known, events=("report",), since=since, until=until), key=lambda entry: entry.time):
        leads = find_reported(known, report)
        if as_json:
            say(lines.as_json(report, leads=[{"how": lead.how, **plain(lead.entry)} for lead in leads]))
            continue
        say(lines.joined(lines.describe(report)))
        for lead in leads[:_MOST_LEADS]:
            say("    → " + "\n    ".join([f"{lead.how}:", *lines.describe(lead.entry)]).replace("\n    ", " ", 1))
        if len(leads) > _MOST_LEADS:
            say(f"    → and {len(leads) - _MOST_LEADS} more")
    lines.tell_unread(entries)


def _hash(folder: str, prompt: str) -> str:
    try:
        key = known_key(folder)
    except OSError as error:
        problem = f"audit_log {folder}: the key of prompts' hashes cannot be read: {error.strerror}"
        raise ArgumentError(problem, parameter="audit_log") from None
    if key is None:
        raise ArgumentError(f"audit_log {folder} has no key of prompts' hashes", parameter="audit_log")
    return hash_text(key, prompt)
