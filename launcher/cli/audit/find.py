"""`krea2 audit find`: which request a picture came from."""

from __future__ import annotations

import os

import click

from engine.errors import ArgumentError
from launcher.audit.entries import Entries
from launcher.audit.find import ALIKE, find_picture
from launcher.audit.fingerprint import MOST_BYTES, fingerprint
from launcher.audit.hashes import BITS
from launcher.cli.audit import lines
from launcher.cli.options.command import Command
from launcher.cli.options.numbers import WholeRange
from launcher.cli.stdout import say

_SHOWN = 20  # matches that look alike


@click.command(cls=Command)
@click.argument("file")
@lines.audit_log_option
@click.option(
    "--distance", type=WholeRange(0, BITS), default=ALIKE, help=f"Of {BITS} bits, how many may differ in a copy."
)
@lines.json_option
def find(*, file: str, audit_log: str, distance: int, as_json: bool) -> int:
    """List what the log has of a picture: of the same file, the same pixels, or what looks alike, the surest first.

    FILE is the picture or a copy of it, a PNG, JPEG or WebP file. Ends with 1 if there is nothing like it.
    """
    picture = fingerprint(_read(file), os.path.basename(file) or "file")
    entries = Entries(audit_log)
    matches = find_picture(entries, picture, most=distance)
    for match in matches if as_json else matches[:_SHOWN]:
        how = match.how if match.how != "looks alike" else f"looks alike: {match.differs} of {BITS} bits differ"
        if as_json:
            say(lines.as_json(match.entry, how=match.how, differs=match.differs))
        else:
            say(lines.joined([how, *(f"  {line}" for line in lines.describe(match.entry))]))
    if len(matches) > _SHOWN and not as_json:
        click.echo(f"and {len(matches) - _SHOWN} more: --json lists all, --distance 0 fewer", err=True)
    if not matches:
        click.echo("the log has no such picture", err=True)
    lines.tell_unread(entries)
    return 0 if matches else 1


def _read(file: str) -> bytes:
    try:
        with open(file, "rb") as stream:
            return stream.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise ArgumentError(f"{file}: cannot be read: {problem}", parameter="file") from None
