"""TorchServe as an `Engine`: all that is said to it over gRPC, and how its answers are read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from medserve.archive.read import ArchiveInfo
from medserve.archive.unpack import place_archive
from medserve.engine.interface import EngineModel, EngineRequest
from medserve.engine.torchserve.failures import engine_failure
from medserve.engine.torchserve.keys import Tokens, read_tokens
from medserve.engine.torchserve.unanswered import Unanswered
from medserve.errors import (
    ArchiveError,
    ConfigError,
    InvalidRequestError,
    MedserveError,
    ModelNotReadyError,
    ServerFailedError,
    ServerUnreachableError,
)
from medserve.settings import Address
from medserve.tracing import TRACEPARENT
from medserve.wire import inference_pb2, management_pb2, management_pb2_grpc

__all__ = ["READY", "EngineAccess", "TorchServeEngine", "archive_file_name", "prediction_message"]

READY = "READY"  # of a worker that DescribeModel lists
_INFERENCE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService"
_MANAGEMENT_TIMEOUT_S = 5.0
_PAGE = 100  # models that ListModels gives at a time
_SETTLE_S = 0.2  # for the rest of a worker's traceback to arrive
_SCALE_S = 180.0  # for workers to start, or for those that are left to end
_RELOAD_S = 5.0  # added to what an archive allows for the start of its workers


@dataclass(frozen=True)
class EngineAccess:
    """Where TorchServe is and how to get in.

    Attributes:
        key_file: TorchServe's `key_file.json`, where its token check is on.
        ca_file: PEM certificates to trust, where it speaks TLS.
        server_name: Name in its certificate, where that is not its address.
        message_bytes: The largest answer.
        store: Folder in which TorchServe looks for archives that are loaded while it runs; None
            where nothing is loaded.
        why_not_ready: Returns what the engine's output says of workers that did not start, by name
            and version; "" where it says nothing.
    """

    inference: Address
    management: Address
    key_file: Path | None = None
    ca_file: Path | None = None
    server_name: str | None = None
    message_bytes: int = 64 * 2**20
    store: Path | None = None
    why_not_ready: Callable[[str, str], str] = lambda name, version: ""


class TorchServeEngine:
    """An `Engine`; to be made inside the event loop that uses it."""

    def __init__(self, access: EngineAccess) -> None:
        tokens = read_tokens(access.key_file) if access.key_file else None
        self._access = access
        self._drained = False
        self._reached = False  # it has answered something
        self._placing: set[Path] = set()  # archives that are being copied into its store
        self._unanswered = Unanswered()
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

    # ---- requests

    async def call(self, request: EngineRequest, timeout_s: float) -> bytes:
        """Return one answer, the bytes that the handler returned.

        An engine that answered before and is gone is waited for until the request's deadline, and
        asked once more when it is back; a request without a deadline fails at once.
        """
        try:
            return await self._call_once(request, timeout_s)
        except ServerUnreachableError:
            if not await self._comes_back(request):
                raise
        return await self._call_once(request, timeout_s)

    async def _call_once(self, request: EngineRequest, timeout_s: float) -> bytes:
        self._require_open()
        message = prediction_message(request, stream=False)
        call = self._predict(message, timeout=timeout_s, metadata=self._inference_metadata)
        with self._unanswered.watch(request, call), self._failures():
            answer = await call
        self._reached = True
        prediction: bytes = answer.prediction
        return prediction

    async def _comes_back(self, request: EngineRequest) -> bool:
        """Wait until somebody listens where the engine was; False at the request's deadline."""
        if request.deadline is None or self._drained or not self._reached:
            return False
        try:
            async with asyncio.timeout(request.deadline - time.monotonic()):
                await self._channels[0].channel_ready()
        except (TimeoutError, grpc.aio.UsageError):  # the channel was closed meanwhile
            return False
        return True

    async def stream(self, request: EngineRequest, timeout_s: float) -> AsyncGenerator[bytes, None]:
        """Yield the parts of an answer as soon as they exist; wait for an engine as `call` does."""
        began = False
        try:
            async for part in self._stream_once(request, timeout_s):
                began = True
                yield part
            return
        except ServerUnreachableError:
            if began or not await self._comes_back(request):
                raise
        async for part in self._stream_once(request, timeout_s):
            yield part

    async def _stream_once(
        self, request: EngineRequest, timeout_s: float
    ) -> AsyncGenerator[bytes, None]:
        self._require_open()
        message = prediction_message(request, stream=True)
        call = self._stream(message, timeout=timeout_s, metadata=self._inference_metadata)
        with self._unanswered.watch(request, call) as flight, self._failures():
            async for answer in call:
                self._reached = True
                self._unanswered.begun(request, flight)
                yield answer.prediction

    async def drain(self, timeout_s: float = 0.0) -> None:
        """Take no new requests, let running ones end within `timeout_s`, and disconnect."""
        self._drained = True
        for channel in self._channels:
            await channel.close(timeout_s)

    # ---- models

    async def describe(self, model: str = "") -> Sequence[EngineModel]:
        """Return every loaded version of `model`, or of all models where no name is given."""
        if not model:
            names = await self._names()
            return [version for name in names for version in await self.describe(name)]
        (default,) = await self._described(model, "") or ({},)
        asked_at = time.monotonic()
        every = await self._described(model, "all")
        found = [_engine_model(each, default.get("modelVersion")) for each in every]
        for each in found:
            self._unanswered.see(each, asked_at)
        return found

    async def load(self, archive: ArchiveInfo, *, workers: int = 0, default: bool = False) -> None:
        """Load an archive; this needs a TorchServe that was started with `allow_loading`."""
        file = self._loadable(archive.name, archive.version)
        if file.exists() or file in self._placing:
            raise InvalidRequestError(f"{archive.name} {archive.version} is loaded already")
        serving = archive.spec.serving
        request = management_pb2.RegisterModelRequest(
            url=file.name,
            model_name=archive.name,
            synchronous=True,  # answers when the workers that the archive asks for are ready
        )
        start_s = serving.startup_timeout + _RELOAD_S
        name, version = archive.name, archive.version
        try:
            await self._place(archive, file)
        except ArchiveError as error:
            raise ModelNotReadyError(
                f"{name} {version} cannot be loaded: {error.message}"
            ) from error
        try:
            await self._manage("RegisterModel", request, start_s)
            if workers not in (0, serving.min_workers):
                most = max(workers, serving.max_workers)
                await self.set_workers(name, version, workers, most, wait_s=start_s)
            if default:
                await self.set_default(name, version)
        except MedserveError as error:
            with contextlib.suppress(
                MedserveError
            ):  # a version whose workers do not start stays registered
                await self._unregister(name, version)
            file.unlink()
            await asyncio.sleep(_SETTLE_S)
            reason = self._access.why_not_ready(name, version) or error.message
            raise ModelNotReadyError(f"{name} {version} cannot be loaded: {reason}") from error

    async def _place(self, archive: ArchiveInfo, file: Path) -> None:
        """Put an archive where TorchServe finds it, while other calls go on."""
        self._placing.add(file)
        try:
            await asyncio.to_thread(place_archive, archive, file)
        finally:
            self._placing.discard(file)

    async def unload(self, model: str, version: str) -> None:
        """Take one version away; the default version only with the model."""
        file = self._loadable(model, version)
        versions = await self.describe(model)
        if len(versions) > 1 and any(each.version == version and each.default for each in versions):
            raise InvalidRequestError(
                f"{version} is the default version of {model}; make another version the default "
                "before you unload it"
            )
        await self._unregister(model, version)
        file.unlink(missing_ok=True)

    def _loadable(self, model: str, version: str) -> Path:
        """Return the file that stands for a version in TorchServe's store while it is loaded."""
        if self._access.store is None:
            raise ConfigError(
                "this TorchServe serves the archives that it was started with; start it with "
                "allow_loading to change them"
            )
        return self._access.store / archive_file_name(model, version)

    async def scale(self, model: str, version: str, workers: int) -> None:
        """Change how many workers a version has; return when they are ready."""
        await self.set_workers(model, version, workers, workers, wait_s=_SCALE_S)

    async def set_workers(
        self, model: str, version: str, workers: int, most: int, *, wait_s: float = 0.0
    ) -> None:
        """Change how many workers a version has; they start later unless `wait_s` allows time."""
        request = management_pb2.ScaleWorkerRequest(
            model_name=model,
            model_version=version,
            min_worker=workers,
            max_worker=most,
            synchronous=wait_s > 0,
        )
        await self._manage("ScaleWorker", request, wait_s or _MANAGEMENT_TIMEOUT_S)

    async def set_default(self, model: str, version: str) -> None:
        """Let this version answer requests that name none."""
        request = management_pb2.SetDefaultRequest(model_name=model, model_version=version)
        await self._manage("SetDefault", request)

    async def _unregister(self, model: str, version: str) -> None:
        request = management_pb2.UnregisterModelRequest(model_name=model, model_version=version)
        await self._manage("UnregisterModel", request)
        self._unanswered.forget(model, version)

    async def _names(self) -> list[str]:
        names: list[str] = []
        while True:
            request = management_pb2.ListModelsRequest(limit=_PAGE, next_page_token=len(names))
            content = _json(await self._manage("ListModels", request))
            names += [str(each["modelName"]) for each in content["models"]]
            if "nextPageToken" not in content:
                return names

    async def _described(self, model: str, version: str) -> list[dict[str, Any]]:
        request = management_pb2.DescribeModelRequest(model_name=model, model_version=version)
        described: list[dict[str, Any]] = _json(await self._manage("DescribeModel", request))
        return described

    async def _manage(
        self, method: str, request: Any, timeout_s: float = _MANAGEMENT_TIMEOUT_S
    ) -> str:
        """Return the text that every call of TorchServe's management API answers."""
        self._require_open()
        try:
            answer = await getattr(self._management, method)(
                request, timeout=timeout_s, metadata=self._management_metadata
            )
        except grpc.RpcError as error:
            raise engine_failure(error) from error
        self._reached = True
        return str(answer.msg)

    def _require_open(self) -> None:
        if self._drained:
            raise ServerUnreachableError("the engine takes no more requests; it is shutting down")

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """Say in medserve's errors why a call failed; gRPC cancels all when a channel closes."""
        try:
            yield
        except grpc.RpcError as error:
            raise engine_failure(error) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._drained and not (task and task.cancelling()):
                raise ServerUnreachableError(
                    "the engine was shut down before it had answered"
                ) from None
            raise


def prediction_message(request: EngineRequest, *, stream: bool) -> bytes:
    """Return the serialized `PredictionsRequest` with the markers that only this adapter sets.

    A protobuf message may be extended by appending to its bytes: the parser merges, and a later
    field or entry of a map replaces an earlier one. So `request.wire` stays as it came, and
    `request.version` wins over the version in it.

    `stream` belongs to the kind of call: a model that streamed into a unary call would lose its
    worker for ever.
    """
    markers = {"transport": b"grpc", "stream": b"1" if stream else b"0"}
    if request.request_id:
        markers["request_id"] = request.request_id.encode()
    if request.deadline is not None:
        left_ms = max(0, int(1000 * (request.deadline - time.monotonic())))
        markers["deadline_ms"] = b"%d" % left_ms
    if request.trace is not None and request.trace.traceparent:
        markers[TRACEPARENT] = request.trace.traceparent.encode()
    if request.wire is not None:
        added = inference_pb2.PredictionsRequest(model_version=request.version, input=markers)
        return request.wire + added.SerializeToString()
    return inference_pb2.PredictionsRequest(
        model_name=request.model,
        model_version=request.version,
        input={**request.inputs, **markers},
    ).SerializeToString()


def archive_file_name(model: str, version: str) -> str:
    """Return the name under which TorchServe finds an archive in its store."""
    return f"{model}-{version}.mar"


def _engine_model(described: dict[str, Any], default: object) -> EngineModel:
    workers = described.get("workers") or []
    return EngineModel(
        name=str(described["modelName"]),
        version=str(described["modelVersion"]),
        default=described["modelVersion"] == default,
        workers=int(described.get("minWorkers", 0)),
        workers_ready=sum(worker.get("status") == READY for worker in workers),
        pids=tuple(int(worker["pid"]) for worker in workers if int(worker.get("pid") or 0) > 0),
        pending=int((described.get("jobQueueStatus") or {}).get("pendingRequests", 0)),
        batch_size=int(described.get("batchSize", 1)),
    )


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ServerFailedError("expected a JSON description from the engine") from error


def _open(access: EngineAccess, address: Address) -> grpc.aio.Channel:
    options: list[tuple[str, str | int]] = [
        ("grpc.max_send_message_length", -1),  # the gateway has its own limit
        ("grpc.max_receive_message_length", access.message_bytes),
        ("grpc.enable_retries", 0),  # gRPC would repeat what must not be repeated
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 2000),
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
