"""API keys: the file that has them, and whose a key is."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import ArgumentError
from launcher.messages.api_keys import MAX_KEYS, ApiKey, KeyRing, name_keys, others_can_read, read_keys


def test_a_file_has_a_key_a_line_with_or_without_a_name(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(
        "# who may ask\nalice old-key\n\n  bob\tschlüssel ☺".replace(" ☺", "☺") + "\nalice new-key\r\nplain\n"
    )
    keys = read_keys(file)
    assert [(key.name, key.key) for key in keys] == [
        ("alice", "old-key"),
        ("bob", "schlüssel☺"),
        ("alice", "new-key"),
        ("line-6", "plain"),
    ]
    assert "old-key" not in repr(keys)
    assert [key.name for key in name_keys(("first", "second"), keys)][:3] == ["api-key-1", "api-key-2", "alice"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "it must have 1 to 1000 keys, got 0"),
        (b"# nothing\n", "it must have 1 to 1000 keys, got 0"),
        (b"a b c\n", "line 1 must be NAME KEY or KEY, a name being 1 to 64 letters"),
        (b"x\nal/ice key\n", "line 2 must be NAME KEY or KEY"),
        (b"anonymous key\n", "line 1 must be NAME KEY or KEY"),
        (b"a" * 65 + b" key\n", "line 1 must be NAME KEY or KEY"),
        (b"alice " + b"k" * 1025, "line 1 must be NAME KEY or KEY"),
        (b"alice same\nbob same\n", "line 2 has a key that alice has too"),
        (b"alice \xff\xfe\n", "it is not UTF-8"),
        (b"#" * (2**20 + 1), "it is larger than 1048576 bytes"),
        (b"".join(b"%d\n" % number for number in range(MAX_KEYS + 1)), "it must have 1 to 1000 keys, got 1001"),
    ],
)
def test_a_damaged_file_is_told_with_its_line_and_never_with_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("damaged-keys")  # a long path is cut in the message
    file.write_bytes(text)
    with pytest.raises(ArgumentError, match=message) as damaged:
        read_keys(file)
    assert str(file) in damaged.value.message
    assert damaged.value.parameter == "api_key_file"
    assert "same" not in damaged.value.message


def test_a_file_that_is_not_there_and_one_that_everybody_can_read(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"api_key_file must be a text file that can be read \(No such file"):
        read_keys(tmp_path / "nothing")
    with pytest.raises(ArgumentError, match="Is a directory"):
        read_keys(tmp_path)
    file = tmp_path / "keys"
    file.write_text("key")
    file.chmod(0o640)
    assert not others_can_read(file)
    file.chmod(0o644)
    assert others_can_read(file)


@pytest.mark.parametrize("text", ["one", "#note\none", "alice one"])
def test_the_mark_that_some_editors_begin_a_file_with_is_no_part_of_a_key(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text, encoding="utf-8-sig")
    assert [key.key for key in read_keys(file)] == ["one"]


def test_a_key_is_known_by_its_name() -> None:
    ring = KeyRing([ApiKey(name="alice", key="one"), ApiKey(name="alice", key="two"), ApiKey(name="bob", key="drei ☺")])
    assert len(ring) == 3
    sent = (b"one", b"two", "drei ☺".encode(), b"", b"on", b"onee", b"\xff")
    assert [ring.name_of(key) for key in sent] == ["alice", "alice", "bob", None, None, None, None]
    assert not KeyRing(())
