"""What a GPU's kernels need of a machine is named before the first of them is launched."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from engine.kernels import jit


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that has everything."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    monkeypatch.setattr(jit.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(jit, "find_spec", lambda name: object())
    monkeypatch.delenv("CC", raising=False)


def test_a_machine_that_has_it_all_misses_nothing() -> None:
    assert jit.missing_for_kernels() is None


def test_triton_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "find_spec", lambda name: None)
    assert jit.missing_for_kernels() == "the package triton"


def test_a_compiler_is_missed_unless_cc_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit.shutil, "which", lambda name: None)
    assert jit.missing_for_kernels() == "a C compiler (gcc, clang or CC)"
    monkeypatch.setenv("CC", "/opt/cc")
    assert jit.missing_for_kernels() is None


def test_headers_are_missed(tmp_path: Path) -> None:
    (tmp_path / "Python.h").unlink()
    assert str(jit.missing_for_kernels()).startswith(f"Python's headers ({tmp_path}/Python.h")
