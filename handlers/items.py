"""One file on its way through a handler, and the request that brought it."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from handlers.answer import Outcome
from handlers.request import Request
from medserve.errors import DeadlineError, MedserveError, ServerFailedError
from medserve.imaging.codecs.payload import Payload

__all__ = ["Item", "Job", "errors_to", "internal", "refuse_expired", "status"]

Chosen = TypeVar("Chosen")  # what a caller may ask for

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Item(Generic[Chosen]):
    """One file on its way down the line; a generator's item has no bytes."""

    payload: Payload
    params: Chosen
    request: Request
    reference: str
    outcome: Outcome | None = None


@dataclass(eq=False)
class Job(Generic[Chosen]):
    """One request of a gathered batch: its items, or why it failed as a whole."""

    items: Sequence[Item[Chosen]] = ()
    packed: bool = False
    error: MedserveError | None = None

    @property
    def outcomes(self) -> list[Outcome]:
        """What became of each item."""
        if self.error is not None:
            return [self.error]
        return [item.outcome or ServerFailedError("no outcome") for item in self.items]


@contextmanager
def errors_to(*items: Item[Any]) -> Iterator[None]:
    """What goes wrong inside becomes the outcome of these items, and of no others."""
    try:
        yield
    except MedserveError as error:
        outcome: MedserveError = error
    except Exception as error:
        outcome = internal(error, items[0].reference)
    else:
        return
    for item in items:
        item.outcome = outcome


def internal(error: Exception, reference: str) -> MedserveError:
    """A bug: the caller gets a reference, the log the place. Its text may quote the input."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"
    logger.error("internal error, reference %s: %s at %s", reference, type(error).__name__, place)
    return ServerFailedError(f"internal error, reference {reference}")


def refuse_expired(parsed: Request) -> None:
    """Start nothing that the caller no longer waits for."""
    if parsed.expires_at is not None and time.monotonic() >= parsed.expires_at:
        raise DeadlineError(
            "expected to answer within deadline_ms, got to this file later; "
            "allow more time or send fewer files in one call"
        )


def status(outcome: Outcome) -> str:
    """How an outcome is counted: "ok", or the code of its error."""
    return "ok" if isinstance(outcome, bytes) else outcome.code
