"""Read what TorchServe and its workers print, and tell why a worker died.

TorchServe starts a dead worker again for five minutes and calls itself healthy meanwhile; the
reason stands only in the worker's own lines.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from dataclasses import dataclass
from typing import IO

__all__ = ["EngineLog", "WorkerDeath"]

_LINE = re.compile(r"^(TRACE|DEBUG|INFO|WARN|ERROR|FATAL)\|([^|]*)\|([^|]*)\|(.*)$")
_WORKER = re.compile(r"^W-(\d+)-(.+)-std(?:out|err)$")  # thread that reads one worker's stream
_EXCEPTION = re.compile(r"^(?:\w+\.)*(\w*(?:Error|Exception|Interrupt|Exit))(?:: (.*))?$")
_LOAD_FAILED = re.compile(r"^Failed to load model .*?, exception (.*)$")
_KEPT_LINES = 200

logger = logging.getLogger("medserve.engine")


@dataclass(frozen=True)
class WorkerDeath:
    """How often the workers of one model died, and the last reason that one gave ("" for none)."""

    count: int
    reason: str


@dataclass
class _Worker:
    """What is known of one worker slot over its restarts."""

    starts: int = 0
    deaths: int = 0
    dying: bool = False
    reason: str = ""
    load_failure: str = ""


class EngineLog:
    """Follows TorchServe's output on a thread of its own until the stream ends."""

    def __init__(self, stream: IO[str]) -> None:
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._workers: dict[tuple[str, str], _Worker] = {}  # by model and slot
        self._lock = threading.Lock()
        self._thread = threading.Thread(
            target=self._follow, args=(stream,), name="medserve-engine-log", daemon=True
        )

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait until everything is read; the stream ends with the last process that holds it."""
        self._thread.join(timeout_s)

    def death(self, model: str, version: str) -> WorkerDeath | None:
        """The deaths of this model's workers so far, None if all live."""
        with self._lock:
            dead = [
                worker
                for (name, _), worker in self._workers.items()
                if name == f"{model}_{version}" and worker.deaths
            ]
            if not dead:
                return None
            reasons = [worker.reason for worker in dead if worker.reason]
            return WorkerDeath(max(worker.deaths for worker in dead), (reasons or [""])[-1])

    def tail(self, pattern: str = "") -> str:
        """The last line that matches the regular expression, "" if none does."""
        with self._lock:
            for line in reversed(self._lines):
                if re.search(pattern, line):
                    return line
        return ""

    def _follow(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self.feed(line.rstrip("\n"))

    def feed(self, line: str) -> None:
        """Take in one line of output."""
        parts = _LINE.match(line)
        level, source, thread, message = parts.groups() if parts else ("INFO", "java", "", line)
        worker = _WORKER.match(thread) if source == "MODEL_LOG" else None
        with self._lock:
            self._lines.append(message)
            if worker:
                self._note(worker.group(2), worker.group(1), message)
        name = worker.group(2) if worker else source
        # TorchServe's warnings concern its own innards; what matters is said by `Server`.
        logger.log(
            logging.WARNING if level in ("ERROR", "FATAL") else logging.INFO,
            "%s: %s",
            name,
            message,
        )

    def _note(self, model: str, slot: str, message: str) -> None:
        """Update one worker; a new process id after the first means that one died."""
        worker = self._workers.setdefault((model, slot), _Worker())
        if message.startswith("[PID]"):
            worker.starts += 1
            if worker.starts - 1 > worker.deaths:
                worker.deaths += 1  # died without a word: killed, or out of memory
                worker.reason = ""
            if worker.starts > 1:
                logger.warning(
                    "%s: a worker died (%s) and starts again",
                    model,
                    worker.reason or "no reason given",
                )
            worker.dying, worker.load_failure = False, ""
        elif failed := _LOAD_FAILED.match(message):
            worker.load_failure = failed.group(1)
        elif message.startswith("Backend worker process died"):
            worker.dying, worker.reason = True, worker.load_failure
            worker.deaths += 1
        elif worker.dying and not worker.load_failure and (raised := _EXCEPTION.match(message)):
            # The last exception of a chain is the one that ended the worker.
            worker.reason = _sentence(*raised.groups())


def _sentence(kind: str, message: str | None) -> str:
    """Our own errors are sentences already; others need the name of their kind."""
    if not message:
        return kind
    return message if kind == "ModelNotReadyError" else f"{kind}: {message}"
