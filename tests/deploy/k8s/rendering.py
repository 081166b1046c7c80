"""Render the kustomizations with the real kustomize, and read what they give."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

__all__ = ["K8S", "Manifest", "find", "kustomize", "only", "pods", "render", "render_base"]

Manifest = dict[str, Any]
K8S = Path(__file__).resolve().parents[3] / "k8s"


@functools.cache
def kustomize() -> tuple[str, ...] | None:
    """The command that renders: kubectl has kustomize built in."""
    if path := shutil.which("kubectl"):
        return (path, "kustomize")
    if path := shutil.which("kustomize"):
        return (path, "build")
    return None


def render(folder: Path) -> list[Manifest]:
    """What `kubectl apply -k` would send."""
    command = kustomize()
    assert command is not None
    run = subprocess.run([*command, str(folder)], capture_output=True, text=True)
    if run.returncode != 0:
        raise AssertionError(f"{folder}: {run.stderr}")
    assert "deprecated" not in run.stderr, run.stderr
    return [each for each in yaml.safe_load_all(run.stdout) if each]


def render_base(folder: Path, components: Sequence[str]) -> list[Manifest]:
    """The base with components on top; `folder` is where the kustomization may be written."""
    relative = Path(os.path.relpath(K8S, folder.resolve()))
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [str(relative / "base")],
        "components": [str(relative / "components" / name) for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    return render(folder)


def find(manifests: Sequence[Manifest], kind: str, name: str | None = None) -> list[Manifest]:
    """All of a kind, or those of a name."""
    return [
        each
        for each in manifests
        if each["kind"] == kind and name in (None, each["metadata"]["name"])
    ]


def only(manifests: Sequence[Manifest], kind: str, name: str | None = None) -> Manifest:
    """The one of a kind."""
    found = find(manifests, kind, name)
    assert len(found) == 1, f"expected one {kind} {name or ''}, got {len(found)}"
    return found[0]


def pods(manifests: Sequence[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Title, labels and spec of every pod that the manifests start."""
    for each in manifests:
        title = f"{each['kind']}/{each['metadata']['name']}"
        spec = each.get("spec", {})
        if each["kind"] == "Pod":
            yield title, each["metadata"].get("labels", {}), spec
        elif each["kind"] == "InferenceService":
            yield title, spec["predictor"].get("labels", {}), spec["predictor"]
        elif "template" in spec:
            yield title, spec["template"]["metadata"].get("labels", {}), spec["template"]["spec"]
