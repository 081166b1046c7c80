"""One event, one line: what a process writes whose output nobody looks at while it appears."""

from __future__ import annotations

import json
import logging
import time

__all__ = ["LogLine"]


class LogLine(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO medserve.container: text`, or the same as a JSON object."""

    def __init__(self, as_json: bool = False) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a line break."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        when = f"{stamp}.{int(record.msecs):03d}Z"
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        if self._as_json:
            names = {"time": when, "level": record.levelname, "logger": record.name}
            return json.dumps(names | {"message": text})
        return f"{when} {record.levelname} {record.name}: " + text.replace("\n", "\\n")
