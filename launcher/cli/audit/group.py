"""`krea2 audit`, a group of commands."""

from __future__ import annotations

import click

from launcher.cli.audit.find import find
from launcher.cli.audit.show import reports, show
from launcher.cli.options.command import SETTINGS, Commands


@click.group("audit", cls=Commands, commands=(find, show, reports), context_settings=SETTINGS)
def audit() -> None:
    """Read an audit log: which request a picture came from, what was refused, what was reported.

    \b
    Examples:
      krea2 audit find picture.jpg --audit-log audit/
      krea2 audit show --audit-log audit/ --event refused --since 2026-11-30
      krea2 audit reports --audit-log audit/
    """
