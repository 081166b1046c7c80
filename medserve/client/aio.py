"""The client for programs built on asyncio; `medserve.client.sync` runs it for all others."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import (
    AsyncGenerator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.empty_pb2 import Empty

from medserve.client.connection import Connection, Limits, PendingCall, TlsConfig, call_error
from medserve.client.inputs import (
    Case,
    Files,
    Source,
    pack,
    read,
    read_case,
    read_each,
    read_file,
)
from medserve.client.messages import (
    Asked,
    Understood,
    classification_of,
    error_in,
    regression_of,
    request_of,
    status_of,
)
from medserve.client.order import OFF_LOOP, Patience, in_order, taken
from medserve.client.results import FileResult, ModelStatus, SegmentedFile
from medserve.client.upload import Upload
from medserve.errors import (
    AuthenticationError,
    MedserveError,
    ModelNotReadyError,
    ServerFailedError,
    ServerUnreachableError,
)
from medserve.settings import Address
from medserve.tasks.classification import (
    EXPLAINED_PER_CALL,
    Classification,
    ClassificationOptions,
    ask_in_halves,
    read_packed,
)
from medserve.tasks.frames import FrameOptions, FrameResult
from medserve.tasks.generation import (
    GenerationOptions,
    GenerationResult,
    SampleProgress,
    read_part,
)
from medserve.tasks.regression import Regression, RegressionOptions
from medserve.tasks.result import Provenance, Result
from medserve.tasks.volumes import VolumeOptions, VolumeResult
from medserve.wire import inference_pb2, inference_pb2_grpc
from medserve.wire.v1 import imaging_pb2, imaging_pb2_grpc

__all__ = ["AsyncClient"]

T = TypeVar("T")
Given = TypeVar("Given")
Found = TypeVar("Found")
Answer = TypeVar("Answer", bound=Result)

_FILES_IN_FLIGHT = 2  # one is worked on, one waits; more would only take memory on both sides
_LOOK_S = 0.25  # between two looks at models that are awaited


class AsyncClient:
    """A connection to one gateway, for one event loop.

    Usage:
        async with AsyncClient("127.0.0.1:8001") as client:
            print((await client.classify_one("mednist", Path("hand.png"))).label)

    Args:
        address: The gateway's gRPC port, `host:port`.
        token: Sent as a bearer token with each call.
        tls: TLS instead of plain text.
        timeout_s: For each call from its first attempt to its answer; for many images this
            bounds each packed call, not the whole. It may be changed between calls.
        limits: How much one call carries and how often it is tried.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:8001",
        *,
        token: str | None = None,
        tls: TlsConfig | None = None,
        timeout_s: float = 30.0,
        limits: Limits | None = None,
    ) -> None:
        self.timeout_s = timeout_s
        self._connection = Connection(Address.parse(address), token, tls, limits or Limits())
        self._credentials = None if tls is None else tls.credentials()
        self._channel: grpc.aio.Channel | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def address(self) -> Address:
        """Where the gateway is."""
        return self._connection.address

    async def close(self) -> None:
        """End running calls and close the connection."""
        self._closed = True
        await self.disconnect()

    async def disconnect(self) -> None:
        """End running calls; the next one connects again."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(None)

    def _connected(self) -> grpc.aio.Channel:
        """Return the channel, which belongs to the event loop of the first call."""
        if self._closed:
            raise ServerUnreachableError("this client is closed; open a new one")
        if self._channel is None:
            self._channel = self._connection.open(self._credentials)
        return self._channel

    @property
    def _inference(self) -> inference_pb2_grpc.InferenceAPIsServiceAsyncStub:
        return inference_pb2_grpc.InferenceAPIsServiceStub(self._connected())

    # ---- the gateway and its models

    async def models(self) -> list[ModelStatus]:
        """List every version of every model, and whether it is ready."""
        try:
            listed = await imaging_pb2_grpc.ImagingServiceStub(self._connected()).ListModels(
                imaging_pb2.ListModelsRequest(),
                timeout=self.timeout_s,
                metadata=self._connection.metadata,
            )
        except grpc.RpcError as error:
            raise call_error(error, str(self._connection.address)) from error
        return [status_of(model) for model in listed.models]

    async def ping(self) -> str:
        """Return what the gateway says of itself: "Healthy" while every model serves."""
        try:
            answer = await self._inference.Ping(
                Empty(),
                timeout=self.timeout_s,
                metadata=self._connection.metadata,
            )
        except grpc.RpcError as error:
            raise call_error(error, str(self._connection.address)) from error
        try:
            return str(json.loads(answer.health)["status"])
        except (ValueError, KeyError, TypeError) as error:
            raise ServerFailedError("expected the health of a gateway in JSON") from error

    async def wait_ready(self, models: Sequence[str] = (), *, timeout_s: float = 120.0) -> None:
        """Wait until each named model (by default all that the gateway has) takes requests.

        Raises:
            ModelNotReadyError: names what is missing when the time is over.
            AuthenticationError: the token is refused; no wait mends it.
        """
        end = time.monotonic() + timeout_s
        while missing := await self._missing(models):
            if time.monotonic() >= end:
                raise ModelNotReadyError(
                    f"expected every model ready within {timeout_s:g} s, still missing: {missing}"
                )
            await asyncio.sleep(_LOOK_S)

    async def _missing(self, models: Sequence[str]) -> str:
        try:
            seen = await self.models()
        except AuthenticationError:
            raise
        except MedserveError as error:
            return error.message
        ready = {status.name for status in seen if status.ready and status.default}
        awaited = models or [status.name for status in seen]
        return ", ".join(sorted(set(awaited) - ready)) if awaited else "the gateway has no model"

    # ---- images

    async def classify(
        self,
        model: str,
        images: Sequence[Source],
        *,
        options: ClassificationOptions | None = None,
        version: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[FileResult[Classification]]:
        """Classify any number of images: one result per image, in order.

        An image that fails costs no other; its result holds the error. `progress` gets the number
        of images done and of all.

        Raises:
            MedserveError: what no single image is to blame for: no such model, a refused token,
                nobody at that address.
        """
        results = []
        async for result in self.classify_each(model, images, options=options, version=version):
            results.append(result)
            if progress is not None:
                progress(len(results), len(images))
        return results

    async def classify_each(
        self,
        model: str,
        images: Iterable[Source],
        *,
        options: ClassificationOptions | None = None,
        version: str | None = None,
    ) -> AsyncGenerator[FileResult[Classification], None]:
        """Like `classify`, but gives each result as soon as it and those before it are known.

        Takes images as it goes, so that neither they nor their results need to fit in memory.
        """
        groups = self.classify_groups(model, images, options=options, version=version)
        async with aclosing(groups) as calls:
            async for results in calls:
                for result in results:
                    yield result

    async def classify_groups(
        self,
        model: str,
        images: Iterable[Source],
        *,
        options: ClassificationOptions | None = None,
        version: str | None = None,
    ) -> AsyncGenerator[list[FileResult[Classification]], None]:
        """Like `classify_each`, but gives the results of each packed call together."""
        most = self._connection.limits.items_per_call
        if options is not None and options.explain:
            most = min(most, EXPLAINED_PER_CALL)
        asked = Asked(model, version, options or ClassificationOptions())
        groups = self._image_groups(asked, images, classification_of, most)
        async with aclosing(groups) as results:
            async for each in results:
                yield each

    async def classify_one(
        self,
        model: str,
        image: Source,
        *,
        options: ClassificationOptions | None = None,
        version: str | None = None,
    ) -> Classification:
        """Classify one image; raises the error where that fails."""
        asked = Asked(model, version, options or ClassificationOptions())
        content = await self._content(image, read)
        results = await self._image_group(asked, [content], Patience(), classification_of)
        return results[0].unwrap()

    # ---- numbers of images

    async def estimate(
        self, model: str, images: Iterable[Source], *, version: str | None = None
    ) -> list[FileResult[Regression]]:
        """Tell the numbers of any number of images: one result per image, in order.

        An image that fails costs no other; its result holds the error.

        Raises:
            MedserveError: as of `classify`.
        """
        groups = self.estimate_groups(model, images, version=version)
        return [result async for group in groups for result in group]

    async def estimate_groups(
        self, model: str, images: Iterable[Source], *, version: str | None = None
    ) -> AsyncGenerator[list[FileResult[Regression]], None]:
        """Like `estimate`, but gives the results of each packed call as soon as they are known."""
        asked = Asked(model, version, RegressionOptions())
        most = self._connection.limits.items_per_call
        async with aclosing(self._image_groups(asked, images, regression_of, most)) as results:
            async for each in results:
                yield each

    async def estimate_one(
        self, model: str, image: Source, *, version: str | None = None
    ) -> Regression:
        """Tell the numbers of one image; raises the error where that fails."""
        asked = Asked(model, version, RegressionOptions())
        content = await self._content(image, read)
        results = await self._image_group(asked, [content], Patience(), regression_of)
        return results[0].unwrap()

    # ---- calls of many images

    async def _image_groups(
        self, asked: Asked, images: Iterable[Source], understood: Understood[Found], most: int
    ) -> AsyncGenerator[list[FileResult[Found]], None]:
        """Yield the results of each packed call of at most so many images, in order."""
        limits = self._connection.limits
        groups = pack(images, limits, most)
        patience = Patience()
        calls = (
            self._image_group(asked, group, patience, understood) async for group in taken(groups)
        )
        async with aclosing(in_order(calls, limits.calls_in_flight)) as results:
            async for each in results:
                yield each

    async def _image_group(
        self,
        asked: Asked,
        group: Sequence[bytes | MedserveError],
        patience: Patience,
        understood: Understood[Found],
    ) -> list[FileResult[Found]]:
        """Return one result for each file of a group, of which the readable ones are sent."""

        async def ask(images: Sequence[bytes]) -> list[FileResult[Found]]:
            files = {f"data.{place}": image for place, image in enumerate(images)}
            packed = read_packed(await self._ask(asked.request(files)), len(images))
            return [FileResult(understood(each), packed.provenance) for each in packed.outcomes]

        images = [each for each in group if isinstance(each, bytes)]
        found: Sequence[FileResult[Found] | MedserveError] = ()
        if images:
            try:
                found = await ask_in_halves(images, ask)
                patience.answered()
            except MedserveError as error:
                patience.bear(error)
                found = [error] * len(images)
        answered = iter(found)
        nobody = Provenance(asked.model)
        outcomes = [each if isinstance(each, MedserveError) else next(answered) for each in group]
        return [
            FileResult(each, nobody) if isinstance(each, MedserveError) else each
            for each in outcomes
        ]

    # ---- masks

    async def segment(
        self,
        model: str,
        volume: Case,
        *,
        options: VolumeOptions | None = None,
        version: str | None = None,
    ) -> VolumeResult:
        """Segment one volume: its mask lies on the volume's own grid.

        Args:
            model: Name of the model.
            volume: NIfTI, NPY, or a DICOM series: a zip, a tar, a multi-frame file or a folder; or
                an array (I, J, K), of which `options.spacing_mm` tells the size of a voxel. Of a
                model that sees several images of one grid (`ModelStatus.channels`): a mapping from
                their names to such inputs, a list or a folder of files `case_0000.nii.gz`,
                `case_0001.nii.gz` in the model's order, or one four-dimensional NIfTI.
            options: What to ask for; mask and measurements come in any case.
            version: Of the model; the gateway's default when it is left out.

        Raises:
            MedserveError: why there is no mask.
        """
        asked = Asked(model, version, (options or VolumeOptions()).in_json())
        content = await self._content(volume, _case_reader(options))
        return await self._segmented(asked, VolumeResult, content)

    async def segment_file(
        self,
        model: str,
        path: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
        *,
        options: VolumeOptions | None = None,
        version: str | None = None,
    ) -> SegmentedFile:
        """Segment a volume that may be too large for a message: it goes up in pieces.

        Neither the file nor a copy of it is held in memory. The gateway needs a folder for large
        files (`--upload-dir`), which `medserve serve` has.

        Args:
            model: Name of the model.
            path: NIfTI, NPY, or a DICOM series in a zip, a tar or a multi-frame file; of a model
                that sees several images, such a file for each by the name of its channel.
            options: What to ask for; `format` may be `NIFTI`, `DICOM_SEG` or `DICOM_LABELMAP`.
            version: Of the model; the gateway's default when it is left out.

        Raises:
            MedserveError: why there is no mask.
        """
        files = path if isinstance(path, Mapping) else {"": path}
        upload = Upload(
            {channel: Path(each) for channel, each in files.items()},
            model, version, options or VolumeOptions(), OFF_LOOP.get(),
        )  # fmt: skip
        with PendingCall(self._connection, self.timeout_s) as pending:
            while True:
                stub: Any = imaging_pb2_grpc.ImagingServiceStub(self._connected())
                call = stub.Segment(timeout=pending.left_s, metadata=pending.metadata)
                try:
                    return await upload.send(call)
                except grpc.RpcError as error:
                    failed = error
                finally:
                    call.cancel()
                await pending.pause(failed)

    async def segment_each(
        self,
        model: str,
        volumes: Iterable[Case],
        *,
        options: VolumeOptions | None = None,
        version: str | None = None,
    ) -> AsyncGenerator[FileResult[VolumeResult], None]:
        """Segment any number of volumes: one result each, in order, as it becomes known.

        While one is worked on, the next one is on its way. A volume that fails costs no other.
        """
        asked = Asked(model, version, (options or VolumeOptions()).in_json())
        files = read_each(volumes, self._connection.limits, _case_reader(options))
        async with aclosing(self._each(asked, VolumeResult, files)) as results:
            async for result in results:
                yield result

    async def segment_frame(
        self,
        model: str,
        frame: Source,
        *,
        options: FrameOptions | None = None,
        version: str | None = None,
    ) -> FrameResult:
        """Segment the frames of one file: each mask lies on the pixels of its frame.

        Args:
            model: Name of the model.
            frame: PNG, JPEG, TIFF, DICOM of one or many frames, or a NIfTI stack.
            options: What to say of the file, and what to ask for beside masks and measurements.
            version: Of the model; the gateway's default when it is left out.

        Raises:
            MedserveError: why there is no mask.
        """
        asked = Asked(model, version, (options or FrameOptions()).in_json())
        return await self._segmented(asked, FrameResult, await self._content(frame, read_file))

    async def segment_frames(
        self,
        model: str,
        frames: Iterable[Source],
        *,
        options: FrameOptions | None = None,
        version: str | None = None,
    ) -> AsyncGenerator[FileResult[FrameResult], None]:
        """Segment any number of files with frames: one result each, in order, as it is known.

        While one is worked on, the next one is on its way. A file that fails costs no other.
        """
        asked = Asked(model, version, (options or FrameOptions()).in_json())
        files = read_each(frames, self._connection.limits, read_file)
        async with aclosing(self._each(asked, FrameResult, files)) as results:
            async for result in results:
                yield result

    async def _segmented(
        self, asked: Asked, kind: type[Answer], content: Files | MedserveError
    ) -> Answer:
        if isinstance(content, MedserveError):
            raise content
        answer = await self._ask(asked.request(content))
        result: Answer = await OFF_LOOP.get()(kind.decode, answer)
        return result

    async def _each(
        self, asked: Asked, kind: type[Answer], files: Iterator[Files | MedserveError]
    ) -> AsyncGenerator[FileResult[Answer], None]:
        """Give one result a file; raises what concerns every file."""
        patience = Patience()

        async def outcome(content: Files | MedserveError) -> FileResult[Answer]:
            try:
                found = await self._segmented(asked, kind, content)
            except MedserveError as error:
                if error is not content:
                    patience.bear(error)
                return FileResult(error, Provenance(asked.model))
            patience.answered()
            return FileResult(found, found.provenance)

        calls = (outcome(content) async for content in taken(files))
        async with aclosing(in_order(calls, _FILES_IN_FLIGHT)) as results:
            async for result in results:
                yield result

    # ---- synthetic images

    async def sample(
        self, model: str, options: GenerationOptions | None = None, *, version: str | None = None
    ) -> AsyncGenerator[SampleProgress | GenerationResult, None]:
        """Draw synthetic images: progress while they form, and at last all of them.

        Close the generator to cancel; the gateway then stops within a step where it hears of it,
        and at the latest when `timeout_s` is over.

        Raises:
            MedserveError: why there are no images, also after some progress.
        """
        request = Asked(model, version, options or GenerationOptions()).request({})
        part: SampleProgress | GenerationResult | None = None
        with PendingCall(self._connection, self.timeout_s) as pending:
            while True:
                call = self._inference.StreamPredictions(
                    request, timeout=pending.left_s, metadata=pending.metadata
                )
                try:
                    async for answer in call:
                        part = read_part(answer.prediction)
                        yield part
                    break
                except grpc.RpcError as error:
                    if part is not None:
                        raise pending.error(error) from error
                    failed = error
                finally:
                    call.cancel()
                await pending.pause(failed)
        if not isinstance(part, GenerationResult):
            raise ServerFailedError("expected images at the end of the stream, got none")

    async def sample_all(
        self, model: str, options: GenerationOptions | None = None, *, version: str | None = None
    ) -> GenerationResult:
        """Draw synthetic images, without progress; see `sample`."""
        answer = await self._ask(Asked(model, version, options or GenerationOptions()).request({}))
        drawn: GenerationResult = await OFF_LOOP.get()(GenerationResult.decode, answer)
        return drawn

    # ---- any model

    async def predict(
        self,
        model: str,
        data: Source,
        params: Mapping[str, Any] | None = None,
        *,
        version: str | None = None,
    ) -> bytes:
        """Send one file to a model of any task; the answer comes as the model wrote it."""
        content = await self._content(data, read)
        answer = await self._ask(request_of(model, version, {"data": content}, params))
        if (error := error_in(answer)) is not None:
            raise error
        return answer

    async def _content(self, file: Given, read_one: Callable[[Given, Limits], T]) -> T:
        if isinstance(file, bytes):
            return read_one(file, self._connection.limits)
        content: T = await OFF_LOOP.get()(read_one, file, self._connection.limits)
        return content

    async def _ask(self, request: inference_pb2.PredictionsRequest) -> bytes:
        """Return the answer to one call, which is made again where that is safe."""
        with PendingCall(self._connection, self.timeout_s) as pending:
            while True:
                try:
                    answer = await self._inference.Predictions(
                        request, timeout=pending.left_s, metadata=pending.metadata
                    )
                    return answer.prediction
                except grpc.RpcError as error:
                    await pending.pause(error)


def _case_reader(options: VolumeOptions | None) -> Callable[[Case, Limits], Files]:
    has_spacing = options is not None and options.spacing_mm is not None
    return partial(read_case, has_spacing=has_spacing)
