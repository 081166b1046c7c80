"""OpenTelemetry: one tree of spans for a call, from the client through the gateway into a worker.

The standard variables decide: `OTEL_EXPORTER_OTLP_ENDPOINT` names the collector, and without it
nothing is imported and nothing is done. `OTEL_TRACES_SAMPLER` chooses the calls, `OTEL_BSP_…`
bounds what waits for the collector; what does not fit, or finds no collector, is dropped.

A span holds names from archives, sizes, durations and outcomes. It holds nothing that a caller
wrote: no name of a file, no header, no text of an error. `traceparent` alone is read from a caller
and passed on; `tracestate` and `baggage`, which may hold anything, are neither.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import importlib
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from medserve.errors import ConfigError, MedserveError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, SpanKind, Tracer

__all__ = [
    "TRACEPARENT",
    "Trace",
    "add_part",
    "arrived",
    "asking",
    "begin",
    "close",
    "end",
    "engine_step",
    "open_child",
    "read_traceparent",
    "step",
    "together",
    "trace_id_of",
    "traceparent_of",
    "use",
    "work",
]

TRACEPARENT = "traceparent"  # metadata, HTTP header and input key

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTERS = {
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
}
_LIBRARY = "opentelemetry.trace"
_LAST_S = 2.0  # for spans that wait when a process ends
# W3C Trace Context, section 3.2: version, trace id, id of the parent span and flags, not all zero.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)

logger = logging.getLogger(__name__)


@dataclass
class _Running:
    """What was begun in this process."""

    provider: TracerProvider | None = None
    tracer: Tracer | None = None
    give_up: Callable[[], None] = lambda: None  # ends attempts to reach the collector


_running = _Running()


# ---- of a process


def begin(service: str, version: str, attributes: Mapping[str, str] | None = None) -> bool:
    """Send spans from now on, where the environment names a collector; False where it does not.

    A process that cannot send them works without them, and says so in one line of its log.

    Args:
        service: Name of this part, where `OTEL_SERVICE_NAME` gives no other.
        version: Of this part.
        attributes: What else every span of this process tells.
    """
    if _running.tracer is not None or not _is_asked_for(os.environ):
        return _running.tracer is not None
    _log_once()
    resource = {"service.name": service, "service.version": version, **(attributes or {})}
    try:
        provider, exporter = _sending(resource)
    except ImportError as error:
        logger.warning("no traces: %s is not installed; pip install 'medserve[otel]'", error.name)
        return False
    except (ConfigError, ValueError) as error:
        reason = error.message if isinstance(error, ConfigError) else "an OTEL_ variable is bad"
        logger.warning("no traces: %s", reason)
        return False
    use(provider)
    _running.give_up = exporter.shutdown
    atexit.register(end)
    return True


def use(provider: TracerProvider) -> None:
    """Send spans to a provider from now on."""
    _running.provider, _running.tracer = provider, provider.get_tracer("medserve")


def end() -> None:
    """Send what still waits, for a moment at most, and stop."""
    running = dataclasses.replace(_running)
    _running.provider, _running.tracer, _running.give_up = None, None, lambda: None
    if running.provider is None:
        return
    late = threading.Timer(_LAST_S, running.give_up)
    late.daemon = True
    with suppress(RuntimeError):  # Python 3.12 starts no thread at the end of a process
        late.start()
    running.provider.shutdown()
    late.cancel()


def _is_asked_for(environment: Mapping[str, str]) -> bool:
    return (
        any(environment.get(name) for name in _ENDPOINTS)
        and environment.get("OTEL_SDK_DISABLED", "").lower() != "true"
        and environment.get("OTEL_TRACES_EXPORTER", "otlp") == "otlp"
    )


def _sending(resource: Mapping[str, str]) -> tuple[TracerProvider, SpanExporter]:
    # By name: the archives that carry this module do not require the library.
    named = [os.environ[name] for name in _PROTOCOLS if os.environ.get(name)]
    protocol = named[0] if named else "http/protobuf"
    if protocol not in _EXPORTERS:
        raise ConfigError(
            f"{_PROTOCOLS[1]}: expected {' or '.join(_EXPORTERS)}, got another protocol"
        )
    protocols: Any = importlib.import_module(_EXPORTERS[protocol])
    sdk: Any = importlib.import_module("opentelemetry.sdk.trace")
    batches: Any = importlib.import_module("opentelemetry.sdk.trace.export")
    resources: Any = importlib.import_module("opentelemetry.sdk.resources")
    stated = resources.OTELResourceDetector().detect().attributes  # the operator's words win
    provider = sdk.TracerProvider(
        resource=resources.Resource.create({**resource, **stated}), shutdown_on_exit=False
    )
    exporter = protocols.OTLPSpanExporter()
    provider.add_span_processor(batches.BatchSpanProcessor(exporter))
    return provider, exporter


class _OneLine(logging.Handler):
    """Says once that something is wrong with the library, in words that quote nothing."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said = False

    def emit(self, record: logging.LogRecord) -> None:
        """Tell the first of all its complaints, and no other."""
        if not self._said:
            self._said = True
            logger.warning(
                "traces: %s complains; spans that it cannot deliver are dropped. Is the collector "
                "reachable, and are the OTEL_ variables right?",
                record.name,
            )


def _log_once() -> None:
    library = logging.getLogger("opentelemetry")
    if not any(isinstance(each, _OneLine) for each in library.handlers):
        library.addHandler(_OneLine())
        library.propagate = False


# ---- of a call


@dataclass(frozen=True)
class Trace:
    """The sampled span to which a request belongs.

    Attributes:
        span: The span.
        others: Spans of other callers whose requests travel with this one.
        reaches_worker: Whether the code of the model knows the input key.
        traceparent: The value of that key; "" for none.
    """

    span: Span
    others: tuple[Span, ...] = ()
    reaches_worker: bool = False
    traceparent: str = ""


def read_traceparent(given: str) -> str:
    """Return a caller's `traceparent` where it is exactly one, "" where it is anything else."""
    return given if len(given) == 55 and _TRACEPARENT.fullmatch(given) else ""


def traceparent_of(span: Span) -> str:
    """Return what tells another process to which span its own belong."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def trace_id_of(span: Span | None) -> str:
    """Return the id of the trace that a span belongs to, "" of none."""
    return "" if span is None else f"{span.get_span_context().trace_id:032x}"


def arrived(name: str, traceparents: Sequence[str], **attributes: str | int) -> Span | None:
    """Begin the span of work that came in; None where it is not sampled, or nothing is traced.

    Args:
        name: Of the span.
        traceparents: Of those who asked, each as `read_traceparent` returns it; the span belongs
            to the first of them, and is linked to the others.
        attributes: Of the span.
    """
    if (tracer := _running.tracer) is None:
        return None
    trace = _library()
    parent, *others = traceparents or ("",)
    span: Span = tracer.start_span(
        name,
        context=_within(_remote(parent)) if parent else _nothing_around(),
        kind=trace.SpanKind.SERVER,
        links=[trace.Link(_remote(each).get_span_context()) for each in others] if others else None,
    )
    if not span.is_recording():  # as most are: no attribute was made for them
        return None
    span.set_attributes(_named(attributes))
    return span


def open_child(parent: Span, name: str, **attributes: str | int) -> Span:
    """Begin a part of a span, which `close` ends."""
    return _child(parent, name, _library().SpanKind.INTERNAL, (), attributes)


def add_part(span: Span, name: str, time_ns: tuple[int, int], busy_ns: int, times: int) -> None:
    """Note a part of a span that has ended: from when to when, since the epoch.

    Args:
        span: The whole.
        name: Of the part.
        time_ns: Its begin and its end.
        busy_ns: How much of that it worked, where it did so several times.
        times: How often.
    """
    attributes = {"busy_ms": busy_ns / 1e6, "times": times}
    kind = _library().SpanKind.INTERNAL
    part = _child(span, name, kind, (), attributes, start_ns=time_ns[0])
    part.end(time_ns[1])


def close(span: Span | None, **attributes: str | int) -> None:
    """End a span, if there is one and nobody did before; an `outcome` other than OK marks it."""
    if span is None or not span.is_recording():
        return
    span.set_attributes(_named(attributes))
    if attributes.get("outcome", "OK") != "OK":
        span.set_status(_library().StatusCode.ERROR)
    span.end()


def step(parent: Span | None, name: str) -> AbstractContextManager[Any]:
    """Make the block a part of a span; where there is none, this costs nothing."""
    return _NOTHING if parent is None else _step(parent, name)


_NOTHING = nullcontext()


@contextmanager
def _step(parent: Span, name: str) -> Iterator[Span]:
    span = open_child(parent, name)
    with _ending(span):
        yield span


@contextmanager
def engine_step(trace: Trace, name: str) -> Iterator[Trace]:
    """Make the block the span of one request to an engine, and tell its worker of it."""
    kind = _library().SpanKind.CLIENT
    span = _child(trace.span, name, kind, trace.others, {"calls": 1 + len(trace.others)})
    told = traceparent_of(span) if trace.reaches_worker else ""
    with _ending(span):
        yield replace(trace, traceparent=told)


def together(traces: Sequence[Trace | None]) -> Trace | None:
    """Return the trace of requests that travel as one: of the first, linked to the others."""
    sampled = [each for each in traces if each is not None]
    if not sampled:
        return None
    return replace(sampled[0], others=tuple(each.span for each in sampled[1:]))


@contextmanager
def asking(name: str, **attributes: str) -> Iterator[tuple[tuple[str, str], ...]]:
    """Make the block the span of a client's call; yields what to send along.

    Spans go where this process sends its own, or else where the program around the client does: it
    has loaded OpenTelemetry then.
    """
    tracer = _running.tracer
    if tracer is None and _LIBRARY in sys.modules:
        tracer = _library().get_tracer("medserve")
    if tracer is None:
        yield ()
        return
    span = tracer.start_span(name, kind=_library().SpanKind.CLIENT, attributes=_named(attributes))
    with _ending(span):
        known = span.get_span_context().is_valid
        yield ((TRACEPARENT, traceparent_of(span)),) if known else ()


@contextmanager
def work(name: str, **attributes: str | int) -> Iterator[None]:
    """Make the block a span to which belongs what is asked and done within it.

    Args:
        name: Of the span.
        attributes: Of the span.
    """
    if (tracer := _running.tracer) is None:
        yield
        return
    span = tracer.start_span(name, attributes=_named(attributes))
    current = _library().use_span(span, record_exception=False, set_status_on_exception=False)
    with current, _ending(span):
        yield


@contextmanager
def _ending(span: Span) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        # A cancelled call or a generator that is left ends like this, too.
        code = error.code if isinstance(error, MedserveError) else "INTERNAL"
        close(span, outcome=code if isinstance(error, Exception) else "CANCELLED")
        raise
    close(span, outcome="OK")


def _child(
    parent: Span,
    name: str,
    kind: SpanKind,
    others: Sequence[Span],
    attributes: Mapping[str, Any],
    start_ns: int | None = None,
) -> Span:
    trace = _library()
    tracer = _running.tracer or trace.NoOpTracer()  # it may have ended meanwhile
    return cast(
        "Span",
        tracer.start_span(
            name,
            context=_within(parent),
            kind=kind,
            attributes=_named(attributes),
            links=[trace.Link(each.get_span_context()) for each in others],
            start_time=start_ns,
        ),
    )


def _within(parent: Any) -> Any:
    """Return a context with this span alone: what surrounds the code belongs to other calls."""
    return _library().set_span_in_context(parent, _nothing_around())


def _remote(traceparent: str) -> Any:
    trace = _library()
    return trace.NonRecordingSpan(
        trace.SpanContext(
            trace_id=int(traceparent[3:35], 16),
            span_id=int(traceparent[36:52], 16),
            is_remote=True,
            trace_flags=trace.TraceFlags(int(traceparent[53:], 16) & trace.TraceFlags.SAMPLED),
        )
    )


def _named(attributes: Mapping[str, str | int]) -> dict[str, str | int]:
    return {f"medserve.{key}": value for key, value in attributes.items()}


@functools.cache
def _library() -> Any:
    return importlib.import_module(_LIBRARY)


@functools.cache
def _nothing_around() -> Any:
    return importlib.import_module("opentelemetry.context").Context()
