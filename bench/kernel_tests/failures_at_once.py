"""A plugin of pytest: a test that fails says why at once, and not when all are done, which may never be; one that hangs
says where it does when it is stopped; and one with which the GPU is lost, after which all would fail, is the last."""

from __future__ import annotations

import faulthandler
import os
import signal
from typing import Any

import pytest

from bench.measure.lost import is_lost

_STDERR = os.dup(2)  # before pytest captures it: what runs the tests passes it on at once
LOST = "the GPU is lost in"  # what the last line of such a run begins with, before the test's name


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_FailuresAtOnce())
    faulthandler.register(signal.SIGTERM, _STDERR, all_threads=True, chain=True)


class _FailuresAtOnce:
    def __init__(self) -> None:
        self._lost: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            _say(f"\nFAILED at once: {report.nodeid} ({report.when})\n{report.longreprtext}")

    def pytest_exception_interact(self, node: pytest.Item | pytest.Collector, call: pytest.CallInfo[Any]) -> None:
        if self._lost is None and call.excinfo is not None and is_lost(call.excinfo.value):
            self._lost = node.nodeid
            node.session.shouldstop = f"{LOST} {node.nodeid}"
            _say(f"\n{LOST} {node.nodeid}: the tests after it are not run, since they would fail too")

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        if self._lost is not None:
            print(f"{LOST} {self._lost}")


def _say(text: str) -> None:
    os.write(_STDERR, f"{text}\n".encode(errors="replace"))
