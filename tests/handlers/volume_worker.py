"""A worker for volumes without TorchServe: the tiny room's handler, and calls through it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handlers.volumes import VolumeHandler
from medserve.errors import MedserveError, error_from_code
from tests.handlers.worker import FakeContext
from tests.tiny_volume_room import VOLUME_CONFIG

__all__ = ["ask", "ask_json", "changed", "ready_for_volumes"]


def changed(**volume: object) -> dict[str, Any]:
    """The tiny room's configuration with other values in its section `volume`."""
    own = VOLUME_CONFIG["medserve"]
    return {**VOLUME_CONFIG, "medserve": {**own, "volume": {**own["volume"], **volume}}}


def ready_for_volumes(folder: Path, config: Mapping[str, Any] = VOLUME_CONFIG) -> VolumeHandler:
    """The handler of volumes in front of the tiny room's network, proven."""
    handler = VolumeHandler()
    handler.initialize(FakeContext({"model_dir": str(folder), "gpu_id": None}, config))
    return handler


def ask(
    handler: VolumeHandler,
    data: bytes,
    params: Mapping[str, object] | None = None,
    **inputs: bytes,
) -> bytes:
    """One call; raises the error that a client would."""
    content: dict[str, Any] = {"data": bytearray(data), **inputs}
    if params is not None:
        content["params"] = bytearray(json.dumps(params).encode())
    try:
        [answer] = handler.handle([content], FakeContext({}))
    except Exception as error:
        raise _as_seen(error) from None
    return answer


def ask_json(
    handler: VolumeHandler, data: bytes, params: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """One call for a JSON answer."""
    content: dict[str, Any] = json.loads(ask(handler, data, {"output": "json", **(params or {})}))
    assert content["status"] == "ok"
    return content


def _as_seen(error: Exception) -> MedserveError:
    """TorchServe's exception, "CODE: message", as the client turns it back."""
    code, _, message = str(getattr(error, "message", error)).partition(": ")
    return error_from_code(code, message)
