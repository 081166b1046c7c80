"""What NetworkPolicies let through, evaluated as the Kubernetes API defines it (TCP and UDP)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.deploy.k8s.policy import selects
from tests.deploy.k8s.rendering import Manifest, find

__all__ = ["Place", "allowed"]

OURS = "medserve"


@dataclass(frozen=True)
class Place:
    """A pod somewhere in the cluster."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = OURS
    namespace_labels: Mapping[str, str] = field(default_factory=dict)


def allowed(
    manifests: Sequence[Manifest], source: Place, target: Place, port: int, protocol: str = "TCP"
) -> bool:
    """Whether a connection may be opened: both ends have a say, each in its own namespace."""
    return _lets(manifests, "Egress", source, target, (port, protocol)) and _lets(
        manifests, "Ingress", target, source, (port, protocol)
    )


def _lets(
    manifests: Sequence[Manifest],
    direction: str,
    own: Place,
    other: Place,
    port: tuple[int, str],
) -> bool:
    if own.namespace != OURS:
        return True  # no policy of ours there
    policies = [
        each["spec"]
        for each in find(manifests, "NetworkPolicy")
        if direction in each["spec"]["policyTypes"]
        and selects(each["spec"]["podSelector"], dict(own.labels))
    ]
    if not policies:
        return True
    key, peers = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    return any(
        _is_port(rule, port) and any(_is_peer(peer, other) for peer in rule[peers])
        for policy in policies
        for rule in policy.get(key, [])
    )


def _is_port(rule: Manifest, port: tuple[int, str]) -> bool:
    return any((each["port"], each["protocol"]) == port for each in rule["ports"])


def _is_peer(peer: Manifest, other: Place) -> bool:
    """Both selectors of one entry must hold; without one for namespaces it is our own."""
    if "namespaceSelector" in peer:
        known = {**other.namespace_labels, "kubernetes.io/metadata.name": other.namespace}
        if not selects(peer["namespaceSelector"], known):
            return False
    elif other.namespace != OURS:
        return False
    return selects(peer.get("podSelector", {}), dict(other.labels))
