"""Log lines of a run: one JSON object for each event, for whoever collects and filters them.

Nothing is written until `start_json_log`: the lines that people read are `progress` and the summary at the end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

LogFormat = Literal["text", "json"]

_events = logging.getLogger("patchsieve.events")
_events.propagate = False
_events.addHandler(logging.NullHandler())


class JsonLines(logging.Formatter):
    """A record as one line: time, level, event, the fields of every line of this process, and the event's own."""

    def __init__(self, common: dict[str, Any]) -> None:
        super().__init__()
        self._common = common

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage(), **self._common}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def start_json_log(stream: TextIO, **common: Any) -> None:
    """From now on write the events of this process, and the warnings of its libraries, to the stream.

    `common`: fields of every line. Called again, the new stream and fields take the place of the old ones.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines(common))
    _events.handlers[:] = [handler]
    _events.setLevel(logging.INFO)
    _replace_at_root([handler])


@contextlib.contextmanager
def run_events(log_format: LogFormat, **common: Any) -> Iterator[None]:
    """In the block, events of this process go to its standard output where `log_format` is json."""
    if log_format == "text":
        yield
        return
    start_json_log(sys.stdout, **common)
    try:
        yield
    finally:
        _events.handlers[:] = [logging.NullHandler()]
        _replace_at_root([])


def _replace_at_root(handlers: list[logging.Handler]) -> None:
    root = logging.getLogger()
    kept = [handler for handler in root.handlers if not isinstance(handler.formatter, JsonLines)]
    root.handlers[:] = kept + handlers


def is_json_log() -> bool:
    """Whether events of this process are written, as JSON."""
    return any(isinstance(handler.formatter, JsonLines) for handler in _events.handlers)


def log_event(event: str, fields: Mapping[str, object], *, level: int = logging.INFO) -> None:
    """Write an event of this run; nothing without `start_json_log`."""
    _events.log(level, event, extra={"fields": fields})
