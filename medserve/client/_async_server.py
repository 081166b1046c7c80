"""One server and its two channels, for programs built on asyncio; see `_sync_server`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio
from google.protobuf.empty_pb2 import Empty

from medserve.client import _answers
from medserve.client._connection import Connection, Limits, TlsConfig
from medserve.client._failures import explain
from medserve.client._readiness import Readiness
from medserve.client._requests import Job, Target
from medserve.client._results import ModelStatus
from medserve.engine.torchserve.keys import Tokens
from medserve.errors import MedserveError
from medserve.settings import Address
from medserve.wire import inference_pb2, inference_pb2_grpc, management_pb2, management_pb2_grpc

__all__ = ["AsyncServerConnection"]

if TYPE_CHECKING:
    _Call = grpc.aio.UnaryUnaryCall[
        inference_pb2.PredictionsRequest, inference_pb2.PredictionResponse
    ]


class AsyncServerConnection:
    """What every call needs; arguments as those of `ServerConnection`."""

    def __init__(
        self,
        address: str = "127.0.0.1:7070",
        *,
        management_address: str | None = None,
        token: str | Tokens | None = None,
        tls: TlsConfig | None = None,
        timeout_s: float = 30.0,
        limits: Limits | None = None,
    ) -> None:
        self._connection = Connection.parse(
            address, management_address, token, tls, limits or Limits()
        )
        self._timeout_s = timeout_s
        self._channels = [
            self._open(self._connection.inference),
            self._open(self._connection.management),
        ]
        self._inference = inference_pb2_grpc.InferenceAPIsServiceStub(self._channels[0])
        self._management = management_pb2_grpc.ManagementAPIsServiceStub(self._channels[1])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End running calls and close the connection."""
        for channel in self._channels:
            await channel.close(None)

    async def models(self) -> list[ModelStatus]:
        """Every version of every model, with the state of its workers."""
        found: list[ModelStatus] = []
        page = 0
        while True:
            request = management_pb2.ListModelsRequest(limit=100, next_page_token=page)
            text = await self._manage(self._management.ListModels, request)
            names, page = _answers.model_page(text)
            for name in names:
                found += await self._describe(name)
            if not page:
                return found

    async def ping(self) -> str:
        """What the server says of itself; see `Client.ping`."""
        try:
            answer = await self._inference.Ping(
                Empty(), timeout=self._timeout_s, metadata=self._connection.inference_metadata
            )
        except grpc.RpcError as error:
            raise explain(error, str(self._connection.inference)).error from error
        return _answers.health(answer.health)

    async def wait_ready(self, models: Sequence[str] = (), *, timeout_s: float = 120.0) -> None:
        """Wait until each named model takes requests; see `Client.wait_ready`."""
        readiness = Readiness(models, timeout_s)
        while not readiness.reached(await self._models_or_error()):
            await asyncio.sleep(readiness.pause_s)

    async def _models_or_error(self) -> list[ModelStatus] | MedserveError:
        try:
            return await self.models()
        except MedserveError as error:
            return error

    def _open(self, address: Address) -> grpc.aio.Channel:
        options = self._connection.options(address)
        credentials = self._connection.credentials()
        if credentials is None:
            return grpc.aio.insecure_channel(str(address), options=options)
        return grpc.aio.secure_channel(str(address), credentials, options=options)

    def _target(self, model: str, version: str | None) -> Target:
        return Target(model, version or "", self._timeout_s, self._connection.limits.attempts)

    def _start(self, job: Job) -> _Call:
        return self._inference.Predictions(
            job.request(), timeout=job.left_s, metadata=self._connection.inference_metadata
        )

    async def _finish(self, job: Job, call: _Call) -> bytes:
        """The answer of a started call, tried again where that is safe."""
        while True:
            try:
                return (await call).prediction
            except grpc.RpcError as error:
                failure = explain(error, str(self._connection.inference))
                wait_s = job.wait_after(failure)
            await asyncio.sleep(wait_s)
            call = self._start(job)

    async def _describe(self, name: str) -> list[ModelStatus]:
        async def description(version: str) -> str:
            request = management_pb2.DescribeModelRequest(model_name=name, model_version=version)
            return await self._manage(self._management.DescribeModel, request)

        default = _answers.default_version(await description(""))
        return _answers.statuses(await description("all"), default)

    async def _manage(
        self, call: Callable[..., Awaitable[management_pb2.ManagementResponse]], request: Any
    ) -> str:
        try:
            answer = await call(
                request, timeout=self._timeout_s, metadata=self._connection.management_metadata
            )
        except grpc.RpcError as error:
            raise explain(error, str(self._connection.management)).error from error
        return answer.msg
