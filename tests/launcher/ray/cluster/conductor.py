"""Changes what a running cluster serves, as `serve deploy` does: another process that has its token."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from subprocess import PIPE, Popen
from typing import Any

import yaml

from tests.launcher.processes import PATIENCE_S
from tests.launcher.ray.servers import OPTIONS, REPLICAS, Served

_SCRIPT = """
import json, sys
import ray
from ray import serve
from launcher.ray import build_app
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
print(json.dumps("joined"), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked is not None:
        serve.run(build_app(asked), name="krea2", route_prefix="/")
    replicas = serve.status().applications["krea2"].deployments["engine"].replica_states
    print(json.dumps({str(getattr(state, "value", state)): count for state, count in replicas.items()}), flush=True)
"""


@dataclass
class Conductor:
    """Deploys, and says how many engines are in which state. args: of the application as it was started."""

    process: Popen[str]
    args: dict[str, Any]

    def deploy(self, **changes: Any) -> dict[str, int]:
        """Serve with these arguments changed. Returns when all replicas are those that are wanted."""
        return self._ask(self.args | changes)

    def replicas(self) -> dict[str, int]:
        return self._ask(None)

    def _ask(self, what: Any) -> dict[str, int]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        with _in_time(self.process):
            for line in self.process.stdout:
                if line.startswith("{"):
                    answer: dict[str, int] = json.loads(line)
                    return answer
        raise AssertionError(f"the process that deploys ended with {self.process.wait(PATIENCE_S)}")


@contextmanager
def _in_time(process: Popen[str]) -> Iterator[None]:
    """Kill the process if this takes too long, which ends what is read of it."""
    late = threading.Timer(PATIENCE_S, process.kill)
    late.start()
    try:
        yield
    finally:
        late.cancel()


@contextmanager
def conduct(server: Served) -> Iterator[Conductor]:
    """A process that has joined the Ray of this server."""
    (raylet,) = server.processes("raylet/raylet")
    address = next(each.partition("=")[2] for each in raylet.cmdline() if each.startswith("--gcs-address="))
    token = {name: value for name, value in raylet.environ().items() if name.startswith("RAY_AUTH_")}
    marked = server.marked
    written = marked.run_krea2("cluster", "config", "--replicas", str(REPLICAS), *OPTIONS)
    assert written[0] == 0, written
    application = yaml.safe_load(written[1])["applications"][0]
    args = application["args"]
    for deployment in application.get("deployments", ()):  # whose own config has what is declared of engines
        args = (deployment.get("user_config") or {}) | args
    environment = marked.environment | token | {"RAY_USAGE_STATS_ENABLED": "0"}
    with (marked.folder / "conductor").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, address],
            env=environment,
            text=True,
            stdin=PIPE,
            stdout=PIPE,
            stderr=log,
        )
    try:
        assert process.stdout is not None
        with _in_time(process):
            joined = any("joined" in line for line in process.stdout)
        assert joined, (marked.folder / "conductor").read_text()[-3000:]
        yield Conductor(process, args)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
