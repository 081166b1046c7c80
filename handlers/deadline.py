"""Long work on one request: whether anybody still waits for it, and what they are told meanwhile.

TorchServe does not tell a worker that a caller has gone. Who knows leaves an empty file of the
request's id in the folder that MEDSERVE_CANCELLED_DIR names, on a disk that both can see; without
that variable a request is only bounded by its time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from handlers.request import Request
from medserve.errors import DeadlineError
from medserve.tasks.generation import SampleProgress

__all__ = ["Deadline"]

_FOLDER = "MEDSERVE_CANCELLED_DIR"
_PARTS = 20  # progress an image; each part costs Java about a millisecond


class Deadline:
    """Looked at after every step of the work.

    Args:
        request: What is worked on.
        limit_s: The longest that the server lets it take from now on.
        tell: Sends one part of the answer; None where the caller wants the whole alone.
    """

    def __init__(
        self, request: Request, limit_s: float, tell: Callable[[bytes], None] | None
    ) -> None:
        self._limit_s = limit_s
        self._last = time.monotonic() + limit_s
        self._expires_at = request.expires_at
        self._tell = tell
        folder = os.environ.get(_FOLDER, "")
        # The id is hexadecimal digits and hyphens, so it cannot lead out of the folder.
        self._mark = Path(folder, request.request_id) if folder and request.request_id else None

    def check(self) -> None:
        """Go on only while somebody waits.

        Raises:
            DeadlineError: the caller has gone or waits no longer, or the work takes too long.
        """
        now = time.monotonic()
        if self._expires_at is not None and now >= self._expires_at:
            raise DeadlineError(
                "expected to finish within deadline_ms, got stopped between two steps; allow more "
                "time or ask for less"
            )
        if now >= self._last:
            raise DeadlineError(
                f"expected to finish within {self._limit_s:g} s, which the server allows, got "
                "stopped between two steps; ask for less in one call"
            )
        if self._mark is not None and self._mark.exists():
            raise DeadlineError(
                "expected a caller who waits, got a cancelled call; work was stopped between two "
                "steps"
            )

    def wants(self, step: int, steps: int) -> bool:
        """Whether this step is one to report: about 20 of them, and the last."""
        return self._tell is not None and (step % -(-steps // _PARTS) == 0 or step == steps)

    def report(self, progress: SampleProgress) -> None:
        """Tell how far one image is."""
        assert self._tell is not None  # `wants` said so
        self._tell(msgspec.json.encode(progress))
