"""Logs of a server: an event and its fields, a line each, to stderr. Silent until a process configures them."""

from __future__ import annotations

import json
import logging
import time

_logger = logging.getLogger("krea2")


def log_event(event: str, *, level: str = "info", **fields: object) -> None:
    """Log what happened, with fields such as `request_id`. Fields that are None are left out.

    level: info; warning, for a request that was not served; error, for what needs somebody's attention.
    """
    known = {name: value for name, value in fields.items() if value is not None}
    _logger.log(logging.getLevelNamesMapping()[level.upper()], event, extra={"fields": known})


def configure_logs(log_format: str) -> None:
    """Log to stderr from now on, in the format `json` or `text`."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines() if log_format == "json" else _Text())
    _logger.handlers = [handler]
    _logger.propagate = False
    _logger.setLevel(logging.INFO)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {"time": _timestamp(record), "level": record.levelname.lower(), "event": record.getMessage()}
        return json.dumps(entry | getattr(record, "fields", {}), default=str, ensure_ascii=False)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        shown = "".join(f" {name}={_short(value)}" for name, value in fields.items())
        return f"{_timestamp(record)} {record.getMessage()}{shown}"


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}:{_short(part)}" for name, part in value.items())
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value) if isinstance(value, (int, bool)) else json.dumps(str(value), ensure_ascii=False)
