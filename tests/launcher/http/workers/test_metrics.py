"""Metrics of several HTTP processes: each counts in files of its own, and any of them tells all."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path
from subprocess import run

import pytest

from engine.errors import LaunchError
from launcher.http.workers.metrics import HttpMetrics, make_files, metrics_path

COUNT = """
import sys
from launcher.http.workers.metrics import HttpMetrics
metrics = HttpMetrics(sys.argv[1], int(sys.argv[2]))
metrics.count("/health", "GET", 200, 0.01)
print(metrics.render().decode())
"""


def count_in_a_process(folder: str, worker: int) -> str:
    return run([sys.executable, "-c", COUNT, folder, str(worker)], check=True, capture_output=True, text=True).stdout


def names_and_labels(text: str) -> list[str]:
    return sorted(re.sub(r" \S+$", "", line) for line in text.splitlines() if line)


def test_processes_count_together_and_whoever_replaces_one_goes_on(tmp_path: Path) -> None:
    make_files(str(tmp_path), 2)
    folder = metrics_path(str(tmp_path))
    for worker in (0, 1, 1):
        text = count_in_a_process(folder, worker)
    assert 'krea2_http_requests_total{method="GET",route="/health",status="200"} 3.0' in text
    alone = HttpMetrics()
    for _ in range(3):
        alone.count("/health", "GET", 200, 0.01)
    assert names_and_labels(text) == names_and_labels(alone.render().decode())


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(LaunchError, match=r"cannot write \S+/http-metrics/counter_0\.db: No space left on device"):
        make_files(str(tmp_path), 2)
