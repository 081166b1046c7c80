"""How one prediction is asked of each kind of server: messages as bytes, and the way to send them.

| protocol | call | peers |
|---|---|---|
| `predictions` | TorchServe's `Predictions` | TorchServe, the bare gRPC server |
| `oip` | KServe's `ModelInfer`, one BYTES tensor | Triton |
| `http` | POST of JSON with base64 | LitServe |
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio

from medserve.wire.inference_pb2 import PredictionsRequest
from medserve.wire.open_inference_pb2 import ModelInferRequest

__all__ = ["Call", "Connections", "connect", "encode_calls", "reason"]

Call = Callable[[bytes], Awaitable[bytes]]

# One connection for all calls, as a client of one server has it.
_PATHS = {
    "predictions": "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
    "oip": "/inference.GRPCInferenceService/ModelInfer",
}
_CALL_TIMEOUT_S = 30.0
_MAX_MESSAGE_BYTES = 64 * 2**20
_ENCODED = (
    8  # different packed calls; enough that no cache of the server's sees one call twice in a row
)


@dataclass(frozen=True)
class Connections:
    """One callable per call in flight, and how to end them."""

    calls: list[Call]
    close: Callable[[], Awaitable[None]]


def encode_calls(
    protocol: str, model: str, images: Sequence[bytes], images_per_call: int
) -> list[bytes]:
    """The messages of a run, each with `images_per_call` images taken in turn."""
    count = len(images) if images_per_call == 1 else max(_ENCODED, len(images) // images_per_call)
    messages = []
    for index in range(count):
        first = index * images_per_call
        chosen = [images[(first + k) % len(images)] for k in range(images_per_call)]
        messages.append(_encode(protocol, model, chosen))
    return messages


async def connect(protocol: str, address: str, calls: int) -> Connections:
    """Open what `calls` calls in flight need; gRPC shares one connection, HTTP/1.1 cannot."""
    if protocol == "http":
        return await _connect_http(address, calls)
    channel = grpc.aio.insecure_channel(
        address,
        options=[
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ],
    )
    # Serialised bytes go in and out: no message object is built while the clock runs.
    method: Any = channel.unary_unary(
        _PATHS[protocol], request_serializer=None, response_deserializer=None
    )

    async def call(message: bytes) -> bytes:
        answer: bytes = await method(message, timeout=_CALL_TIMEOUT_S)
        return answer

    async def close() -> None:
        await channel.close(None)

    return Connections([call] * calls, close)


def reason(error: Exception) -> str:
    """Why a call failed, in one line."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"


def _encode(protocol: str, model: str, images: Sequence[bytes]) -> bytes:
    if protocol == "predictions":
        return _encode_predictions(model, images)
    if len(images) != 1:
        raise ValueError(f"{protocol}: expected one image a call, got {len(images)}")
    if protocol == "oip":
        return _encode_oip(model, images[0])
    return json.dumps({"image": base64.b64encode(images[0]).decode()}).encode()


def _encode_predictions(model: str, images: Sequence[bytes]) -> bytes:
    items = {f"data.{index}": image for index, image in enumerate(images)}
    if len(images) == 1:
        items = {"data": images[0]}
    request = PredictionsRequest(model_name=model, input=items | {"transport": b"grpc"})
    return request.SerializeToString()


def _encode_oip(model: str, image: bytes) -> bytes:
    # TorchServe's declaration of the messages has KServe's field numbers, hence the same bytes.
    tensor = ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1, 1])
    request = ModelInferRequest(
        model_name=model,
        inputs=[tensor],
        raw_input_contents=[struct.pack("<I", len(image)) + image],
    )
    return request.SerializeToString()


async def _connect_http(address: str, calls: int) -> Connections:
    host, _, port = address.rpartition(":")
    opened = [await asyncio.open_connection(host, int(port)) for _ in range(calls)]

    async def close() -> None:
        for _, writer in opened:
            writer.close()

    head = f"POST /predict HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    return Connections([_http_call(reader, writer, head) for reader, writer in opened], close)


def _http_call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str) -> Call:
    """Calls on one kept-alive connection; HTTP as far as a well-behaved peer needs it."""

    async def call(message: bytes) -> bytes:
        writer.write(f"{head}Content-Length: {len(message)}\r\n\r\n".encode() + message)
        async with asyncio.timeout(_CALL_TIMEOUT_S):
            status, *lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
            length = next(line for line in lines if line.startswith(b"content-length:"))
            body = await reader.readexactly(int(length.partition(b":")[2]))
        if b" 200 " not in status:
            raise ConnectionError(f"expected status 200, got {status.decode()}")
        return body

    return call
