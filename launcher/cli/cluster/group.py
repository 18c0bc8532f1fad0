"""`krea2 cluster`, a group of commands."""

from __future__ import annotations

import click

from launcher.cli.cluster.config import config
from launcher.cli.cluster.run import run
from launcher.cli.options.command import SETTINGS, Commands


@click.group("cluster", cls=Commands, commands=(config, run), context_settings=SETTINGS)
def cluster() -> None:
    """Serve many engines as one, on Ray: on one machine, or on many.

    \b
    On this machine alone, for a trial:
      krea2 cluster run --replicas 2
    For a Ray cluster of many machines:
      krea2 cluster config /models/Krea-2-Turbo --tp 4 --replicas 1:50 > krea2.yaml
      serve deploy krea2.yaml
    """
