"""`krea2 cluster`, a group of commands."""

from __future__ import annotations

import click

from launcher.cli.cluster.run import run
from launcher.cli.options.command import SETTINGS, Commands


@click.group("cluster", cls=Commands, commands=(run,), context_settings=SETTINGS)
def cluster() -> None:
    """Serve many engines as one, on Ray: on one machine, or on many.

    \b
    On this machine alone, for a trial:
      krea2 cluster run --replicas 2
    """
