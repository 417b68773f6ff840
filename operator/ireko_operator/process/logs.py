"""Logs for programs: one JSON object per line, with the run that it is about.

Which run a line is about travels in a context variable, so that code which knows nothing of runs logs it too.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from ireko_operator.kube.keys import Key

LogFormat = Literal["json", "text"]

_RUN: ContextVar[dict[str, str] | None] = ContextVar("run", default=None)

_QUIET = {
    "aiohttp": logging.WARNING,
    "alembic": logging.WARNING,
    "asyncio": logging.WARNING,
    "kopf": logging.WARNING,
    "kubernetes": logging.WARNING,
    "mlflow": logging.WARNING,
    "urllib3": logging.ERROR,
}
"""The least that these loggers must have to say to be heard: the rest is about their own insides."""

_SECRETS = (
    (re.compile(r"(://[^/\s:@]*):[^/\s@]+@"), r"\1:***@"),
    (re.compile(r"\b(Bearer|Basic) +[A-Za-z0-9._~+/=-]+"), r"\1 ***"),
)
"""Passwords in addresses and credentials in headers: errors of HTTP libraries repeat both."""


@contextmanager
def about(key: Key, *, uid: str | None = None) -> Iterator[None]:
    """Have every line that is logged meanwhile name the run."""
    token = _RUN.set({"namespace": key[0], "name": key[1], **({"uid": uid} if uid else {})})
    try:
        yield
    finally:
        _RUN.reset(token)


def configure(*, form: LogFormat, level: str, stream: TextIO | None = None) -> None:
    """Send what is logged in this process to `stream` (default: standard error)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    handler.addFilter(_is_news)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    threading.excepthook = _log_thread_end
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(max(least, root.level))


class JsonFormatter(logging.Formatter):
    """time, level, logger, message; `run` and `error` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
        }
        run = _RUN.get()
        if run is not None:
            line["run"] = run
        if record.exc_info:
            line["error"] = without_secrets(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line, and below it the traceback if there is one."""
        run = _RUN.get()
        name = f" [{run['namespace']}/{run['name']}]" if run is not None else ""
        text = f"{_time(record)} {record.levelname:7} {record.name}{name}: {record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return without_secrets(text)


def without_secrets(text: str) -> str:
    """The text with passwords in URLs and credentials of HTTP headers blotted out."""
    for pattern, blot in _SECRETS:
        text = pattern.sub(blot, text)
    return text


def _log_thread_end(arguments: threading.ExceptHookArgs) -> None:
    name = arguments.thread.name if arguments.thread is not None else "unknown"
    error = (arguments.exc_type, arguments.exc_value or arguments.exc_type(), arguments.exc_traceback)
    logging.getLogger(__name__).critical("The thread `%s` ended by an error.", name, exc_info=error)


def _is_news(record: logging.LogRecord) -> bool:
    """kopf warns that it takes no signals outside of the main thread, which is what we want of it."""
    return not (record.name.startswith("kopf") and "OS signals are ignored" in record.msg)


def _time(record: logging.LogRecord) -> str:
    return (
        datetime.fromtimestamp(record.created, tz=UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )
