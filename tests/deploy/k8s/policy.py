"""What every pod of ours must be, as functions that name what is wrong; [] is good.

The level `restricted` of the Pod Security Standards, and beyond it what a cluster does not ask for:
limits, probes, pinned images, names that lead somewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from tests.deploy.k8s.rendering import Manifest, find, pods

__all__ = [
    "budgets",
    "empty_lists",
    "images",
    "limits",
    "ports",
    "probes",
    "references",
    "security",
    "selectors",
    "selects",
]

_VOLUME_KINDS = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret", "image",
}  # fmt: skip


def _containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def security(manifests: Sequence[Manifest]) -> list[str]:
    """No root, no capabilities, no writable root, no token, nothing of the host."""
    found: list[str] = []
    for title, _, pod in pods(manifests):
        context = pod.get("securityContext", {})
        wanted = {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001}
        found += [f"{title}: {key}" for key, value in wanted.items() if context.get(key) != value]
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            found.append(f"{title}: seccompProfile")
        if pod.get("automountServiceAccountToken") is not False:
            found.append(f"{title}: service account token")
        found += [f"{title}: {key}" for key in ("hostNetwork", "hostPID", "hostIPC") if key in pod]
        for volume in pod.get("volumes", []):
            if not set(volume) - {"name"} <= _VOLUME_KINDS:
                found.append(f"{title}: volume {volume['name']}")
        for container in _containers(pod):
            locked = {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            if container.get("securityContext") != locked:
                found.append(f"{title}: securityContext of {container['name']}")
            if any("hostPort" in port for port in container.get("ports", [])):
                found.append(f"{title}: hostPort of {container['name']}")
    return found


def limits(manifests: Sequence[Manifest]) -> list[str]:
    """Requests and limits for all; equal where more cannot be given back."""
    found: list[str] = []
    for title, _, pod in pods(manifests):
        for container in _containers(pod):
            where = f"{title}: {container['name']}"
            resources = container.get("resources", {})
            asked, most = resources.get("requests", {}), resources.get("limits", {})
            for kind in ("cpu", "memory", "ephemeral-storage"):
                found += [f"{where}: no {kind}"] if not (kind in asked and kind in most) else []
            for kind in {"memory", "nvidia.com/gpu"} & {*asked, *most}:
                if asked.get(kind) != most.get(kind):
                    found.append(f"{where}: {kind} requested and limited differently")
        for volume in pod.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                found.append(f"{title}: volume {volume['name']} has no size")
    return found


def probes(manifests: Sequence[Manifest]) -> list[str]:
    """Servers have all three probes, and are never restarted for what readiness asks."""
    found: list[str] = []
    for title, labels, pod in pods(manifests):
        if labels.get("app.kubernetes.io/component") != "server":
            continue
        for container in pod["containers"]:
            where = f"{title}: {container['name']}"
            kinds = ("startupProbe", "livenessProbe", "readinessProbe")
            missing = [kind for kind in kinds if kind not in container]
            found += [f"{where}: no {kind}" for kind in missing]
            if not missing and _asks(container["livenessProbe"]) == _asks(
                container["readinessProbe"]
            ):
                found.append(f"{where}: liveness asks what readiness asks")
        if pod["terminationGracePeriodSeconds"] <= max(map(_sleep_s, pod["containers"])) + 30:
            found.append(f"{title}: the grace period is over before the drain")
    return found


def _asks(probe: Manifest) -> Any:
    return {key: value for key, value in probe.items() if isinstance(value, dict)}


def _sleep_s(container: Manifest) -> int:
    seconds: int = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    return seconds


def images(manifests: Sequence[Manifest], version: str) -> list[str]:
    """All of this version; never what a tag happens to mean today."""
    found: list[str] = []
    for title, _, pod in pods(manifests):
        named = [(each["name"], each["image"]) for each in _containers(pod)]
        named += [
            (each["name"], each["image"]["reference"])
            for each in pod.get("volumes", [])
            if "image" in each
        ]
        for name, image in named:
            if not re.fullmatch(rf"\S+(:{re.escape(version)}|@sha256:[0-9a-f]{{64}})", image):
                found.append(f"{title}: {name} runs {image}, expected {version} or a digest")
    return found


def references(manifests: Sequence[Manifest], given: set[str]) -> list[str]:
    """Every ConfigMap, Secret, claim and account exists, or is `given` by the operator."""
    known = given | {f"{each['kind']}/{each['metadata']['name']}" for each in manifests}
    found: list[str] = []
    for title, _, pod in pods(manifests):
        found += [f"{title}: {name}" for name in _referred(pod) if name not in known]
        volumes = {each["name"] for each in pod.get("volumes", [])}
        mounted = {
            mount["name"] for each in _containers(pod) for mount in each.get("volumeMounts", [])
        }
        found += [f"{title}: volume {name} is not defined" for name in mounted - volumes]
        found += [f"{title}: volume {name} is not used" for name in volumes - mounted]
    return found


def _referred(pod: Manifest) -> Iterator[str]:
    if "serviceAccountName" in pod:
        yield f"ServiceAccount/{pod['serviceAccountName']}"
    for volume in pod.get("volumes", []):
        if "configMap" in volume:
            yield f"ConfigMap/{volume['configMap']['name']}"
        if "secret" in volume:
            yield f"Secret/{volume['secret']['secretName']}"
        if "persistentVolumeClaim" in volume:
            yield f"PersistentVolumeClaim/{volume['persistentVolumeClaim']['claimName']}"
    for container in _containers(pod):
        for source in container.get("envFrom", []):
            for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                if key in source:
                    yield f"{kind}/{source[key]['name']}"
        for variable in container.get("env", []):
            chosen = variable.get("valueFrom", {})
            if "secretKeyRef" in chosen:
                yield f"Secret/{chosen['secretKeyRef']['name']}"


def selects(selector: Manifest, labels: Manifest) -> bool:
    """Whether a label selector (`matchLabels` form or plain) takes the labels."""
    wanted = selector.get("matchLabels", {} if "matchExpressions" in selector else selector)
    return all(labels.get(key) == value for key, value in wanted.items())


def selectors(manifests: Sequence[Manifest]) -> list[str]:
    """Services, budgets, policies and autoscalers find what they are for."""
    servers = [(labels, pod) for _, labels, pod in pods(manifests)]
    found: list[str] = []
    for kind, path in (
        ("Service", "selector"),
        ("PodDisruptionBudget", "selector"),
    ):
        for each in find(manifests, kind):
            chosen = [pod for labels, pod in servers if selects(each["spec"][path], labels)]
            if len(chosen) != 1:
                found.append(
                    f"{kind}/{each['metadata']['name']} selects {len(chosen)} kinds of pod"
                )
    for each in find(manifests, "Deployment"):
        spec = each["spec"]
        if not selects(spec["selector"], spec["template"]["metadata"]["labels"]):
            found.append("the Deployment does not select its own pods")
    for kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        for each in find(manifests, kind):
            if not find(manifests, "Deployment", each["spec"]["scaleTargetRef"]["name"]):
                found.append(f"{kind} scales nothing")
    services = find(manifests, "Service")
    for each in find(manifests, "ServiceMonitor"):
        chosen = [
            service
            for service in services
            if selects(each["spec"]["selector"], service["metadata"]["labels"])
        ]
        names = {port["name"] for service in chosen for port in service["spec"]["ports"]}
        if len(chosen) != 1 or not {end["port"] for end in each["spec"]["endpoints"]} <= names:
            found.append("the ServiceMonitor scrapes ports that no single service has")
    return found


def ports(manifests: Sequence[Manifest]) -> list[str]:
    """Every port that is named somewhere is one that a container has."""
    found: list[str] = []
    all_pods = list(pods(manifests))
    for title, _, pod in all_pods:
        named = {port["name"]: port["containerPort"] for port in _all_ports(pod)}
        if len(named) != len(_all_ports(pod)):
            found.append(f"{title}: a port name is used twice")
        found += [f"{title}: the port name {name} is too long" for name in named if len(name) > 15]
        for container in pod["containers"]:
            own = {port["name"] for port in container.get("ports", [])}
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                for action in _asks(container.get(kind, {})).values():
                    port = action.get("port")
                    if port is not None and port not in own | {named.get(each) for each in own}:
                        found.append(f"{title}: {container['name']}: {kind} asks port {port}")
    for each in find(manifests, "Service"):
        for _, labels, pod in all_pods:
            if selects(each["spec"]["selector"], labels):
                numbers = {port["name"]: port["containerPort"] for port in _all_ports(pod)}
                found += [
                    f"Service/{each['metadata']['name']}: {port['name']} does not lead to {number}"
                    for port in each["spec"]["ports"]
                    if (number := numbers.get(port["targetPort"])) != port["port"]
                ]
    return found


def _all_ports(pod: Manifest) -> list[Manifest]:
    return [port for container in pod["containers"] for port in container.get("ports", [])]


def budgets(manifests: Sequence[Manifest]) -> list[str]:
    """A disruption budget states one bound, and lets a lone replica be drained."""
    found: list[str] = []
    for each in find(manifests, "PodDisruptionBudget"):
        if {"minAvailable", "maxUnavailable"} & set(each["spec"]) != {"maxUnavailable"}:
            found.append("the budget does not state maxUnavailable alone")
    for each in find(manifests, "HorizontalPodAutoscaler"):
        if any("replicas" in deployment["spec"] for deployment in find(manifests, "Deployment")):
            found.append("an apply would take back what the autoscaler decided")
        if not 1 <= each["spec"]["minReplicas"] <= each["spec"]["maxReplicas"]:
            found.append("the autoscaler's bounds are the wrong way round")
    return found


def empty_lists(value: Any, path: str = "") -> list[str]:
    """Paths of empty lists: an API server drops some of them, and every apply puts them back."""
    if isinstance(value, dict):
        return [hit for key, each in value.items() for hit in empty_lists(each, f"{path}/{key}")]
    if isinstance(value, list):
        if not value:
            return [path]
        return [hit for i, each in enumerate(value) for hit in empty_lists(each, f"{path}/{i}")]
    return []
