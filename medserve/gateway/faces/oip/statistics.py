"""How many calls a model has had and how long they took, as Triton's statistics count them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from medserve.gateway.core.calls import ModelInfo
from medserve.gateway.core.metrics import GatewayMetrics
from medserve.wire import open_inference_pb2 as pb

__all__ = ["count"]

_NS = 10**9
_EVERY_VERSION = "1"  # Triton's clients read a whole number
_CALLS = "medserve_gateway_requests_total"


def count(metrics: GatewayMetrics, model: ModelInfo) -> pb.ModelStatistics:
    """Return what the metrics hold of a model; its versions are counted together."""
    sums: defaultdict[str, float] = defaultdict(float)
    for family in metrics.registry.collect():
        for sample in family.samples:
            if sample.labels.get("model") == model.name:
                failed = sample.name == _CALLS and sample.labels["status"] != "OK"
                sums["failed" if failed else sample.name] += sample.value
    answered, infer = int(sums[_CALLS]), _duration(sums, "engine")
    return pb.ModelStatistics(
        name=model.name,
        version=_EVERY_VERSION,
        inference_count=answered,
        execution_count=infer.count,
        inference_stats=pb.InferStatistics(
            success=pb.StatisticDuration(count=answered, ns=_duration(sums, "request").ns),
            fail=pb.StatisticDuration(count=int(sums["failed"])),
            queue=_duration(sums, "queue"),
            compute_input=pb.StatisticDuration(count=infer.count),
            compute_infer=infer,
            compute_output=pb.StatisticDuration(count=infer.count),
        ),
    )


def _duration(sums: Mapping[str, float], kind: str) -> pb.StatisticDuration:
    name = f"medserve_gateway_{kind}_seconds"
    return pb.StatisticDuration(
        count=int(sums[f"{name}_count"]), ns=round(sums[f"{name}_sum"] * _NS)
    )
