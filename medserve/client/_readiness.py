"""When to stop waiting for models."""

from __future__ import annotations

import time
from collections.abc import Sequence

from medserve.client._results import ModelStatus
from medserve.errors import AuthenticationError, MedserveError, ModelNotReadyError

__all__ = ["Readiness"]


class Readiness:
    """A wait for models: what is awaited, until when, and what is still missing."""

    pause_s = 0.25

    def __init__(self, models: Sequence[str], timeout_s: float) -> None:
        self._awaited = tuple(models)
        self._timeout_s = timeout_s
        self._end = time.monotonic() + timeout_s

    def reached(self, seen: Sequence[ModelStatus] | MedserveError) -> bool:
        """Whether all that is awaited is ready; raises when waiting longer is of no use."""
        if isinstance(seen, AuthenticationError):
            raise seen  # no wait mends a token
        missing = self._missing(seen)
        if missing and time.monotonic() >= self._end:
            raise ModelNotReadyError(
                f"expected every model ready within {self._timeout_s:g} s, still missing: {missing}"
            )
        return not missing

    def _missing(self, seen: Sequence[ModelStatus] | MedserveError) -> str:
        if isinstance(seen, MedserveError):
            return str(seen)
        ready = {status.name for status in seen if status.ready and status.default}
        awaited = self._awaited or tuple(status.name for status in seen)
        if not awaited:
            return "the server has no model"
        return ", ".join(sorted(set(awaited) - ready))
