"""Fixtures that the tests of the documents share with the launcher's."""

from tests.launcher.conftest import run_folder

__all__ = ["run_folder"]
