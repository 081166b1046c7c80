"""The health check of the gateway's container, read from its metrics."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest

from medserve.errors import ModelNotReadyError
from medserve.gateway import probe
from medserve.gateway.core.metrics import GatewayMetrics


def _page(**ready: int) -> str:
    metrics = GatewayMetrics()
    for model, value in ready.items():
        metrics.model_ready.labels(model, "1.0").set(value)
    return generate_latest(metrics.registry).decode()


def test_every_model_that_has_answered_is_named() -> None:
    assert sorted(probe.served(_page(mednist=1, tiny=1))) == ["mednist 1.0", "tiny 1.0"]


def test_one_model_that_has_not_answered_is_enough() -> None:
    with pytest.raises(ModelNotReadyError, match=r"tiny 1\.0 has not answered its canary"):
        probe.served(_page(mednist=1, tiny=0))


def test_a_gateway_without_a_model_is_not_ready() -> None:
    with pytest.raises(ModelNotReadyError, match="no model"):
        probe.served(_page())


@pytest.mark.loopback
def test_a_gateway_that_does_not_run_is_not_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDSERVE_GATEWAY_METRICS_PORT", "1")
    assert probe.main() == 1
    assert capsys.readouterr().out.startswith("not ready: the gateway does not answer")
