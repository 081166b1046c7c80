"""A TorchServe worker without TorchServe: the context it hands over, and calls through it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handlers.base import Handler
from handlers.mednist import MednistHandler
from tests.artifacts import BRIGHTNESS_CONFIG, brightness_plane
from tests.phantoms import raster_bytes

__all__ = ["FakeContext", "answer", "answers", "context", "picture", "ready", "unpacked"]


@dataclass
class FakeContext:
    """The part of `ts.context.Context` that handlers use."""

    system_properties: Mapping[str, Any]
    model_yaml_config: Mapping[str, Any] | None = None
    model_name: str = "brightness"
    metrics: Any = None
    request_ids: Mapping[int, str] = field(default_factory=dict)
    headers: dict[int, dict[str, str]] = field(default_factory=dict)

    def get_request_id(self, idx: int = 0) -> str | None:
        """TorchServe's own id."""
        return f"server-id-{idx}"

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Kept for the test to look at."""
        self.headers.setdefault(idx, {})[key] = value


def unpacked(artifact: Path, folder: Path) -> Path:
    """A copy of the artifact that a test may spoil."""
    return Path(shutil.copytree(artifact, folder / "archive"))


def context(folder: Path, config: Mapping[str, Any] | None = BRIGHTNESS_CONFIG) -> FakeContext:
    """The context of a worker that serves the archive unpacked in `folder`."""
    return FakeContext({"model_dir": str(folder), "gpu_id": None}, config)


def ready(folder: Path) -> MednistHandler:
    """MedNIST's handler in front of the brightness classifier, proven."""
    handler = MednistHandler()
    handler.initialize(context(folder))
    return handler


def answers(handler: Handler[Any], *batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Send one gathered batch, bytes as the bytearrays of TorchServe; the parsed answers."""
    wire = [
        {
            key: bytearray(value) if isinstance(value, bytes) else value
            for key, value in each.items()
        }
        for each in batch
    ]
    raw = handler.handle(wire, FakeContext({}))
    assert [type(each) for each in raw] == [bytes] * len(batch)
    return [json.loads(each) for each in raw]


def _as_sent(value: Any) -> Any:
    return bytearray(value) if isinstance(value, bytes) else value


def answer(handler: Handler[Any], **inputs: Any) -> dict[str, Any]:
    """Send one request alone; `data_3` stands for the key data.3."""
    named = {key.replace("data_", "data."): value for key, value in inputs.items()}
    return answers(handler, named)[0]


def picture(mean: float) -> bytes:
    """A PNG of about that mean brightness."""
    return raster_bytes(brightness_plane(mean))
