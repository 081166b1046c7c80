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
    """The networks that the artifact averages, with random weights: time does not depend on them.

    They are built as `weights/config.json` says; None where the room does not say it.
    """
    if spec.name not in models.names():
        return None
    module = importlib.import_module(f"models.{spec.name}.network")
    described = models.room(spec.name) / "weights" / "config.json"
    if not hasattr(module, "build") or not described.is_file():
        return None
    content = json.loads(described.read_text(encoding="utf-8"))
    import torch

    members = [
        module.build(
            each["network"],
            in_channels=spec.input.channels,
            classes=len(spec.labels),
            width=each["width"],
            size=module.NetworkSize(each["size"]),
        ).eval()
        for each in content["members"]
    ]

    def mean(windows: Any) -> Any:
        return torch.stack([member(windows) for member in members]).mean(dim=0)

    return mean
