"""A server's log: a JSON object a line, whatever a process says and whoever says it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from engine.errors import printable
from launcher.lines import LONGEST
from launcher.logs import take_stderr
from tests.launcher.processes import PATIENCE_S, ROOT

# Escape codes, C1, what turns the direction of text, line separators, lone surrogates.
HOSTILE = "a\x1b[2Jb\x00c\x7fd\x85e\x9bf\u061cg\u200e\u200fh\u202a\u202ei\u2066\u2069j\u2028k\u2029l\udcffm\r\nü"


def say(code: str, log_format: str | None = "json") -> list[str]:
    """The lines on stderr of a process that says things once its log has begun."""
    begin = "take_stderr()" if log_format is None else f"configure_logs({log_format!r})"
    script = f"""
import sys, threading, warnings, logging
from launcher import logs
from launcher.logs import *
logs._FAREWELL_S = {PATIENCE_S}
{begin}
HOSTILE = {HOSTILE!a}
{code}"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert done.stdout == b""
    text = done.stderr.decode()
    assert text.endswith("\n")
    return text[:-1].split("\n")


def entries(code: str) -> list[dict[str, Any]]:
    """What a process says, as a JSON log."""
    lines = say(code)
    assert all(line.isprintable() for line in lines)
    return [json.loads(line) for line in lines]


SAY_ALL = """
log_event("http", path=HOSTILE, nested={"name": HOSTILE})
print("printed", HOSTILE, file=sys.stderr)
print("rank", HOSTILE.encode(errors="replace"), file=sys.stderr)
warnings.warn("deprecated\\nin two lines")
logging.getLogger("library").warning("%s is odd", HOSTILE)
def fail():
    raise ValueError(HOSTILE)
thread = threading.Thread(target=fail)
thread.start()
thread.join()
try:
    fail()
except ValueError as error:
    log_exception(error, request_id="1")
    logging.getLogger("asyncio").error("Task exception was never retrieved", exc_info=error)
log_output("rank 1", "says " + HOSTILE.split(chr(10))[0], has_log=False)
fail()
"""


def test_everything_that_a_process_says_is_one_object_a_line() -> None:
    said = entries(SAY_ALL)
    events = [(entry["level"], entry["event"]) for entry in said]
    assert events == [
        ("info", "http"),
        *[("info", "output")] * 3,  # the text has a line break
        ("warning", "output"),
        ("warning", "output"),
        ("error", "internal error"),
        ("error", "internal error"),
        ("error", "output"),
        ("info", "output"),
        ("error", "internal error"),
    ]
    shown = HOSTILE.replace("\udcff", "\\udcff")
    assert (said[0]["path"], said[0]["nested"]) == (shown, {"name": shown})
    assert "\n".join(entry["line"] for entry in said[1:3]) == f"printed {shown}"
    assert {entry["process"] for entry in said[1:6]} == {"front-end"}
    assert "deprecated\nin two lines" in said[4]["line"]
    assert (said[5]["logger"], said[5]["line"]) == ("library", f"{shown} is odd")
    assert said[7]["request_id"] == "1"
    for entry in (said[6], said[7], said[8], said[10]):
        assert entry["traceback"].startswith("Traceback (most recent call last):\n")
        assert entry["traceback"].endswith(f"ValueError: {shown}")
    assert (said[8]["logger"], said[8]["line"]) == ("asyncio", "Task exception was never retrieved")
    assert (said[9]["process"], said[9]["line"]) == ("rank 1", "says " + shown.split("\n")[0])


def test_text_is_escaped_too_and_nothing_in_it_looks_like_a_line_of_the_log() -> None:
    """A line that begins a new entry has a time, or a process' name, in front."""
    forged = "2026-01-01T00:00:00.000Z INFO    http status=200"
    lines = say(SAY_ALL.replace("HOSTILE)", f'HOSTILE + "\\n{forged}")').replace('"says', f'"{forged} says'), "text")
    assert all(line.isprintable() for line in lines)
    assert not any(line == forged for line in lines if not line.startswith("printed"))
    assert all(re.match(r"\d{4}-\d\d-\d\dT|    |printed |rank|ü", line) for line in lines if line != forged)
    assert sum(line.startswith("    Traceback") for line in lines) == 4
    assert any(line.startswith(f"rank 1: {forged} says a\\x1b[2Jb") for line in lines)
    assert "ü" in lines[0]


def test_a_line_of_text_has_its_level_after_the_time() -> None:
    code = """log_event("ready", token_budget=8); log_event("request refused", level="warning", code="queue_full")
log_event("ranks lost", level="error"); logging.getLogger("library").warning("odd"); log_exception(ValueError("x"))"""
    times, said = zip(*(line.split(" ", 1) for line in say(code, "text")), strict=True)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]{12}Z", time) for time in times[:5])
    assert said[:5] == (
        "INFO    ready token_budget=8",
        'WARNING request refused code="queue_full"',
        "ERROR   ranks lost",
        "WARNING library: odd",
        'ERROR   internal error error="ValueError: x"',
    )


def test_a_process_without_a_log_says_lines_as_they_are_but_escaped() -> None:
    lines = say(
        'print("a", HOSTILE.split(chr(10))[0], file=sys.stderr); log_output("rank 0", "b\\x9b", has_log=False)', None
    )
    assert lines == ["a " + printable(HOSTILE.split("\n")[0]), "rank 0: b\\x9b"]


def test_a_line_of_a_child_that_is_no_entry_becomes_one() -> None:
    lines = [
        "plain", "", "{", "[1]", "1", "null", '{"time": "x"}', '{"time": 1, "level": "info", "event": "http"}',
        '{"time": "", "level": "", "event": ""} {}', '{"time":"","level":"","event":"a\tb"',
        '\t{"time": "", "level": "", "event": ""}', '\u2028{"time":"","level":"","event":""}', "[" * 9000,
    ]  # fmt: skip
    long = '{"time":"","level":"","event":"","x":"' + "\x9b" * LONGEST + '"}'
    *others, last = entries(f'for line in {[*lines, long]!a}: log_output("http", line, has_log=True)')
    assert [entry["line"] for entry in others] == lines
    assert last["line"].startswith(long[:100])
    for entry in (*others, last):
        assert (entry["event"], entry["process"], entry["level"]) == ("output", "http", "info")


def test_an_entry_of_a_child_stays_as_it_is_but_escaped() -> None:
    line = '{"time": "", "level": "info", "event": "http", "path": "/\x9bü\u202e"}'
    assert say(f'log_output("http", {line!a}, has_log=True)') == [
        line.replace("\x9b", "\\u009b").replace("\u202e", "\\u202e")
    ]
    (wrapped,) = entries(f'log_output("rank 0", {line!a}, has_log=False)')
    assert wrapped["line"] == line


def test_a_line_that_would_be_too_long_keeps_its_short_fields() -> None:
    long = '"a" * 100_000 + "z", "\\x9b" * 20_000, ["long"] * 20_000, {"key": "b" * 50_000}'
    lines = say(f'for long in ({long}): log_event("http", request_id="1", path=long, error="{"e" * 5000}")')
    assert len(lines) == 4
    for line in lines:
        entry = json.loads(line)
        assert len(line) <= LONGEST
        assert (entry["event"], entry["request_id"]) == ("http", "1")
        assert " … " in entry["path"]


def test_the_last_word_is_the_command_s() -> None:
    log, last = say('log_event("ready"); end_logs(); print("error: no more", file=sys.stderr)')
    assert json.loads(log)["event"] == "ready"
    assert last == "error: no more"


def test_a_process_whose_stderr_is_closed_says_nothing() -> None:
    script = """from launcher.logs import *
configure_logs("json"); log_event("ready"); log_exception(ValueError()); end_logs(); log_exception(ValueError())"""
    command = f"{sys.executable} -c '{script}' 2>&-"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=True)
    assert done.stdout == b""


def test_names_for_a_terminal() -> None:
    shown = printable(HOSTILE)
    assert shown.isprintable()
    assert shown.startswith("a\\x1b[2Jb\\x00c\\x7fd\\x85e\\x9bf\\u061c")
    assert shown.endswith("l\\udcffm\\r\\nü")
    assert printable("für Löwen 獅子") == "für Löwen 獅子"


def test_stderr_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    take_stderr()
    assert sys.stderr is None
