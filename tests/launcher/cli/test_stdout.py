"""What commands print: names in it do nothing to a terminal, and paths are whole for a program."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import pytest

from engine.errors import RankError
from launcher.cli.main import commands, execute
from tests.launcher.conftest import Krea2

NAME = os.fsdecode(b"a\x1b[2J\xff\xe2\x80\xae\xc2\x9bb")  # of a file: bytes, no Unicode


@pytest.mark.parametrize("terminal", [False, True])
def test_a_path_is_escaped_for_a_terminal_alone(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert execute(["keys", str(tmp_path / NAME)]) == 0
    name = b"a\\x1b[2J\\udcff\\u202e\\x9bb" if terminal else os.fsencode(NAME)
    assert capsysbinary.readouterr().out == os.fsencode(tmp_path) + b"/" + name + b"/client.key_secret\n"


@pytest.mark.parametrize("kind", [RankError, RuntimeError, click.UsageError])
def test_an_error_does_nothing_to_a_terminal(
    krea2: Krea2, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise kind(f"cannot read {NAME}\nnor anything else")

    monkeypatch.setattr(commands, "main", fail)
    _, stdout, stderr = krea2()
    assert stdout == ""
    assert stderr.startswith("error: ")
    assert stderr.endswith("cannot read a\\x1b[2J\\udcff\\u202e\\x9bb nor anything else\n")
