"""The API of several Kubernetes releases knows every field that the manifests use."""

from __future__ import annotations

from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest

from tests.deploy.k8s.conftest import VARIANTS
from tests.deploy.k8s.rendering import Manifest, only

# The oldest that the manifests ask for (docs/run/kubernetes.md), one between, the newest known.
RELEASES = ("1.31", "1.34", "1.37")
# Kinds of extensions; their schemas come with the extension, not with Kubernetes.
EXTENSIONS = {
    "gateway.networking.k8s.io/v1": {"GRPCRoute", "HTTPRoute"},
    "keda.sh/v1alpha1": {"ScaledObject"},
    "monitoring.coreos.com/v1": {"PrometheusRule", "ServiceMonitor"},
    "serving.kserve.io/v1beta1": {"InferenceService"},
}


@pytest.mark.cpu
@pytest.mark.parametrize("release", RELEASES)
def test_the_release_accepts_every_field(release: str, rendered: dict[str, list[Manifest]]) -> None:
    seen: list[Manifest] = []
    for name in VARIANTS:
        for manifest in rendered[name]:
            if manifest["kind"] in EXTENSIONS.get(manifest["apiVersion"], set()):
                continue
            if manifest not in seen:  # many objects are the same in all variants
                seen.append(manifest)
    assert len(seen) > 20
    assert [mistake for each in seen if (mistake := _mistake(each, release))] == []


def _mistake(manifest: Manifest, release: str) -> str:
    """What is wrong and where, without the whole schema; "" if nothing is."""
    try:
        kubernetes_validate.validate(manifest, release, strict=True)
    except kubernetes_validate.ValidationError as error:
        return (
            f"{manifest['kind']}/{manifest['metadata']['name']} {error.json_path}: {error.message}"
        )
    return ""


@pytest.mark.parametrize(
    ("path", "value"),
    [(("spec", "replica"), 2), (("spec", "minReadySeconds"), "soon")],
    ids=["an unknown field", "a wrong type"],
)
def test_a_mistake_in_a_manifest_would_be_noticed(
    base: list[Manifest], path: tuple[str, str], value: Any
) -> None:
    deployment = only(base, "Deployment")
    part, name = path
    spoilt = {**deployment, part: {**deployment[part], name: value}}
    assert f"$.{part}" in _mistake(spoilt, RELEASES[-1])


def test_the_predictor_is_the_pod_of_the_base(rendered: dict[str, list[Manifest]]) -> None:
    """A pod inside an InferenceService is checked as what it is: a pod."""
    predictor = dict(only(rendered["kserve"], "InferenceService")["spec"]["predictor"])
    for own in ("labels", "minReplicas", "maxReplicas", "scaleMetric", "scaleTarget"):
        predictor.pop(own)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "predictor"}, "spec": predictor}
    assert _mistake(pod, RELEASES[-1]) == ""
    called = next(each for each in predictor["containers"] if each["name"] == "kserve-container")
    assert called["ports"][0] == {"name": "h2c", "containerPort": 8001}
