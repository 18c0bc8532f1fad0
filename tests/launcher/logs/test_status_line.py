"""A line that stays below those of a log."""

from __future__ import annotations

import os

from launcher.lines import LineWriter, StatusStream
from tests.launcher.processes import PATIENCE_S


def test_a_status_line_stays_below_the_others_and_is_taken_away() -> None:
    reader, writer = os.pipe()
    lines = LineWriter(writer, on_dropped=lambda count: None)

    def written() -> str:
        lines.flush(PATIENCE_S)
        return os.read(reader, 1 << 16).decode()

    lines.show("10 %")
    assert written() == "10 %"
    lines.put("an event")
    assert written() == "\r\033[Kan event\n10 %"
    lines.show("20 %")
    assert written() == "\r\033[K20 %"
    lines.show("")
    assert written() == "\r\033[K"
    lines.put("another")
    assert written() == "another\n"


def test_what_a_bar_writes_is_its_newest_state_alone() -> None:
    reader, writer = os.pipe()
    lines = LineWriter(writer, on_dropped=lambda count: None)
    with os.fdopen(writer, "w", closefd=False) as terminal:
        stream = StatusStream(terminal, lines)
        assert stream.fileno() == writer
        stream.write("\rloading: 10%   ")
        lines.flush(PATIENCE_S)
        stream.write("\r               \r")
        lines.flush(PATIENCE_S)
    assert os.read(reader, 1 << 16).decode() == "loading: 10%\r\033[K"
