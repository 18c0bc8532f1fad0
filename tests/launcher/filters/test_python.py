"""Filters that are classes of the operator's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from engine.errors import ArgumentError
from launcher.filters.built_in import python
from launcher.filters.spec import read_spec

MODULE = """
class Kept:
    def __init__(self, **options):
        self.options = options

def make(least):
    return Kept(least=least)

value = 3
"""


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    package = tmp_path / "operators_own"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "checks.py").write_text(MODULE)
    (package / "broken.py").write_text("import nowhere_to_be_found")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "operators_own"]:
        del sys.modules[name]


def test_options_of_its_own_come_as_texts() -> None:
    spec = read_spec("python:operators_own.checks:Kept,block=nude:0.8,least=0.5,url=http://x/y,z=a:b")
    made = cast("SimpleNamespace", python.make(spec.value, spec.options))
    assert made.options == {"least": "0.5", "url": "http://x/y", "z": "a:b"}
    assert spec.thresholds == {"auto": {"block": {"nude": 0.8}}}


def test_what_makes_a_filter_may_be_a_function() -> None:
    assert cast("SimpleNamespace", python.make("operators_own.checks:make", {"least": "1"})).options == {"least": "1"}


@pytest.mark.parametrize(
    "value", ["", "checks", "checks:", ":Kept", "a:b:c", "a-b:C", "a..b:C", "1a:B", "a/b.py:C", "a:B()"]
)
def test_a_value_that_names_no_class_is_refused(value: str) -> None:
    with pytest.raises(ArgumentError, match="filter python: its value must be MODULE:CLASS") as refused:
        read_spec(f"python:{value}")
    assert refused.value.parameter == "filters"


def test_an_option_that_is_no_argument_is_refused() -> None:
    with pytest.raises(ArgumentError, match="key-env= is given to checks:Kept, whose arguments have names with _"):
        read_spec("python:checks:Kept,key-env=KEY")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("operators_own.checks:Kapt", r"operators_own.checks has no class Kapt; did you mean Kept\?$"),
        ("operators_own.checks:value", "operators_own.checks has no class value"),
        ("operators_own.cheks:Kept", "there is no module operators_own.cheks: it must be installed, or in a folder"),
        ("operator_own.checks:Kept", "there is no module operator_own: it must be installed, or in a folder"),
    ],
)
def test_what_is_not_there_is_said(value: str, told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        python.make(value, {})


def test_what_a_module_and_a_class_raise_is_told_as_it_is() -> None:
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        python.make("operators_own.broken:Kept", {})
    with pytest.raises(TypeError, match="most"):
        python.make("operators_own.checks:make", {"most": "1"})
