"""Requests on TorchServe's wire.

A protobuf message may be extended by appending to its bytes: the parser merges, and a map's later
entry replaces an earlier one of the same key. So a request that came on this wire is forwarded as
it is, unknown fields included, with the gateway's own entries behind it.
"""

from __future__ import annotations

import time

from medserve.gateway.core.calls import EngineCall
from medserve.wire import inference_pb2

__all__ = ["engine_message"]


def engine_message(call: EngineCall, *, stream: bool) -> bytes:
    """The serialized request, with the markers that only the gateway sets.

    `stream` is tied to the kind of call here: a model that streamed into a unary call would lose
    its worker for ever.
    """
    markers = {
        "transport": b"grpc",
        "stream": b"1" if stream else b"0",
        "request_id": call.request_id.encode(),
    }
    if call.deadline is not None:
        left_ms = max(0, int(1000 * (call.deadline - time.monotonic())))
        markers["deadline_ms"] = str(left_ms).encode()
    if call.message is not None:
        tail = inference_pb2.PredictionsRequest(input=markers)
        return call.message + tail.SerializeToString()
    request = inference_pb2.PredictionsRequest(
        model_name=call.model, model_version=call.version, input={**call.inputs, **markers}
    )
    return request.SerializeToString()
