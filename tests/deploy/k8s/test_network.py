"""Callers reach the public ports, Prometheus the metrics, and nobody anything else."""

from __future__ import annotations

import pytest

from tests.deploy.k8s.network import Place, allowed
from tests.deploy.k8s.rendering import Manifest

SERVER = Place({"app.kubernetes.io/name": "medserve", "app.kubernetes.io/component": "server"})
CALLER = Place({"medserve.dev/caller": "true"})
NODE = Place(
    {
        "app.kubernetes.io/name": "medserve",
        "app.kubernetes.io/component": "dicom",
        "medserve.dev/caller": "true",
    }
)
NEIGHBOUR = Place({"app": "other"})
GUEST = Place({}, "hospital", {"medserve.dev/caller": "true"})
STRANGER = Place({"medserve.dev/caller": "true"}, "elsewhere")  # labels itself
PROMETHEUS = Place({}, "monitoring")
GATEWAY = Place({}, "gateway-system")
DNS = Place({"k8s-app": "kube-dns"}, "kube-system")
COLLECTOR = Place({}, "observability")
INTERNET = Place({}, "anywhere outside")

PORTS = {8001, 8000, 8002, 8082, 7070, 7071}
PUBLIC = {8001, 8000}
METRICS = {8002, 8082}


def open_ports(manifests: list[Manifest], source: Place) -> set[int]:
    return {port for port in PORTS if allowed(manifests, source, SERVER, port)}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CALLER, PUBLIC), (GUEST, PUBLIC), (NEIGHBOUR, set()), (STRANGER, set()),
        (SERVER, set()), (PROMETHEUS, set()), (GATEWAY, set()), (INTERNET, set()),
    ],
)  # fmt: skip
def test_only_callers_reach_the_servers(
    base: list[Manifest], source: Place, expected: set[int]
) -> None:
    assert open_ports(base, source) == expected


def test_prometheus_reads_the_metrics_where_monitoring_is_on(
    rendered: dict[str, list[Manifest]],
) -> None:
    assert open_ports(rendered["monitoring"], PROMETHEUS) == METRICS
    assert open_ports(rendered["monitoring"], STRANGER) == set()


def test_the_gateway_reaches_the_public_ports_where_it_routes(
    rendered: dict[str, list[Manifest]],
) -> None:
    assert open_ports(rendered["gateway-api"], GATEWAY) == PUBLIC


@pytest.mark.parametrize("target", [INTERNET, DNS, CALLER, GUEST])
def test_a_server_can_call_nobody(variant: list[Manifest], target: Place) -> None:
    closed = [each for each in variant if each["metadata"]["name"] != "allow-traces"]  # see below
    if any(each["kind"] == "NetworkPolicy" for each in closed):
        ways = [(port, kind) for port in (53, 80, 443, 8001) for kind in ("TCP", "UDP")]
        assert not any(allowed(closed, SERVER, target, port, kind) for port, kind in ways)


def test_where_traces_are_on_a_server_reaches_the_collector_and_names_alone(
    rendered: dict[str, list[Manifest]],
) -> None:
    traced = rendered["traces"]
    assert {port for port in (80, 443, 4317, 4318) if allowed(traced, SERVER, COLLECTOR, port)} == {
        4317,
        4318,
    }
    assert allowed(traced, SERVER, DNS, 53, "UDP")
    for target in (INTERNET, CALLER, GUEST):
        assert not any(allowed(traced, SERVER, target, port) for port in (53, 80, 443, 4318, 8001))


def test_where_traces_are_on_a_node_reaches_the_collector_too(
    rendered: dict[str, list[Manifest]],
) -> None:
    ports = {80, 443, 4317, 4318}
    assert not any(allowed(rendered["dicom"], NODE, COLLECTOR, port) for port in ports)
    traced = rendered["traces of a node"]
    assert {port for port in ports if allowed(traced, NODE, COLLECTOR, port)} == {4317, 4318}
    assert not allowed(traced, NODE, INTERNET, 4318)


def test_a_caller_of_the_namespace_reaches_servers_and_names_alone(base: list[Manifest]) -> None:
    assert allowed(base, CALLER, DNS, 53, "UDP")
    assert not allowed(base, CALLER, DNS, 443)
    assert not allowed(base, CALLER, INTERNET, 443)
    assert not allowed(base, CALLER, INTERNET, 53, "UDP")
