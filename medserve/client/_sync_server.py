"""One server and its two channels, for ordinary programs: calls, attempts, and its models."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc
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

__all__ = ["ServerConnection"]

if TYPE_CHECKING:
    _Call = grpc.CallFuture[inference_pb2.PredictionResponse]


class ServerConnection:
    """What every call needs, and what the server says of itself.

    Args:
        address: Inference API, `host:port`.
        management_address: Management API; by default the next port on the same host.
        token: Sent as a bearer token with each call; `Tokens` where each API has its own.
        tls: TLS instead of plain text.
        timeout_s: For each call from its first attempt to its answer; for many images this
            bounds each packed call, not the whole.
        limits: How much one call carries and how often it is tried.
    """

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End running calls and close the connection."""
        for channel in self._channels:
            channel.close()

    def models(self) -> list[ModelStatus]:
        """Every version of every model, with the state of its workers."""
        found: list[ModelStatus] = []
        page = 0
        while True:
            request = management_pb2.ListModelsRequest(limit=100, next_page_token=page)
            names, page = _answers.model_page(self._manage(self._management.ListModels, request))
            for name in names:
                found += self._describe(name)
            if not page:
                return found

    def ping(self) -> str:
        """What the server says of itself, "Healthy" as a rule.

        It means that the process is up and nothing more; `models` and `wait_ready` look deeper.
        """
        try:
            answer = self._inference.Ping(
                Empty(), timeout=self._timeout_s, metadata=self._connection.inference_metadata
            )
        except grpc.RpcError as error:
            raise explain(error, str(self._connection.inference)).error from error
        return _answers.health(answer.health)

    def wait_ready(self, models: Sequence[str] = (), *, timeout_s: float = 120.0) -> None:
        """Wait until each named model (by default all that the server has) takes requests.

        Raises:
            ModelNotReadyError: names what is missing when the time is over.
        """
        readiness = Readiness(models, timeout_s)
        while not readiness.reached(self._models_or_error()):
            time.sleep(readiness.pause_s)

    def _models_or_error(self) -> list[ModelStatus] | MedserveError:
        try:
            return self.models()
        except MedserveError as error:
            return error

    def _open(self, address: Address) -> grpc.Channel:
        options = self._connection.options(address)
        credentials = self._connection.credentials()
        if credentials is None:
            return grpc.insecure_channel(str(address), options=options)
        return grpc.secure_channel(str(address), credentials, options=options)

    def _target(self, model: str, version: str | None) -> Target:
        return Target(model, version or "", self._timeout_s, self._connection.limits.attempts)

    def _start(self, job: Job) -> _Call:
        return self._inference.Predictions.future(
            job.request(), timeout=job.left_s, metadata=self._connection.inference_metadata
        )

    def _finish(self, job: Job, call: _Call) -> bytes:
        """The answer of a started call, tried again where that is safe."""
        while True:
            try:
                return call.result().prediction
            except grpc.RpcError as error:
                failure = explain(error, str(self._connection.inference))
                wait_s = job.wait_after(failure)
            time.sleep(wait_s)
            call = self._start(job)

    def _describe(self, name: str) -> list[ModelStatus]:
        def description(version: str) -> str:
            request = management_pb2.DescribeModelRequest(model_name=name, model_version=version)
            return self._manage(self._management.DescribeModel, request)

        return _answers.statuses(description("all"), _answers.default_version(description("")))

    def _manage(self, call: Callable[..., management_pb2.ManagementResponse], request: Any) -> str:
        try:
            return call(
                request, timeout=self._timeout_s, metadata=self._connection.management_metadata
            ).msg
        except grpc.RpcError as error:
            raise explain(error, str(self._connection.management)).error from error
