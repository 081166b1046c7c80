"""Taking an object into the spool, by whatever protocol it came, and what its sender is told.

The status of C-STORE (PS3.4 B.2.3, PS3.7 annex C), which STOW-RS repeats as the reason of a failure
(PS3.18 annex I):

| status | meaning |
|---|---|
| 0000 | it is on the disk; or it is a result that has come back and is not worked on |
| B000 | another object with this identifier is here already; the first one is kept |
| A700 | no room: the disk, the queue or the limit of the operator; send again later |
| A900 | the object is another one than the request says |
| C000 | the object cannot be read |
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medserve.dicom.headers import Facts, read_facts
from medserve.dicom.spool import Receipt, Spool
from medserve.errors import InvalidImageError

__all__ = [
    "COERCED",
    "MISMATCH",
    "NO_ROOM",
    "SUCCESS",
    "UNREADABLE",
    "IncomingFile",
    "Intake",
    "Taken",
]

SUCCESS, COERCED, NO_ROOM, MISMATCH, UNREADABLE = 0x0000, 0xB000, 0xA700, 0xA900, 0xC000

logger = logging.getLogger(__name__)


class IncomingFile:
    """The file of an object that is on its way in, with the members that pynetdicom uses.

    An error of the disk would end the thread that reads the connection, and the sender would wait
    for an answer that never comes. It is kept instead, for the answer.
    """

    def __init__(self, folder: Path, **_: object) -> None:
        self.error: OSError | None = None
        self.file = self  # what is flushed
        self._descriptor, self.name = -1, str(folder / "none")
        try:
            self._descriptor, self.name = tempfile.mkstemp(dir=folder)
        except OSError as error:
            self.error = error

    def write(self, data: bytes) -> int:
        """Write all of the data, or remember why not."""
        left = memoryview(data)
        try:
            while left and self.error is None:
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            self.fail(error)
        return len(data)

    def fail(self, error: OSError) -> None:
        """Keep nothing of the object but why."""
        if self.error is None:
            self.error = error
            os.ftruncate(self._descriptor, 0)

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def tell(self) -> int:
        """Return the place of the next byte; the head of the file is written with it."""
        return os.lseek(self._descriptor, 0, os.SEEK_CUR) if self.error is None else 0

    def close(self) -> None:
        """Close the file, and delete what was not moved away."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            with contextlib.suppress(OSError):
                os.unlink(self.name)

    def __del__(self) -> None:  # of an association that was broken off
        self.close()


@dataclass(frozen=True)
class Taken:
    """What became of an object.

    Attributes:
        status: As in the table above.
        facts: What its header says; None where it was not read.
    """

    status: int
    facts: Facts | None = None


class Intake:
    """Takes objects into a spool.

    Args:
        spool: Where objects are kept.
        has_room: Tells whether one more object may be taken.
        arrived: Called after each new image with the identifier of its series.
    """

    def __init__(
        self, spool: Spool, has_room: Callable[[], bool], arrived: Callable[[str], None]
    ) -> None:
        self._spool, self.has_room, self._arrived = spool, has_room, arrived
        self._full = threading.Event()

    @property
    def folder(self) -> Path:
        """The folder for objects that are on their way in."""
        return self._spool.receiving

    def count(self, event: str) -> None:
        """Count one event, for good."""
        self._spool.count(event)

    def take(self, path: Path, calling: str, check: Callable[[Facts], int]) -> Taken:
        """Keep an object; it is safe on the disk when its status says so.

        Args:
            path: The whole object, in `folder`; it is moved away.
            calling: Who sent it.
            check: Tells by its header why it is refused; SUCCESS where it is not.
        """
        try:
            return self._take(path, calling, check)
        except OSError as error:
            return Taken(self.refuse(error))
        except Exception as error:  # whatever a foreign object provokes ends here, and unquoted
            logger.error("an object could not be taken: %s", type(error).__name__)
            self.count("failed")
            return Taken(NO_ROOM)

    def refuse(self, error: OSError | None = None) -> int:
        """Count an object for which there is no room, and log the first of a row of them."""
        with contextlib.suppress(Exception):  # the disk is full
            self.count("refused")
        if not self._full.is_set():
            self._full.set()
            reason = "the limit of the operator or of the disk is reached"
            if error is not None:
                reason = error.strerror or type(error).__name__
            logger.error("objects are refused for now (A700): %s", reason)
        return NO_ROOM

    def _take(self, path: Path, calling: str, check: Callable[[Facts], int]) -> Taken:
        if not self.has_room():
            return Taken(self.refuse())
        try:
            facts = read_facts(path)
        except InvalidImageError:
            self.count("unreadable")
            return Taken(UNREADABLE)
        if (status := check(facts)) != SUCCESS:
            self.count("mismatched")
            return Taken(status, facts)
        if facts.is_result or self._spool.is_own(facts):
            self.count("results_ignored")
            return Taken(SUCCESS, facts)
        receipt = self._spool.receive(path, facts, calling)
        if self._full.is_set():
            self._full.clear()
            logger.warning("there is room again")
        if receipt is Receipt.NEW:
            self._arrived(facts.series_uid)
        return Taken(COERCED if receipt is Receipt.OTHER_BYTES else SUCCESS, facts)
