"""The client for programs built on asyncio; the same calls as the ordinary one, awaited."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio
from google.protobuf.empty_pb2 import Empty

from medserve.access import Tokens
from medserve.client import _answers
from medserve.client._cases import VOLUMES_IN_FLIGHT, read_case
from medserve.client._connection import Connection, Limits, TlsConfig
from medserve.client._failures import explain
from medserve.client._readiness import Readiness
from medserve.client._requests import Job, PackedJob, Target, pack, read
from medserve.client._results import (
    ItemResult,
    ModelStatus,
    SegmentationOptions,
    SegmentationResult,
    VolumeResult,
)
from medserve.errors import MedserveError, PayloadTooLargeError
from medserve.imaging.result import Classification
from medserve.settings import Address
from medserve.wire import inference_pb2, inference_pb2_grpc, management_pb2, management_pb2_grpc

__all__ = ["AsyncClient"]

if TYPE_CHECKING:
    _Call = grpc.aio.UnaryUnaryCall[
        inference_pb2.PredictionsRequest, inference_pb2.PredictionResponse
    ]


class AsyncClient:
    """A connection to one server, for one event loop; arguments as those of `Client`.

    Usage:
        async with AsyncClient("127.0.0.1:7070") as client:
            print((await client.classify_one("mednist", Path("hand.png"))).label)
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

    async def classify(
        self,
        model: str,
        images: Sequence[bytes | Path],
        *,
        version: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[ItemResult]:
        """Classify any number of images: one result per image, in order; see `Client.classify`."""
        results = []
        async for result in self.classify_each(model, images, version=version):
            results.append(result)
            if progress is not None:
                progress(len(results), len(images))
        return results

    async def classify_each(
        self, model: str, images: Iterable[bytes | Path], *, version: str | None = None
    ) -> AsyncGenerator[ItemResult, None]:
        """Like `classify`, but gives each result as soon as it and those before it are known."""
        limits = self._connection.limits
        target = self._target(model, version)
        chunks = pack(images, limits)
        flying: deque[tuple[PackedJob, _Call | None]] = deque()
        try:
            # Files are read in a thread: the event loop must not wait for a disk.
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                job = PackedJob(target, chunk)
                flying.append((job, self._launch(job)))
                if len(flying) == limits.calls_in_flight:
                    for result in await self._results(*flying.popleft()):
                        yield result
            while flying:
                for result in await self._results(*flying.popleft()):
                    yield result
        finally:
            for _, call in flying:
                if call is not None:
                    call.cancel()

    async def classify_one(
        self, model: str, image: bytes | Path, *, version: str | None = None
    ) -> Classification:
        """Classify one image; raises the error where that fails."""
        return (await self.classify(model, [image], version=version))[0].unwrap()

    async def segment(
        self,
        model: str,
        volume: bytes | Path,
        *,
        options: SegmentationOptions | None = None,
        version: str | None = None,
    ) -> SegmentationResult:
        """Segment one volume; see `Client.segment`."""
        job = await self._volume_job(model, volume, options, version)
        return _answers.segmentation(await self._finish(job, self._start(job)))

    async def segment_each(
        self,
        model: str,
        volumes: Iterable[bytes | Path],
        *,
        options: SegmentationOptions | None = None,
        version: str | None = None,
    ) -> AsyncGenerator[VolumeResult, None]:
        """Segment any number of volumes, one result each, in order; see `Client.segment_each`."""
        flying: deque[tuple[Job, _Call] | MedserveError] = deque()
        try:
            for volume in volumes:
                try:
                    job = await self._volume_job(model, volume, options, version)
                    flying.append((job, self._start(job)))
                except MedserveError as error:
                    flying.append(error)
                if len(flying) == VOLUMES_IN_FLIGHT:
                    yield await self._volume_result(flying.popleft())
            while flying:
                yield await self._volume_result(flying.popleft())
        finally:
            for each in flying:
                if not isinstance(each, MedserveError):
                    each[1].cancel()

    async def predict(
        self,
        model: str,
        data: bytes | Path,
        params: Mapping[str, Any] | None = None,
        *,
        version: str | None = None,
    ) -> bytes:
        """Send one file to a model of any task; the answer comes as the model wrote it."""
        content = await asyncio.to_thread(read, data, self._connection.limits)
        job = Job.single(self._target(model, version), content, params)
        return _answers.whole(await self._finish(job, self._start(job)))

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

    def _launch(self, job: PackedJob) -> _Call | None:
        """Start the call; None where no item of the chunk can be sent."""
        return self._start(job) if job.chunk.payloads else None

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

    async def _results(self, job: PackedJob, call: _Call | None) -> list[ItemResult]:
        if call is None:
            return _answers.unsent(job.chunk, job.target.model)
        try:
            return _answers.items(await self._finish(job, call), job.chunk, job.target.model)
        except MedserveError as error:
            if isinstance(error, PayloadTooLargeError) and len(job.chunk.items) > 1:
                halves = [(half, self._launch(half)) for half in job.halves()]
                return [result for half in halves for result in await self._results(*half)]
            return _answers.failed(job.chunk, error, job.target.model)

    async def _volume_job(
        self,
        model: str,
        volume: bytes | Path,
        options: SegmentationOptions | None,
        version: str | None,
    ) -> Job:
        # Read and packed in a thread: the event loop must not wait for a disk.
        content = await asyncio.to_thread(read_case, volume, self._connection.limits)
        params = (options or SegmentationOptions()).to_params()
        return Job.single(self._target(model, version), content, params)

    async def _volume_result(self, flying: tuple[Job, _Call] | MedserveError) -> VolumeResult:
        if isinstance(flying, MedserveError):
            return VolumeResult(flying)
        try:
            return VolumeResult(_answers.segmentation(await self._finish(*flying)))
        except MedserveError as error:
            return _answers.volume_failed(error)

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
