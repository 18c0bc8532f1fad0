"""A cluster on this machine whose engines draw nothing: `python -m tests.launcher.ray.one_machine.stand_in [ARGS]`.

ARGS is JSON: `fail`, with which an engine does not start, and `drain_s`. Prints `serving` and the open ports; its
engines start a process each that would never end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from engine.errors import CheckpointError, Krea2Error
from launcher.ray.one_machine.command import Cluster, reserve
from launcher.ray.one_machine.messages import ClusterConfig, OpenPort


def build_app(args: dict[str, Any]) -> Any:
    """Make the application."""
    from ray import serve

    class Engine:
        def __init__(self, fail: str | None) -> None:
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1e6)", "_left"], start_new_session=True)
            if fail is not None:
                raise CheckpointError(fail)
            print(json.dumps({"time": "", "level": "info", "event": "engine", "niceness": os.nice(0)}))

        async def __call__(self) -> str:
            return "drawn"

    class Ingress:
        def __init__(self, engine: Any) -> None:
            self._engine = engine

        async def __call__(self, _: Any) -> str:
            return str(await self._engine.remote())

        async def leave(self, cut_off: bool) -> int:
            return 0

    options = {"num_replicas": 1, "max_constructor_retry_count": 1, "ray_actor_options": {"num_cpus": 0}}
    engine = serve.deployment(Engine, name="engine", **options).bind(args.get("fail"))
    return serve.deployment(Ingress, name="ingress", **options).bind(engine)


def main(args: dict[str, Any]) -> int:
    """Run it. Returns the exit code."""

    def serving(ports: Sequence[OpenPort]) -> None:
        print("serving", taken.url, *(each.port for each in ports), flush=True)

    with reserve("127.0.0.1", 0) as taken:
        drain_s = args.get("drain_s", 60.0)
        config = ClusterConfig(
            args=args, application=f"{__spec__.name}:build_app", port=taken.port, cpus=8, drain_s=drain_s
        )
        try:
            number = Cluster(
                config, on_stage=lambda _: None, on_serving=serving, on_draining=lambda: print("draining", flush=True)
            ).run()
        except Krea2Error as error:
            print(f"error: {error.message}", flush=True)
            return error.exit_code
    return 128 + (number or 0)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]) if sys.argv[1:] else {}))
