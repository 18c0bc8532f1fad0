"""Many machines as one server, on Ray Serve: engines, each on the GPUs of one actor, behind HTTP processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application


def build_app(args: dict[str, Any]) -> Application:
    """Build the application of these arguments, for `import_path: launcher.ray:build_app`: see `ClusterArgs`.

    Raises `ArgumentError`, `CheckpointError` or `LoraError` for what is wrong with them, before anything starts.
    """
    from launcher.ray.app import make_application

    return make_application(args)
