"""The client for ordinary programs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc
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

__all__ = ["Client"]

if TYPE_CHECKING:
    _Call = grpc.CallFuture[inference_pb2.PredictionResponse]


class Client:
    """A connection to one server; safe to share between threads.

    Usage:
        with Client("127.0.0.1:7070") as client:
            print(client.classify_one("mednist", Path("hand.png")).label)

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

    def classify(
        self,
        model: str,
        images: Sequence[bytes | Path],
        *,
        version: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[ItemResult]:
        """Classify any number of images: one result per image, in order.

        An image that fails costs no other; its result holds the error. `progress` gets the number
        of images done and of all.

        Raises:
            MedserveError: what no single image is to blame for: no such model, a refused token,
                nobody at that address.
        """
        results = []
        for result in self.classify_each(model, images, version=version):
            results.append(result)
            if progress is not None:
                progress(len(results), len(images))
        return results

    def classify_each(
        self, model: str, images: Iterable[bytes | Path], *, version: str | None = None
    ) -> Generator[ItemResult, None, None]:
        """Like `classify`, but gives each result as soon as it and those before it are known.

        Takes images as it goes, so that neither they nor their results need to fit in memory.
        """
        limits = self._connection.limits
        target = self._target(model, version)
        flying: deque[tuple[PackedJob, _Call | None]] = deque()
        try:
            for chunk in pack(images, limits):
                job = PackedJob(target, chunk)
                flying.append((job, self._launch(job)))
                if len(flying) == limits.calls_in_flight:
                    yield from self._results(*flying.popleft())
            while flying:
                yield from self._results(*flying.popleft())
        finally:
            for _, call in flying:
                if call is not None:
                    call.cancel()  # type: ignore[no-untyped-call]

    def classify_one(
        self, model: str, image: bytes | Path, *, version: str | None = None
    ) -> Classification:
        """Classify one image; raises the error where that fails."""
        return self.classify(model, [image], version=version)[0].unwrap()

    def segment(
        self,
        model: str,
        volume: bytes | Path,
        *,
        options: SegmentationOptions | None = None,
        version: str | None = None,
    ) -> SegmentationResult:
        """Segment one volume: its mask lies on the volume's own grid.

        Args:
            model: Name of the model.
            volume: NIfTI, NPY, or a DICOM series: a zip, a tar, a multi-frame file or a folder.
            options: What to ask for beside the mask.
            version: Of the model; the server's default when it is left out.

        Raises:
            MedserveError: why there is no mask.
        """
        job = self._volume_job(model, volume, options, version)
        return _answers.segmentation(self._finish(job, self._start(job)))

    def segment_each(
        self,
        model: str,
        volumes: Iterable[bytes | Path],
        *,
        options: SegmentationOptions | None = None,
        version: str | None = None,
    ) -> Generator[VolumeResult, None, None]:
        """Segment any number of volumes: one result each, in order, as it becomes known.

        While one is worked on, the next one is on its way. A volume that fails costs no other.
        """
        flying: deque[tuple[Job, _Call] | MedserveError] = deque()
        try:
            for volume in volumes:
                try:
                    job = self._volume_job(model, volume, options, version)
                    flying.append((job, self._start(job)))
                except MedserveError as error:
                    flying.append(error)
                if len(flying) == VOLUMES_IN_FLIGHT:
                    yield self._volume_result(flying.popleft())
            while flying:
                yield self._volume_result(flying.popleft())
        finally:
            for each in flying:
                if not isinstance(each, MedserveError):
                    each[1].cancel()  # type: ignore[no-untyped-call]

    def predict(
        self,
        model: str,
        data: bytes | Path,
        params: Mapping[str, Any] | None = None,
        *,
        version: str | None = None,
    ) -> bytes:
        """Send one file to a model of any task; the answer comes as the model wrote it."""
        content = read(data, self._connection.limits)
        job = Job.single(self._target(model, version), content, params)
        return _answers.whole(self._finish(job, self._start(job)))

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

    def _launch(self, job: PackedJob) -> _Call | None:
        """Start the call; None where no item of the chunk can be sent."""
        return self._start(job) if job.chunk.payloads else None

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

    def _results(self, job: PackedJob, call: _Call | None) -> list[ItemResult]:
        if call is None:
            return _answers.unsent(job.chunk, job.target.model)
        try:
            return _answers.items(self._finish(job, call), job.chunk, job.target.model)
        except MedserveError as error:
            if isinstance(error, PayloadTooLargeError) and len(job.chunk.items) > 1:
                halves = [(half, self._launch(half)) for half in job.halves()]
                return [result for half in halves for result in self._results(*half)]
            return _answers.failed(job.chunk, error, job.target.model)

    def _volume_job(
        self,
        model: str,
        volume: bytes | Path,
        options: SegmentationOptions | None,
        version: str | None,
    ) -> Job:
        content = read_case(volume, self._connection.limits)
        params = (options or SegmentationOptions()).to_params()
        return Job.single(self._target(model, version), content, params)

    def _volume_result(self, flying: tuple[Job, _Call] | MedserveError) -> VolumeResult:
        if isinstance(flying, MedserveError):
            return VolumeResult(flying)
        try:
            return VolumeResult(_answers.segmentation(self._finish(*flying)))
        except MedserveError as error:
            return _answers.volume_failed(error)

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
