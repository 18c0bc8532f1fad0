"""What `krea2 serve` makes of arguments, and what it answers without a key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launcher.cli.serve import serve

OPEN_ROUTES = {"/health", "/ready"}  # docs/operations.md


def served(arguments: Sequence[str]) -> dict[str, Any]:
    """Read the arguments of `krea2`, whose first is serve, into its options. Raises what the command line does."""
    command, *rest = arguments
    assert command == "serve"
    options: dict[str, Any] = serve.make_context("serve", list(rest)).params
    return options
