"""Counts answered requests: in memory, or, where several HTTP processes serve, in a file of each that all read.

Names and labels are the same. Counts in files outlive their process, since the next one goes on with them.
"""

from __future__ import annotations

import os
from pathlib import Path

import prometheus_client.values
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from engine.errors import LaunchError

_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_KINDS = ("counter", "histogram")
_FILE_BYTES = 2**20  # more than all routes, methods and statuses take


class HttpMetrics:
    """Counts requests by route, method and status, and how long they took by route.

    folder: where the processes keep their files (`make_files`), this one those of its number; None for one that is
    alone.
    """

    def __init__(self, folder: str | None = None, worker: int = 0) -> None:
        disable_created_metrics()
        self._folder = folder
        if folder is not None:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
            values = prometheus_client.values
            values.ValueClass = values.MultiProcessValue(lambda: worker)
        self._registry = CollectorRegistry()
        labels = ["route", "method", "status"]
        self._requests = Counter("krea2_http_requests", "Answered HTTP requests", labels, registry=self._registry)
        answered = "Seconds until an answer was sent"
        self._seconds = Histogram(
            "krea2_http_request_seconds", answered, ["route"], registry=self._registry, buckets=_SECONDS
        )

    def count(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request that was answered, or not, after so many seconds; status 0 is no answer."""
        self._requests.labels(route, method, status).inc()
        self._seconds.labels(route).observe(seconds)

    def render(self) -> bytes:
        """Write all in Prometheus' text format, those of the other processes too."""
        if self._folder is None:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=self._folder)
        return generate_latest(registry)


def metrics_path(run_folder: str) -> str:
    """Return the folder of these files."""
    return os.path.join(run_folder, "http-metrics")


def make_files(run_folder: str, workers: int) -> None:
    """Make the folder and the files of this many processes, so that they need no more of the disk later.

    A disk that is full would end a process that writes to memory which stands for a file. Raises `LaunchError`.
    """
    path = Path(metrics_path(run_folder))
    try:
        path.mkdir(mode=0o700)
        for path in [path / f"{kind}_{worker}.db" for kind in _KINDS for worker in range(workers)]:
            path.write_bytes(bytes(_FILE_BYTES))
    except OSError as error:
        raise LaunchError(f"cannot write {path}: {error.strerror}") from None
