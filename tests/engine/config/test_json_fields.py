"""A checkpoint's json files: how long they may be, and what is said of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config.bounded_json import LARGEST_JSON
from engine.config.json_fields import read_json_object
from engine.errors import CheckpointError


def test_a_file_beyond_the_limit_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with file.open("wb") as opened:
        opened.truncate(1 << 40)  # a sparse file, of no blocks
    with pytest.raises(CheckpointError) as refused:
        read_json_object(file)
    assert refused.value.message == f"{file}: is too long, expected at most {LARGEST_JSON} bytes, found {1 << 40}"


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b"{}" + b" " * (LARGEST_JSON - 2))
    assert read_json_object(file) == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b'{"a": 1, "a": 1}', "is not valid json: the key 'a' is there twice"),
        (b'{"a": ' + b"[" * 100, "is not valid json: at most 64 objects and lists within one another are allowed"),
        (b"[]", "does not hold a json object, found list"),
        (b'{"\xff": 1}', "is not valid json: 'utf-8' codec can't decode"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: bytes, problem: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(text)
    with pytest.raises(CheckpointError) as refused:
        read_json_object(file)
    assert refused.value.message.startswith(f"{file}: {problem}")
