"""Files that are held for a while."""

from __future__ import annotations

from launcher.http.image_links import HeldFiles


def test_a_file_is_there_until_its_time_is_over() -> None:
    now = 0.0
    files = HeldFiles(seconds=3600.0, clock=lambda: now)
    first, second = files.add(b"first", "png"), files.add(b"second", "webp")
    assert first != second
    assert (first[-4:], second[-5:]) == (".png", ".webp")
    assert len(first) > 32
    now = 3600.0
    assert (files.get(first), files.get(second), files.get("third")) == (b"first", b"second", None)
    now = 3600.1
    assert files.get(first) is None


def test_beyond_the_bound_the_oldest_go_first() -> None:
    files = HeldFiles(max_bytes=10)
    names = [files.add(b"1234", "png") for _ in range(3)]
    assert [files.get(name) for name in names] == [None, b"1234", b"1234"]
    large = files.add(b"12345678901", "png")
    assert [files.get(name) for name in (*names, large)] == [None, None, None, b"12345678901"]
