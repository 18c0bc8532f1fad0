"""Messages that have not come whole, at the entrance for clients."""

from __future__ import annotations

import struct

import pytest

from launcher.messages.connections import framing as module
from launcher.messages.connections.framing import Framing, FramingError, Unfinished

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
OLD_GREETING = b"\xff" + bytes(8) + b"\x7f\x01\x05"


def frame(size: int, *, more: bool = False, long: bool = False) -> bytes:
    length = struct.pack(">Q", size) if long else bytes([size])
    return bytes([more + 2 * long]) + length + b"\1" * size


@pytest.mark.parametrize("greeting", [GREETING, OLD_GREETING])
@pytest.mark.parametrize("piece", [1, 2, 7, 1000])
def test_a_message_counts_until_it_is_whole_in_whatever_pieces_it_comes(greeting: bytes, piece: int) -> None:
    first = greeting + frame(20) + frame(0) + frame(5, more=True) + frame(300, more=True, long=True)
    framing = Framing(3)
    for start in range(0, len(first), piece):
        framing.take(first[start : start + piece])
    assert framing.under_way == 305
    framing.take(frame(10, long=True)[:-1])
    assert framing.under_way == 314
    framing.take(b"\1")
    assert framing.under_way == 0


def test_a_message_of_too_many_frames_and_what_is_no_zmq_are_refused() -> None:
    framing = Framing(3)
    framing.take(GREETING + (frame(1, more=True) * 2 + frame(1)) * 2)
    with pytest.raises(FramingError, match="more than 3 frames"):
        framing.take(frame(0, more=True) * 4)
    for other in (b"GET / HTTP/1.1\r\n", b"\x01\x00" * 20, b"\xff" + bytes(9) + b"\x03" + bytes(53)):
        with pytest.raises(FramingError, match="not the greeting"):
            Framing(3).take(other)


def test_the_message_that_began_first_ends_when_all_hold_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_UNDER_WAY", 100)
    ended: list[str] = []
    unfinished: Unfinished[str] = Unfinished(3, lambda who, _: ended.append(who))
    one, two, three = (unfinished.begin(who) for who in ("one", "two", "three"))
    assert one(GREETING + frame(40, more=True))
    assert two(GREETING + frame(40, more=True))
    assert one(frame(0)), "it is whole, and the next begins after that of two"
    assert one(frame(20, more=True))
    assert ended == []
    assert three(GREETING + frame(50, more=True))
    assert ended == ["two"]
    unfinished.forget("three")
    assert one(frame(80, more=True))
    assert not one(frame(1, more=True))
    assert ended == ["two", "one"]
