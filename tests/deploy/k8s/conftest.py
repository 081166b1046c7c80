"""Every way in which the manifests can be put together, rendered once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.deploy.k8s.rendering import K8S, Manifest, kustomize, render, render_base

# What an operator may apply; the base stands for itself in the first of the combinations.
OVERLAYS = ("local", "production")
COMBINATIONS = {
    "base": (),
    "gpu": ("gpu",),
    "models-pvc": ("models-pvc", "gpu"),
    "models-image": ("models-image",),
    "monitoring": ("monitoring", "hpa-in-flight"),
    "keda": ("monitoring", "keda"),
    "gateway-api": ("tokens", "gateway-api"),
    "dicom": ("dicom",),
    "traces": ("traces",),
    "traces of a node": ("dicom", "traces"),
    "direct": ("models-pvc", "tokens", "direct"),
    "kserve": ("models-pvc", "tokens", "audit", "kserve"),
    "all": ("models-image", "gpu", "tokens", "tls", "monitoring", "hpa-in-flight", "gateway-api"),
}
VARIANTS = (*OVERLAYS, *COMBINATIONS, "jobs")


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Manifest]]:
    """The objects of each variant."""
    if kustomize() is None:
        pytest.skip("needs kubectl or kustomize")
    variants = {name: render(K8S / "overlays" / name) for name in OVERLAYS}
    for name, components in COMBINATIONS.items():
        variants[name] = render_base(tmp_path_factory.mktemp(name), components)
    variants["jobs"] = [
        each
        for path in sorted((K8S / "jobs").glob("*.yaml"))
        for each in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    ]
    return variants


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, rendered: dict[str, list[Manifest]]) -> list[Manifest]:
    """One variant after the other."""
    return rendered[request.param]


@pytest.fixture
def base(rendered: dict[str, list[Manifest]]) -> list[Manifest]:
    """The base alone."""
    return rendered["base"]


@pytest.fixture(scope="session")
def components() -> tuple[Path, ...]:
    """The folders of all components."""
    return tuple(sorted((K8S / "components").iterdir()))
