"""A plugin of pytest: a test that fails says why at once, and not when all are done, which may never be."""

from __future__ import annotations

import pytest


@pytest.hookimpl(trylast=True)  # when there is a terminal to write to
def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_FailuresAtOnce(config))


class _FailuresAtOnce:
    def __init__(self, config: pytest.Config) -> None:
        self._writer = config.get_terminal_writer()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._writer.line(f"\nFAILED at once: {report.nodeid} ({report.when})\n{report.longreprtext}")
            self._writer.flush()
