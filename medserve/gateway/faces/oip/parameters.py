"""What stands in the parameters of an Open Inference request: options of the model, and a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from medserve.errors import InvalidRequestError
from medserve.wire import open_inference_pb2 as pb

__all__ = ["read_parameters"]

_PARAMS = "params"  # a JSON object, for options that no single parameter can hold
_TIMEOUT = "timeout"  # microseconds, as Triton's clients send it
_SEQUENCES = ("sequence_id", "sequence_start", "sequence_end", "priority")
_PREFIX = "triton_"  # how Triton's clients shape their own streams; nothing for a model


def read_parameters(
    given: Mapping[str, pb.InferParameter],
) -> tuple[dict[str, Any], float | None]:
    """Options for the model, and the seconds that the caller waits (None: not said).

    Raises:
        InvalidRequestError: sequences or priorities, which are not offered, or malformed JSON.
    """
    params: dict[str, Any] = {}
    timeout_s = None
    for name, parameter in given.items():
        kind = parameter.WhichOneof("parameter_choice")
        value = getattr(parameter, kind) if kind else None
        if name in _SEQUENCES:
            raise InvalidRequestError(
                "expected no sequences and no priority; each request stands alone"
            )
        if name == _TIMEOUT and isinstance(value, int) and not isinstance(value, bool):
            timeout_s = value / 1e6
        elif name == _PARAMS:
            params |= _json_object(value)
        elif not name.startswith(_PREFIX):
            params[name] = value
    return params, timeout_s


def _json_object(text: object) -> dict[str, Any]:
    try:
        content = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InvalidRequestError(
            'parameter params: expected a JSON object such as {"top_k": 3}, got something else'
        )
    return content
