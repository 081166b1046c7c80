"""The gateway's own counters and histograms read as those of Prometheus' library do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from medserve.gateway.core.calls import Face
from medserve.gateway.core.metrics import GatewayMetrics

_BOUNDS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)  # of a probability
_WORDS = st.sampled_from(["1.0", "a b", 'quote"', "back\\slash", "line\nbreak", ""])
_VALUES = st.sampled_from(_BOUNDS) | st.floats(0, 2)


def text(registry: CollectorRegistry, *families: str) -> list[str]:
    """Return the lines of some families, without the times at which they were made."""
    lines = generate_latest(registry).decode().splitlines()
    return [each for each in lines if any(name in each for name in families)
            and "_created" not in each]  # fmt: skip


@given(counts=st.lists(st.tuples(_WORDS, _WORDS, st.integers(0, 5))))
def test_a_counter_reads_as_that_of_the_library(counts: list[tuple[str, str, int]]) -> None:
    metrics, registry = GatewayMetrics(), CollectorRegistry()
    name = "medserve_gateway_inputs"
    theirs = Counter(name, "Inputs answered.", ("model", "version"), registry=registry)
    for model, version, by in counts:
        metrics.inputs(model, version).inc(by)
        theirs.labels(model, version).inc(by)
    assert text(metrics.registry, name) == text(registry, name)


@given(values=st.lists(st.tuples(_WORDS, _VALUES)))
def test_a_histogram_reads_as_that_of_the_library(values: list[tuple[str, float]]) -> None:
    metrics, registry = GatewayMetrics(), CollectorRegistry()
    name = "medserve_gateway_probability"
    theirs = Histogram(
        name, "Probability of the class.", ("model", "version"), registry=registry, buckets=_BOUNDS
    )
    for model, value in values:
        metrics.probability(model, "1.0").observe(value)
        theirs.labels(model, "1.0").observe(value)
    assert text(metrics.registry, name) == text(registry, name)


def test_a_face_is_written_as_its_name() -> None:
    metrics = GatewayMetrics()
    metrics.requests(Face.TORCHSERVE, "tiny", "OK").inc()
    wanted = 'medserve_gateway_requests_total{face="torchserve",model="tiny",status="OK"} 1.0'
    assert wanted in text(metrics.registry, "requests")
