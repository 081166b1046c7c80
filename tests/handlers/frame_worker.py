"""A worker for frames without TorchServe: the tiny room's handler, and calls through it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handlers.frames import FrameHandler
from medserve.errors import error_from_code
from tests.handlers.worker import FakeContext
from tests.tiny_frame_room import FRAME_CONFIG

__all__ = ["ask", "ask_json", "ask_packed", "changed", "ready_for_frames"]


def changed(**medserve: object) -> dict[str, Any]:
    """The tiny room's configuration with other values; a mapping is merged into its section."""
    own: dict[str, Any] = dict(FRAME_CONFIG["medserve"])
    for key, value in medserve.items():
        own[key] = {**own[key], **value} if isinstance(value, Mapping) else value
    return {**FRAME_CONFIG, "medserve": own}


def ready_for_frames(folder: Path, config: Mapping[str, Any] = FRAME_CONFIG) -> FrameHandler:
    """The handler of frames in front of the tiny room's network, proven."""
    handler = FrameHandler()
    handler.initialize(FakeContext({"model_dir": str(folder), "gpu_id": None}, config))
    return handler


def ask(
    handler: FrameHandler, data: bytes, params: Mapping[str, object] | None = None, **inputs: bytes
) -> bytes:
    """One call with one file; raises the error that a client would."""
    content: dict[str, Any] = {"data": bytearray(data), **inputs}
    answer = _call(handler, content, params)
    if answer.startswith(b'{"'):
        _raise_error(json.loads(answer))
    return answer


def ask_json(
    handler: FrameHandler, data: bytes, params: Mapping[str, object] | None = None, **inputs: bytes
) -> dict[str, Any]:
    """One call for a JSON answer."""
    answer = ask(handler, data, {"output": "json", **(params or {})}, **inputs)
    content: dict[str, Any] = json.loads(answer)
    assert content["status"] == "ok"
    assert (content["model"], content["version"]) == ("tiny_frame", "1.0")
    return content


def ask_packed(
    handler: FrameHandler, *files: bytes, params: Mapping[str, object] | None = None
) -> list[dict[str, Any]]:
    """One call with several files; the status of each."""
    inputs = {f"data.{place}": bytearray(file) for place, file in enumerate(files)}
    content = json.loads(_call(handler, inputs, params))
    _raise_error(content)
    items: list[dict[str, Any]] = content["items"]
    assert [item["index"] for item in items] == list(range(len(files)))
    return items


def _call(
    handler: FrameHandler, inputs: dict[str, Any], params: Mapping[str, object] | None
) -> bytes:
    if params is not None:
        inputs["params"] = bytearray(json.dumps(params).encode())
    [answer] = handler.handle([inputs], FakeContext({}))
    assert type(answer) is bytes
    return answer


def _raise_error(content: Mapping[str, Any]) -> None:
    if "error" in content:
        raise error_from_code(content["error"]["code"], content["error"]["message"])
