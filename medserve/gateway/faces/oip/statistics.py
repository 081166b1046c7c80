"""How many calls a model has had and how long they took, as Triton's statistics count them."""

from __future__ import annotations

from medserve.gateway.core.calls import ModelInfo
from medserve.gateway.core.metrics import GatewayMetrics
from medserve.wire import open_inference_pb2 as pb

__all__ = ["count"]

_NS = 10**9
_EVERY_VERSION = "1"  # Triton's clients read a whole number


def count(metrics: GatewayMetrics, model: ModelInfo) -> pb.ModelStatistics:
    """Return what the metrics hold of a model; its versions are counted together."""
    calls = _samples(metrics, "requests", model.name)
    answered = int(sum(value for labels, value in calls["total"] if labels["status"] == "OK"))
    failed = int(sum(value for labels, value in calls["total"] if labels["status"] != "OK"))
    whole = _duration(metrics, "request_seconds", model.name)
    infer = _duration(metrics, "engine_seconds", model.name)
    return pb.ModelStatistics(
        name=model.name,
        version=_EVERY_VERSION,
        inference_count=answered,
        execution_count=infer.count,
        inference_stats=pb.InferStatistics(
            success=pb.StatisticDuration(count=answered, ns=whole.ns),
            fail=pb.StatisticDuration(count=failed),
            queue=_duration(metrics, "queue_seconds", model.name),
            compute_input=pb.StatisticDuration(count=infer.count),
            compute_infer=infer,
            compute_output=pb.StatisticDuration(count=infer.count),
        ),
    )


def _duration(metrics: GatewayMetrics, name: str, model: str) -> pb.StatisticDuration:
    found = _samples(metrics, name, model)
    seconds = sum(value for _, value in found["sum"])
    return pb.StatisticDuration(
        count=int(sum(value for _, value in found["count"])), ns=round(seconds * _NS)
    )


def _samples(
    metrics: GatewayMetrics, name: str, model: str
) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return a metric's samples of one model by the last word of their name, such as `sum`."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {"total": [], "sum": [], "count": []}
    for family in metrics.registry.collect():
        if family.name != f"medserve_gateway_{name}":
            continue
        for sample in family.samples:
            if sample.labels.get("model") == model:
                kind = sample.name.rpartition("_")[2]
                found.setdefault(kind, []).append((sample.labels, sample.value))
    return found
