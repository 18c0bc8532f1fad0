"""`krea2 keys`: makes the keys of a server and its clients."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--client", default="client", help="Whose keys to make.")
def keys(folder: Path, client: str) -> None:
    """Make the keys of a server, if FOLDER has none, and of a client. Prints the file that the client needs."""
    from launcher.messages.keys import make_keys

    click.echo(make_keys(folder, client))
