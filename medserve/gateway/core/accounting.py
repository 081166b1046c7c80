"""What remains of a call: numbers in the metrics and a line in the audit log."""

from __future__ import annotations

import asyncio
import time

from medserve import tracing
from medserve.errors import DeadlineError, MedserveError, ServerFailedError
from medserve.gateway.core.audit import AuditLog, AuditRecord
from medserve.gateway.core.calls import EngineCall, ModelInfo, error_in
from medserve.gateway.core.metrics import GatewayMetrics
from medserve.gateway.core.status import bug
from medserve.gateway.core.watching import Watching

__all__ = ["AccountEntry", "Accounting"]

_UNKNOWN = "unknown"  # stands for a name that nobody serves: labels must stay few


class AccountEntry:
    """One call while it runs; its faces fill in what they come to know."""

    def __init__(self, call: EngineCall, watching: Watching) -> None:
        self.call = call
        self._watching = watching
        self.model: ModelInfo | None = None
        self.response_bytes = 0
        self.status = "OK"
        self.begun = False
        self.span = tracing.arrived("gateway.call", (call.caller.traceparent,), face=call.face)

    def answered(self, part: bytes) -> None:
        """Count one answer, or one chunk of it."""
        self.response_bytes += len(part)
        if (error := error_in(part)) is not None:
            self.status = error.code
        elif self.model is not None:
            self._watching.answered(self.model, part)


class Accounting:
    """Writes every call down, whatever became of it."""

    def __init__(self, metrics: GatewayMetrics, audit: AuditLog | None) -> None:
        self._metrics = metrics
        self._audit = audit
        self.watching = Watching(metrics)

    def entry(self, call: EngineCall) -> _Noted:
        """Note the call when the block ends; a bug inside leaves as ServerFailedError."""
        return _Noted(self, AccountEntry(call, self.watching))

    def begin(self, entry: AccountEntry) -> None:
        """Log a stream before its first part is given; its outcome follows in a line of its own.

        Raises:
            ServerFailedError: it cannot be logged, so that no part may be given.
        """
        if not entry.begun:
            self._log(entry, "STREAMING", 0.0)
        entry.begun = True

    def close(self, entry: AccountEntry, took_s: float) -> None:
        """Note a call that has ended.

        Raises:
            ServerFailedError: it cannot be logged, so that its caller may not get the answer.
        """
        call, model = entry.call, entry.model
        name = model.name if model else _UNKNOWN
        metrics = self._metrics
        metrics.requests(call.face, name, entry.status).inc()
        metrics.request_seconds(call.face, name).observe(took_s)
        metrics.request_bytes(call.face, name).inc(call.size_bytes)
        metrics.response_bytes(call.face, name).inc(entry.response_bytes)
        self._log(entry, entry.status, took_s)
        if entry.span is not None:
            tracing.close(
                entry.span,
                model=name,
                version=model.version if model else "",
                task=model.task if model else "",
                request_bytes=call.size_bytes,
                response_bytes=entry.response_bytes,
                outcome=entry.status,
            )

    def _log(self, entry: AccountEntry, status: str, took_s: float) -> None:
        if self._audit is None:
            return
        call, model = entry.call, entry.model
        self._audit.write(
            AuditRecord(
                who=call.caller.name,
                face=call.face,
                request_id=call.request_id,
                model=model.name if model else _UNKNOWN,
                version=model.version if model else "",
                archive=model.digest if model else "",
                request_bytes=call.size_bytes,
                response_bytes=entry.response_bytes,
                status=status,
                took_ms=round(1000 * took_s, 3),
                trace_id=tracing.trace_id_of(entry.span),
            )
        )


class _Noted:
    """The time of one call: an error that ends it is its outcome."""

    def __init__(self, accounting: Accounting, entry: AccountEntry) -> None:
        self._accounting, self._entry = accounting, entry
        self._started = time.monotonic()

    def __enter__(self) -> AccountEntry:
        return self._entry

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        entry, call = self._entry, self._entry.call
        try:
            if isinstance(error, MedserveError):
                entry.status = error.code
            elif isinstance(error, (asyncio.CancelledError, GeneratorExit)):
                late = call.deadline is not None and time.monotonic() >= call.deadline
                entry.status = DeadlineError.code if late else "CANCELLED"
            elif isinstance(error, Exception):
                entry.status = ServerFailedError.code
                raise bug(error, call.request_id) from error
        finally:
            self._accounting.close(entry, time.monotonic() - self._started)
