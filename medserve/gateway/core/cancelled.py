"""Calls whose callers have gone, told to the workers that work on them.

TorchServe does not tell a worker that a call was cancelled. A handler that works in steps looks for
an empty file of the request's id in a folder that the gateway and the workers share, and stops.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

__all__ = ["CancelledCalls"]

logger = logging.getLogger(__name__)


class CancelledCalls:
    """The marks in one folder; without a folder nothing is told.

    Request ids are hexadecimal digits and hyphens, so they name files and nothing else.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._marked: set[str] = set()

    def mark(self, request_id: str) -> None:
        """Nobody waits for this call any more."""
        if self._folder is None:
            return
        self._marked.add(request_id)
        try:
            (self._folder / request_id).touch(mode=0o644)
        except OSError as error:  # the work only takes longer
            logger.warning("a cancelled call cannot be told to its worker: %s", error.strerror)

    def forget(self, request_id: str) -> None:
        """The engine has ended this call, or another one of its id has come."""
        if self._folder is not None and request_id in self._marked:
            self._marked.discard(request_id)
            with suppress(OSError):
                (self._folder / request_id).unlink(missing_ok=True)
