"""A gRPC server that draws as TorchServe with a model of images does, answers given beforehand."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import grpc
import numpy as np
from PIL import Image

from medserve.wire import inference_pb2, inference_pb2_grpc
from tests.client.fake_server import DIGEST, Status

__all__ = ["WAITS", "DrawingServer", "drawing", "picture", "progress", "sample_answer"]

WAITS = None  # a part of a stream: nothing more until the caller goes

_Part = bytes | Status | None


def picture(grey: int) -> bytes:
    """PNG, 16 x 16, all of one grey: what a seed draws here."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16), grey, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def sample_answer(seeds: Sequence[int], form: str = "png") -> bytes:
    """The last part of an answer; a further format is the bytes of its own name."""
    file = _base64(form.encode())
    images = [
        {
            "png": _base64(picture(seed)),
            "synthetic": True,
            "seed": seed,
            "class": "left",
            "steps": 2,
            "sampler": "ddim",
            "guidance": 1.0,
            "size": 16,
            **({"dicom": file} if form == "dicom" else {}),
        }
        for seed in seeds
    ]
    content: dict[str, Any] = {"model": "painter", "version": "1.0", "archive_digest": DIGEST}
    content |= {"status": "ok", "images": images, "withheld": 1}
    return json.dumps(content | ({form: file} if form in ("npz", "nifti") else {})).encode()


def progress(image: int, step: int, preview: bytes | None = None) -> bytes:
    """A part of an answer: one step of two."""
    event: dict[str, Any] = {"event": "progress", "image": image, "step": step, "of": 2}
    return json.dumps(event | ({"preview_png": _base64(preview)} if preview else {})).encode()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


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
