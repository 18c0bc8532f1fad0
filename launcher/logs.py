"""Logs of a server: an event and its fields, a line each, to stderr. Silent until a process configures them.

All that a process of a server says goes the same way: events, what its children print, exceptions, warnings, what
libraries log, and prints to stderr. Nobody waits for whoever reads it: see `lines`.
"""

from __future__ import annotations

import atexit
import json
import logging
import sys
import threading
import time
import traceback

import msgspec

from engine.errors import printable
from launcher.lines import LONGEST, LineStream, LineWriter, StatusStream

_FAREWELL_S = 1.0  # at the end of a process, for the lines that wait
_SHORT = 64  # characters of a field that is not cut, however long a line is
_logger = logging.getLogger("krea2")


class _State:
    """What a process has decided on: there is one stderr."""

    writer: LineWriter | None = None
    log_format: str | None = None  # None: lines as they are
    process = ""


class _Entry(msgspec.Struct):
    """What all lines of a JSON log have."""

    time: str
    level: str
    event: str


_to_json = json.JSONEncoder(default=str, ensure_ascii=False).encode
_is_entry = msgspec.json.Decoder(_Entry).decode  # raises unless it is


def log_event(event: str, *, level: str = "info", **fields: object) -> None:
    """Log what happened, with fields such as `request_id`. Fields that are None are left out.

    level: info; warning, for a request that was not served; error, for what needs somebody's attention.
    """
    known = {name: value for name, value in fields.items() if value is not None}
    _logger.log(logging.getLevelNamesMapping()[level.upper()], event, extra={"fields": known})


def log_exception(error: BaseException, **fields: object) -> None:
    """Log an exception that is a mistake of ours, with its traceback."""
    shown = "".join(traceback.format_exception(error)).rstrip()
    if _State.log_format is None:
        for line in shown.split("\n"):
            _put(line)
    else:
        text = traceback.format_exception_only(error)[-1].strip()
        log_event("internal error", level="error", **fields, error=text, traceback=shown)


def log_output(process: str, line: str, *, has_log: bool) -> None:
    """Log a line that a child printed. has_log: it writes such a log as ours itself, whose lines stay as they are."""
    if _State.log_format != "json":
        _put(line if has_log else f"{process}: {line}")
    elif has_log and _is_log_line(safe := printable(line, escape=_escape_json)):
        _put(safe)
    else:
        log_event("output", process=process, line=line)


def take_stderr() -> None:
    """Have all that this process writes to stderr by Python go through a thread that waits for who reads it."""
    if _State.writer is not None or sys.stderr is None:
        return
    encoding = sys.stderr.encoding if sys.stderr.isatty() else "utf-8"
    _State.writer = LineWriter(sys.stderr.fileno(), on_dropped=_tell_dropped, encoding=encoding)
    sys.stderr = LineStream(sys.stderr, _log_printed)
    atexit.register(flush_stderr)


def keep_lines_whole() -> None:
    """Have lines that threads of this process print to stderr at the same time stay whole, and be written at once: for
    a child, whose parent always reads, and whose last words count."""
    if (stderr := sys.stderr) is not None:
        sys.stderr = LineStream(stderr, lambda line: stderr.write(line + "\n"))


def status_stream() -> StatusStream | None:
    """Return where a bar can be written to that stays below the lines of a log; None if that is on no terminal."""
    if _State.writer is None or _State.log_format == "json" or sys.stderr is None or not sys.stderr.isatty():
        return None
    return StatusStream(sys.stderr, _State.writer)


def flush_stderr() -> None:
    """Give what has been logged a second to be written."""
    if _State.writer is not None:
        _State.writer.flush(_FAREWELL_S)


def dropped_lines() -> int:
    """Return how many lines of this process were dropped, since nobody read them."""
    return 0 if _State.writer is None else _State.writer.dropped


def configure_logs(log_format: str, process: str = "front-end") -> None:
    """Log to stderr from now on, in the format `json` or `text`. process: a name for what is printed to stderr here."""
    take_stderr()
    _State.log_format, _State.process = log_format, process
    handler = _Lines()
    handler.setFormatter(_JsonLines() if log_format == "json" else _Text())
    _logger.setLevel(logging.INFO)
    logging.getLogger().addHandler(handler)  # which gets ours, and what libraries warn of
    logging.captureWarnings(True)
    sys.excepthook = lambda _kind, error, _trace: log_exception(error)
    threading.excepthook = _log_thread


def end_logs() -> None:
    """Write what is printed to stderr as it is from now on: the command has the last word."""
    _State.log_format = None


def _log_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
        log_exception(ended.exc_value)


def _tell_dropped(lines: int) -> None:
    if _State.log_format is None:
        _put(f"{lines} lines are missing here, since nobody read them")
    else:
        log_event("log lines dropped", level="warning", lines=lines)


def _log_printed(line: str) -> None:
    """Log a line that was printed to our own stderr."""
    if _State.log_format == "json":
        log_event("output", process=_State.process, line=line)
    else:
        _put(line)


def _put(line: str) -> None:
    if _State.writer is not None:
        _State.writer.put(printable(line))
    elif sys.stderr is not None:
        sys.stderr.write(printable(line) + "\n")


def _is_log_line(line: str) -> bool:
    try:
        _is_entry(line)
    except (ValueError, RecursionError):  # msgspec's own errors are ValueErrors
        return False
    return len(line) <= LONGEST


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            for line in self.format(record).split("\n"):
                _put(line)
        except Exception:
            self.handleError(record)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event, fields = _read(record)
        while len(line := self._line(record, event, fields)) > LONGEST:
            longest = max(fields, key=lambda name: len(str(fields[name])))
            value = str(fields[longest])
            if len(value) < _SHORT:
                break
            fields[longest] = f"{value[: len(value) // 4]} … {value[-len(value) // 4 :]}"
        return line

    def _line(self, record: logging.LogRecord, event: str, fields: dict[str, object]) -> str:
        entry = {"time": _timestamp(record), "level": record.levelname.lower(), "event": event} | fields
        return printable(_to_json(entry), escape=_escape_json)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event, fields = _read(record)
        below = fields.pop("traceback", None)
        if event == "output":
            shown = f"{fields['logger']}: {fields['line']}"
        else:
            shown = event + "".join(f" {name}={_short(value)}" for name, value in fields.items())
        text = f"{_timestamp(record)} {record.levelname:<7} {shown}" + ("" if below is None else f"\n{below}")
        return text.replace("\n", "\n    ")  # so that nothing in it looks like a line of the log


def _read(record: logging.LogRecord) -> tuple[str, dict[str, object]]:
    """The event of a record and its fields; what libraries log is output of this process."""
    if record.name == _logger.name:
        return record.getMessage(), dict(getattr(record, "fields", {}))
    fields: dict[str, object] = {"process": _State.process, "logger": record.name, "line": record.getMessage()}
    if record.exc_info:
        fields["traceback"] = "".join(traceback.format_exception(record.exc_info[1])).rstrip()
    return "output", fields


def _escape_json(character: str) -> str:
    """A lone surrogate becomes the text of its escape: some readers of JSON refuse the escape itself."""
    lone = "\ud800" <= character <= "\udfff"
    return json.dumps(ascii(character)[1:-1] if lone else character)[1:-1]


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}:{_short(part)}" for name, part in value.items())
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value) if isinstance(value, (int, bool)) else json.dumps(str(value), ensure_ascii=False)
