"""The verbs of a handler as spans: how long a worker decoded, prepared, computed and encoded.

A caller's span comes as the input key `traceparent`. Only a worker that was told where spans go
(`OTEL_EXPORTER_OTLP_ENDPOINT`, see `medserve.tracing`) reads it; any other works as if it were not
there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from handlers.items import Job, status
from handlers.request import Inputs
from medserve import tracing

__all__ = ["VERBS", "TracedVerbs"]

# Verb -> method of the handler, or of what it holds, that does it.
VERBS = {verb: verb for verb in ("decode", "to_network", "infer", "from_network", "encode")}


@dataclass
class _Work:
    """What one verb did within a batch, in nanoseconds since the epoch."""

    began: int
    ended: int = 0
    busy: int = 0
    times: int = 0


class TracedVerbs:
    """Measures the verbs of one handler while it works on a sampled batch.

    Args:
        handler: Its methods are replaced by measured ones.
        verbs: As `VERBS`.
        attributes: Of the spans of batches.
    """

    def __init__(
        self, handler: object, verbs: Mapping[str, str], attributes: Mapping[str, str | int]
    ) -> None:
        self._attributes = {**attributes, "worker": os.getpid()}
        self._done: dict[str, _Work] | None = None  # None: nobody asks
        for verb, path in verbs.items():
            owner: Any = handler
            *holders, name = path.split(".")
            for holder in holders:
                owner = getattr(owner, holder)
            setattr(owner, name, self._measured(verb, getattr(owner, name)))

    def _measured(self, verb: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **kwargs: Any) -> Any:
            if self._done is None:
                return method(*args, **kwargs)
            began = time.time_ns()
            work = self._done.setdefault(verb, _Work(began))
            try:
                return method(*args, **kwargs)
            finally:
                work.ended = time.time_ns()
                work.busy += work.ended - began
                work.times += 1

        return measured

    @contextmanager
    def batch(self, data: Sequence[Inputs], jobs: Sequence[Job[Any]]) -> Iterator[None]:
        """Make the block the span of a batch, with its verbs as parts, where a caller is sampled.

        A verb that works on several files has one span, from its first to its last, with the time
        that it was busy.
        """
        given = [text for inputs in data if (text := _traceparent(inputs))]
        span = tracing.arrived("worker.batch", given, **self._attributes) if given else None
        if span is None:
            yield
            return
        self._done = {}
        try:
            yield
        finally:
            done, self._done = self._done, None
            for verb, work in done.items():
                when = (work.began, work.ended)
                tracing.add_part(span, f"worker.{verb}", when, work.busy, work.times)
            outcomes = [status(outcome) for job in jobs for outcome in job.outcomes]
            outcome = next((code for code in outcomes if code != "ok"), "OK")
            tracing.close(span, requests=len(jobs), items=len(outcomes), outcome=outcome)


def _traceparent(inputs: Inputs) -> str:
    value = inputs.get(tracing.TRACEPARENT, "")
    if isinstance(value, bytes | bytearray | memoryview):
        value = bytes(value).decode("ascii", errors="replace")
    return tracing.read_traceparent(value) if isinstance(value, str) else ""
