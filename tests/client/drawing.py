"""A gRPC server that draws as TorchServe with a model of images does, answers given beforehand."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import grpc

from medserve.wire import inference_pb2, inference_pb2_grpc
from tests.client.fake_server import Status

__all__ = ["WAITS", "DrawingServer", "drawing"]

WAITS = None  # a part of a stream: nothing more until the caller goes

_Part = bytes | Status | None


@dataclass
class DrawingServer(inference_pb2_grpc.InferenceAPIsServiceServicer):
    """What it saw, and what it says next.

    Attributes:
        streams: Parts of the next streamed answers, one list a call.
        answers: The next unary answers.
        requests: What came.
        cancelled: Set once a caller has gone in the middle of a stream.
    """

    streams: list[Sequence[_Part]] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)
    requests: list[inference_pb2.PredictionsRequest] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)
    address: str = ""
    Ping: ClassVar[Any] = None
    StreamPredictions2: ClassVar[Any] = None

    def Predictions(  # noqa: D102 - name and meaning are TorchServe's
        self, request: inference_pb2.PredictionsRequest, context: Any
    ) -> inference_pb2.PredictionResponse:
        self.requests.append(request)
        return inference_pb2.PredictionResponse(prediction=self.answers.pop(0))

    def StreamPredictions(  # noqa: D102
        self, request: inference_pb2.PredictionsRequest, context: Any
    ) -> Iterator[inference_pb2.PredictionResponse]:
        self.requests.append(request)
        parts = self.streams.pop(0)
        if WAITS in parts:  # registered first: gRPC does not resume a stream that was cancelled
            context.add_callback(self.cancelled.set)
        for part in parts:
            if part is WAITS:
                self.cancelled.wait(60)
            elif isinstance(part, Status):
                context.abort(part.code, part.text)
            else:
                yield inference_pb2.PredictionResponse(prediction=part)


@contextmanager
def drawing() -> Iterator[DrawingServer]:
    """The server on a free port for the time of the block."""
    servicer = DrawingServer()
    server = grpc.server(ThreadPoolExecutor(4))
    inference_pb2_grpc.add_InferenceAPIsServiceServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield servicer
    finally:
        server.stop(None).wait()
