"""Every variant of the manifests keeps the rules, and each rule catches what it is for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from medserve import __version__
from tests.deploy.k8s import policy
from tests.deploy.k8s.rendering import Manifest, find, only

# What an operator creates; the pages say how.
GIVEN = {
    "PersistentVolumeClaim/studies",
    "Secret/batch-caller",
    "Secret/medserve-tls",
    "Secret/medserve-tokens",
}
RULES: dict[str, Callable[[list[Manifest]], list[str]]] = {
    "security": policy.security,
    "limits": policy.limits,
    "probes": policy.probes,
    "images": lambda manifests: policy.images(manifests, __version__),
    "references": lambda manifests: policy.references(manifests, GIVEN),
    "selectors": policy.selectors,
    "ports": policy.ports,
    "budgets": policy.budgets,
    "empty_lists": policy.empty_lists,
}


@pytest.mark.parametrize("rule", RULES)
def test_every_variant_keeps_the_rule(
    rule: str, variant: list[Manifest], rendered: dict[str, list[Manifest]]
) -> None:
    known: list[Manifest] = []
    if rule in ("references", "selectors") and variant is rendered["jobs"]:
        known = rendered["models-pvc"]  # the jobs work beside an applied overlay
    assert RULES[rule]([*variant, *known]) == []


def _gateway(manifests: list[Manifest]) -> Manifest:
    containers = only(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    gateway: Manifest = next(each for each in containers if each["name"] == "gateway")
    return gateway


def _set(path: str, value: Any) -> Callable[[list[Manifest]], None]:
    """Spoil one value of the gateway's container."""

    def spoil(manifests: list[Manifest]) -> None:
        *parents, last = path.split("/")
        node = _gateway(manifests)
        for key in parents:
            node = node[key]
        node[last] = value

    return spoil


def _scale(manifests: list[Manifest]) -> None:
    only(manifests, "Deployment")["spec"]["replicas"] = 3


def _lose(kind: str) -> Callable[[list[Manifest]], None]:
    def spoil(manifests: list[Manifest]) -> None:
        for each in find(manifests, kind):
            manifests.remove(each)

    return spoil


def _other_label(manifests: list[Manifest]) -> None:
    labels = only(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    labels["app.kubernetes.io/component"] = "web"


def _no_egress(manifests: list[Manifest]) -> None:
    only(manifests, "NetworkPolicy", "default-deny")["spec"]["egress"] = []


def _both_bounds(manifests: list[Manifest]) -> None:
    only(manifests, "PodDisruptionBudget")["spec"]["minAvailable"] = 1


READY = {"grpc": {"port": 8001}}
MISTAKES: list[tuple[str, str, Callable[[list[Manifest]], None]]] = [
    ("security", "a writable root", _set("securityContext/readOnlyRootFilesystem", False)),
    ("security", "a capability kept", _set("securityContext/capabilities", {"drop": ["NET_RAW"]})),
    ("limits", "no limits", _set("resources", {"requests": {"cpu": "1", "memory": "1Gi"}})),
    ("limits", "more memory than asked", _set("resources/limits/memory", "9Gi")),
    ("probes", "a restart for a model", _set("livenessProbe", READY)),
    ("probes", "a sleep without end", _set("lifecycle/preStop/sleep/seconds", 600)),
    ("images", "latest", _set("image", "medserve/gateway:latest")),
    ("images", "no tag", _set("image", "medserve/gateway")),
    ("references", "a ConfigMap lost", _lose("ConfigMap")),
    ("references", "an account lost", _lose("ServiceAccount")),
    ("selectors", "another label", _other_label),
    ("ports", "another number", _set("ports", [{"name": "grpc", "containerPort": 9001}])),
    ("ports", "a probe of nothing", _set("readinessProbe", {"grpc": {"port": 9001}})),
    ("budgets", "replicas beside an autoscaler", _scale),
    ("budgets", "two bounds", _both_bounds),
    ("empty_lists", "an empty egress", _no_egress),
]


@pytest.mark.parametrize(("rule", "mistake", "spoil"), MISTAKES, ids=[each[1] for each in MISTAKES])
def test_the_rule_notices_the_mistake(
    rule: str, mistake: str, spoil: Callable[[list[Manifest]], None], base: list[Manifest]
) -> None:
    spoilt = copy.deepcopy(base)
    spoil(spoilt)
    assert RULES[rule](spoilt), mistake
