"""Fixtures that the benchmarks' tests share with the launcher's."""

from tests.launcher.conftest import run_folder

__all__ = ["run_folder"]
