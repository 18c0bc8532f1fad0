"""GPUs that fail under a whole server, whose processes are real but for what ranks compute and what NVML says."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from tests.launcher.processes import PATIENCE_S, Marked, read_log, wait_until

pytestmark = pytest.mark.slow

# Ranks that say that they run on GPUs a, b and c, as far as they may see them.
HOLLOW_GPUS = """
import sys
if "_rank" in sys.orig_argv:
    import os
    from types import SimpleNamespace
    class Device(SimpleNamespace):
        def __str__(self):
            return f"cuda:{self.index}"
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c").replace("GPU-", "").split(",")
    devices = sys.modules["engine.device.devices"]
    devices.pick_device = lambda config, rank, ranks: Device(type="cuda", index=rank % len(seen))
    devices.device_name, devices.gpu_uuids = lambda _: "a hollow GPU", lambda _: tuple(seen)
"""
# An NVML that reports what a test writes into a file: a line with a GPU's number and an Xid.
WRITTEN_ERRORS = """
import sys
if "serve" in sys.orig_argv:
    from tests.launcher.ranks.gpus.fake_nvml import FakeNvml
    class WrittenNvml(FakeNvml):
        def nvmlEventSetWait_v2(self, events, timeout_ms):
            with open({file!r}) as file:
                for line in file.read().splitlines()[self.read :]:
                    self.read += 1
                    self.happens(*map(int, line.split()))
            return FakeNvml.nvmlEventSetWait_v2(self, events, 50)
    sys.modules["pynvml"] = WrittenNvml("a", "b", "c")
    sys.modules["pynvml"].read = 0
"""


class Server:
    """A server of two ranks on three GPUs."""

    def __init__(self, marked: Marked) -> None:
        self._marked, self._written, self._log = marked, marked.folder / "xids", marked.folder / "log"
        self._written.touch()
        marked.use_hollow_ranks()
        marked.run_first(HOLLOW_GPUS)
        marked.run_first(WRITTEN_ERRORS.format(file=str(self._written)))
        marked.environment["XDG_CACHE_HOME"] = str(marked.folder / "cache")
        with self._log.open("w") as log:
            arguments = ("serve", "--port", "0", "--tp", "2", "--log-format", "json")
            self.process = marked.start_krea2(*arguments, stderr=log)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip().removeprefix("http: ")
        wait_until(lambda: self.answers("/ready"), "the server's warm-up")

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=PATIENCE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def answers(self, path: str) -> bool:
        return self.get(path)[0] == 200

    def generate(self) -> tuple[int, str]:
        body = json.dumps({"prompt": "x", "size": "64x64", "steps": 1}).encode()
        request = urllib.request.Request(
            f"{self.url}/v1/images/generations", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def fails(self, gpu: int, xid: int) -> None:
        """A GPU has an error."""
        before = len(self.logged("gpu error"))
        with self._written.open("a") as file:
            file.write(f"{gpu} {xid}\n")
        self.has_logged("gpu error", before + 1)

    def has_logged(self, event: str, count: int) -> None:
        """Wait until an event has been logged so many times."""
        wait_until(lambda: len(self.logged(event)) >= count, f"{event} for the {count}. time")

    def logged(self, event: str) -> list[dict[str, object]]:
        return [entry for entry in read_log(self._log) if entry["event"] == event]

    def visible(self) -> list[str | None]:
        return [self._marked.rank(index).environ().get("CUDA_VISIBLE_DEVICES") for index in (-2, -1)]


def test_a_server_goes_on_with_the_gpus_that_are_left_and_says_which_have_failed(marked: Marked) -> None:
    server = Server(marked)
    for restarts in (1, 2):
        assert server.generate()[0] == 200
        server.fails(0, 48)
        marked.rank(-1).kill()
        server.has_logged("ranks ready", 1 + restarts)
    assert server.visible() == ["GPU-b,GPU-c"] * 2
    assert server.generate()[0] == 200
    wait_until(lambda: server.answers("/ready"), "readiness")
    assert 'krea2_device_quarantined{device="0"} 1.0' in server.get("/metrics")[1]

    server.fails(1, 79)
    server.has_logged("ranks given up", 1)  # though no rank has noticed
    status, text = server.generate()
    error = json.loads(text)["error"]
    assert (status, error["code"]) == (503, "rank_failed")
    status, reason = server.get("/ready")
    assert status == 503
    for said in (error["message"], reason):
        assert "GPU 0 (Fake H200, GPU-a) has failed 2 times, the last time with Xid 48" in said
        assert "GPU 1 (Fake H200, GPU-b) has failed with Xid 79: it has fallen off the bus" in said
    assert server.answers("/health")
    metrics = server.get("/metrics")[1]
    for line in ('_quarantined{device="1"} 1.0', '_errors_total{device="0",xid="48"} 2.0', "krea2_ready 0.0"):
        assert line in metrics
    wait_until(lambda: not marked.alive("_rank"), "the end of the ranks")
    server.process.terminate()
    server.process.communicate(timeout=PATIENCE_S)
    assert server.process.returncode == 143
    marked.expect_nothing_left()
