"""The network of a room in eager torch, for its time: the artifact does not give weights back."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any

import models
from medserve.spec import ModelSpec

__all__ = ["eager_network"]


def eager_network(spec: ModelSpec) -> Callable[[Any], Any] | None:
    """Random weights in the shape that was trained: time does not depend on them.

    None where the room does not say how its network was built.
    """
    module = importlib.import_module(f"models.{spec.name}.network")
    described = models.room(spec.name) / "weights" / "config.json"
    if not hasattr(module, "build") or not described.is_file():
        return None
    import torch

    config = json.loads(described.read_text(encoding="utf-8"))
    members = [
        module.build(
            config["network"],
            in_channels=spec.input.channels,
            classes=len(spec.labels),
            width=config.get("width"),
            size=module.NetworkSize(config.get("size", "light")),
        ).eval()
        for _ in range(_members(spec))
    ]

    def mean(windows: Any) -> Any:
        return torch.stack([member(windows) for member in members]).mean(dim=0)

    return mean


def _members(spec: ModelSpec) -> int:
    """How many networks the artifact averages."""
    described = models.room(spec.name) / "weights" / "training.json"
    if not described.is_file():
        return 1
    content = json.loads(described.read_text(encoding="utf-8"))
    return max(1, len(content.get("members", [])))
