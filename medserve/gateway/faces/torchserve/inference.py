"""TorchServe's own inference contract, unchanged on the wire and without its traps.

Calls are forwarded as the bytes they came as, with the gateway's markers behind them. The kind of
call decides whether the model streams, so a unary call of a streaming model is safe, and a stream
of an ordinary model is one message. The error that a batched model answers as a JSON body stays a
body with the status OK, as clients of this contract know it; all other errors are statuses.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
from google.protobuf.empty_pb2 import Empty

from medserve.errors import MedserveError
from medserve.gateway.core.call_context import REQUEST_ID, Context, identified
from medserve.gateway.core.calls import EngineCall, Face, new_request_id
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.status import abort
from medserve.gateway.faces.torchserve.request_head import read_head
from medserve.wire import inference_pb2

__all__ = ["InferenceFace", "register"]

_SERVICE = inference_pb2.DESCRIPTOR.services_by_name["InferenceAPIsService"].full_name


def register(gateway: Gateway, server: Any) -> None:
    """Let the server answer `org.pytorch.serve.grpc.inference.InferenceAPIsService`."""
    face = InferenceFace(gateway)
    response = inference_pb2.PredictionResponse.SerializeToString
    methods: dict[str, Any] = {
        "Ping": grpc.unary_unary_rpc_method_handler(
            face.ping,
            Empty.FromString,
            inference_pb2.TorchServeHealthResponse.SerializeToString,
        ),
        # Requests stay bytes: they are forwarded as they came.
        "Predictions": grpc.unary_unary_rpc_method_handler(face.predict, None, response),
        "StreamPredictions": grpc.unary_stream_rpc_method_handler(face.stream, None, response),
        "StreamPredictions2": grpc.stream_stream_rpc_method_handler(
            face.sequence, inference_pb2.PredictionsRequest.FromString, response
        ),
    }
    server.add_registered_method_handlers(_SERVICE, methods)


class InferenceFace:
    """The methods of TorchServe's inference service."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def ping(self, _: Empty, context: Context) -> inference_pb2.TorchServeHealthResponse:
        """As TorchServe answers it, but healthy only when every model serves."""
        state = "Healthy" if self._gateway.health().serving else "Unhealthy"
        return inference_pb2.TorchServeHealthResponse(health=json.dumps({"status": state}))

    async def predict(self, message: bytes, context: Context) -> inference_pb2.PredictionResponse:
        """One answer, from any model."""
        identity: tuple[tuple[str, str], ...] = ()
        try:
            call = _call(message)
            identity = ((REQUEST_ID, call.request_id),)
            answer = await self._gateway.predict(call)
        except MedserveError as error:
            await abort(context, error, identity)
        context.set_trailing_metadata(identity)
        return inference_pb2.PredictionResponse(prediction=answer)

    async def stream(
        self, message: bytes, context: Context
    ) -> AsyncGenerator[inference_pb2.PredictionResponse, None]:
        """The parts of one answer, from any model."""
        identity: tuple[tuple[str, str], ...] = ()
        try:
            call = _call(message)
            identity = ((REQUEST_ID, call.request_id),)
            context.set_trailing_metadata(identity)
            async with aclosing(self._gateway.stream(call)) as parts:
                async for part in parts:
                    yield inference_pb2.PredictionResponse(prediction=part)
        except MedserveError as error:
            await abort(context, error, identity)

    async def sequence(
        self, requests: object, context: Context
    ) -> AsyncGenerator[inference_pb2.PredictionResponse, None]:
        """Only for models that keep a state between requests, and medserve has none."""
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED,
            "no model here takes sequences of requests; call Predictions or StreamPredictions",
        )
        yield inference_pb2.PredictionResponse()  # makes this a generator, as gRPC expects


def _call(message: bytes) -> EngineCall:
    """Return the call as every face builds it, with the message as it came."""
    incoming = identified()
    head = read_head(message)
    request_id = incoming.request_id
    if head.request_id and not incoming.chose_id:
        request_id = new_request_id(head.request_id.decode("ascii", "replace"))
    deadlines = [incoming.deadline, None if head.left_s is None else time.monotonic() + head.left_s]
    return EngineCall(
        model=head.model,
        version=head.version,
        inputs=head.inputs,
        request_id=request_id,
        deadline=min((each for each in deadlines if each is not None), default=None),
        wire=message,
        caller=incoming.caller,
        face=Face.TORCHSERVE,
    )
