"""TorchServe behind the gateway, over gRPC and in the event loop of the gateway."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from medserve.engine.interface import EngineModel
from medserve.engine.torchserve.failures import engine_failure
from medserve.engine.torchserve.keys import Tokens, read_tokens
from medserve.errors import ServerFailedError, UnknownModelError
from medserve.settings import Address
from medserve.wire import inference_pb2, management_pb2, management_pb2_grpc

__all__ = ["EngineAccess", "TorchServeEngine"]

_INFERENCE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService"
_DESCRIBE_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class EngineAccess:
    """Where TorchServe is and how to get in.

    Attributes:
        key_file: TorchServe's `key_file.json`, where its token check is on.
        ca_file: PEM certificates to trust, where it speaks TLS.
        server_name: Name in its certificate, where that is not its address.
        message_bytes: The largest answer.
    """

    inference: Address
    management: Address
    key_file: Path | None = None
    ca_file: Path | None = None
    server_name: str | None = None
    message_bytes: int = 64 * 2**20


class TorchServeEngine:
    """An `Engine`; to be made inside the event loop that uses it."""

    def __init__(self, access: EngineAccess) -> None:
        tokens = read_tokens(access.key_file) if access.key_file else None
        self._inference_metadata = _bearer(tokens, "inference")
        self._management_metadata = _bearer(tokens, "management")
        self._channels = (_open(access, access.inference), _open(access, access.management))
        # Requests leave as the bytes they are; only answers are parsed.
        self._predict = self._channels[0].unary_unary(
            f"{_INFERENCE}/Predictions",
            request_serializer=None,
            response_deserializer=inference_pb2.PredictionResponse.FromString,
        )
        self._stream = self._channels[0].unary_stream(
            f"{_INFERENCE}/StreamPredictions",
            request_serializer=None,
            response_deserializer=inference_pb2.PredictionResponse.FromString,
        )
        self._management = management_pb2_grpc.ManagementAPIsServiceStub(self._channels[1])

    async def predict(self, message: bytes, timeout_s: float) -> bytes:
        """One answer, the bytes that the handler returned."""
        try:
            answer = await self._predict(
                message, timeout=timeout_s, metadata=self._inference_metadata
            )
        except grpc.RpcError as error:
            raise engine_failure(error) from error
        prediction: bytes = answer.prediction
        return prediction

    async def stream(self, message: bytes, timeout_s: float) -> AsyncIterator[bytes]:
        """The chunks of a streamed answer, each as soon as it exists."""
        call = self._stream(message, timeout=timeout_s, metadata=self._inference_metadata)
        try:
            async for answer in call:
                yield answer.prediction
        except grpc.RpcError as error:
            raise engine_failure(error) from error

    async def describe(self, model: str) -> Sequence[EngineModel]:
        """Every version of the model; UnknownModelError where there is none."""
        default = await self._description(model, "")
        if not default:
            raise UnknownModelError("the engine has no such model")
        every = await self._description(model, "all")
        return [_engine_model(each, default[0]["modelVersion"]) for each in every]

    async def close(self) -> None:
        """End the connections."""
        for channel in self._channels:
            await channel.close(None)

    async def _description(self, model: str, version: str) -> list[dict[str, Any]]:
        request = management_pb2.DescribeModelRequest(model_name=model, model_version=version)
        try:
            answer = await self._management.DescribeModel(
                request, timeout=_DESCRIBE_TIMEOUT_S, metadata=self._management_metadata
            )
            parsed = json.loads(answer.msg)
        except grpc.RpcError as error:
            if "not found" in (error.details() or "").lower():
                raise UnknownModelError("the engine has no such model") from error
            raise engine_failure(error) from error
        except ValueError as error:
            raise ServerFailedError("expected a JSON description from the engine") from error
        return parsed if isinstance(parsed, list) else []


def _engine_model(described: dict[str, Any], default: str) -> EngineModel:
    workers = described.get("workers") or []
    return EngineModel(
        name=str(described["modelName"]),
        version=str(described["modelVersion"]),
        default=described["modelVersion"] == default,
        workers=int(described.get("minWorkers", 0)),
        workers_ready=sum(worker.get("status") == "READY" for worker in workers),
        pending=int((described.get("jobQueueStatus") or {}).get("pendingRequests", 0)),
    )


def _open(access: EngineAccess, address: Address) -> grpc.aio.Channel:
    options: list[tuple[str, str | int]] = [
        ("grpc.max_send_message_length", -1),  # the gateway has its own limit
        ("grpc.max_receive_message_length", access.message_bytes),
        ("grpc.enable_retries", 0),  # gRPC would repeat what must not be repeated
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
    if access.ca_file is None:
        return grpc.aio.insecure_channel(str(address), options=options)
    if access.server_name:
        options.append(("grpc.ssl_target_name_override", access.server_name))
    credentials = grpc.ssl_channel_credentials(access.ca_file.read_bytes())
    return grpc.aio.secure_channel(str(address), credentials, options=options)


def _bearer(tokens: Tokens | None, api: str) -> tuple[tuple[str, str], ...]:
    return () if tokens is None else (("authorization", f"Bearer {getattr(tokens, api)}"),)
