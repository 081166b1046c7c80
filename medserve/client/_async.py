"""The client for programs built on asyncio; the same calls as the ordinary one, awaited."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from medserve.client import _answers
from medserve.client._cases import VOLUMES_IN_FLIGHT, read_case
from medserve.client._connection import Limits
from medserve.client._frames import (
    FrameAnswer,
    FrameOptions,
    FrameResult,
    frame_answer,
    frame_result,
)
from medserve.client._requests import (
    Job,
    PackedJob,
    Target,
    for_explanations,
    pack,
    read,
)
from medserve.client._results import (
    ItemResult,
    SegmentationOptions,
    SegmentationResult,
    VolumeResult,
)
from medserve.client._sample_calls import AsyncSampleCalls
from medserve.errors import MedserveError, PayloadTooLargeError
from medserve.tasks.classification import Classification
from medserve.wire import inference_pb2

__all__ = ["AsyncClient"]

if TYPE_CHECKING:
    _Call = grpc.aio.UnaryUnaryCall[
        inference_pb2.PredictionsRequest, inference_pb2.PredictionResponse
    ]


class AsyncClient(AsyncSampleCalls):
    """A connection to one server, for one event loop; arguments as those of `Client`.

    Usage:
        async with AsyncClient("127.0.0.1:7070") as client:
            print((await client.classify_one("mednist", Path("hand.png"))).label)
    """

    async def classify(
        self,
        model: str,
        images: Sequence[bytes | Path],
        *,
        version: str | None = None,
        explain: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[ItemResult]:
        """Classify any number of images: one result per image, in order; see `Client.classify`."""
        results = []
        async for result in self.classify_each(model, images, version=version, explain=explain):
            results.append(result)
            if progress is not None:
                progress(len(results), len(images))
        return results

    async def classify_each(
        self,
        model: str,
        images: Iterable[bytes | Path],
        *,
        version: str | None = None,
        explain: bool = False,
    ) -> AsyncGenerator[ItemResult, None]:
        """Like `classify`, but gives each result as soon as it and those before it are known."""
        limits = self._connection.limits
        if explain:
            limits = for_explanations(limits)
        target = self._target(model, version)
        chunks = pack(images, limits)
        flying: deque[tuple[PackedJob, _Call | None]] = deque()
        try:
            # Files are read in a thread: the event loop must not wait for a disk.
            while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                job = PackedJob(target, chunk, explain=explain)
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
        self,
        model: str,
        image: bytes | Path,
        *,
        version: str | None = None,
        explain: bool = False,
    ) -> Classification:
        """Classify one image; raises the error where that fails."""
        return (await self.classify(model, [image], version=version, explain=explain))[0].unwrap()

    async def segment(
        self,
        model: str,
        volume: bytes | Path,
        *,
        options: SegmentationOptions | None = None,
        version: str | None = None,
    ) -> SegmentationResult:
        """Segment one volume; see `Client.segment`."""
        content = await asyncio.to_thread(read_case, volume, self._connection.limits)
        params = (options or SegmentationOptions()).to_params()
        job = Job.single(self._target(model, version), content, params)
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
        params = (options or SegmentationOptions()).to_params()
        target = self._target(model, version)
        async for outcome in self._each(target, volumes, params, read_case):
            yield _answers.volume_result(outcome)

    async def segment_frame(
        self,
        model: str,
        frame: bytes | Path,
        *,
        options: FrameOptions | None = None,
        version: str | None = None,
    ) -> FrameAnswer:
        """Segment the frames of one file; see `Client.segment_frame`."""
        content = await asyncio.to_thread(read, frame, self._connection.limits)
        params = (options or FrameOptions()).to_params()
        job = Job.single(self._target(model, version), content, params)
        return frame_answer(await self._finish(job, self._start(job)))

    async def segment_frames(
        self,
        model: str,
        frames: Iterable[bytes | Path],
        *,
        options: FrameOptions | None = None,
        version: str | None = None,
    ) -> AsyncGenerator[FrameResult, None]:
        """Segment any number of files with frames; see `Client.segment_frames`."""
        params = (options or FrameOptions()).to_params()
        async for outcome in self._each(self._target(model, version), frames, params, read):
            yield frame_result(outcome)

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

    def _launch(self, job: PackedJob) -> _Call | None:
        """Start the call; None where no item of the chunk can be sent."""
        return self._start(job) if job.chunk.payloads else None

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

    async def _each(
        self,
        target: Target,
        cases: Iterable[bytes | Path],
        params: Mapping[str, Any],
        read_one: Callable[[bytes | Path, Limits], bytes],
    ) -> AsyncGenerator[bytes | MedserveError, None]:
        """One answer or error a case, in order; while one is worked on, the next one travels."""
        flying: deque[tuple[Job, _Call] | MedserveError] = deque()
        try:
            for case in cases:
                try:
                    # Read and packed in a thread: the event loop must not wait for a disk.
                    content = await asyncio.to_thread(read_one, case, self._connection.limits)
                    job = Job.single(target, content, params)
                    flying.append((job, self._start(job)))
                except MedserveError as error:
                    flying.append(error)
                if len(flying) == VOLUMES_IN_FLIGHT:
                    yield await self._outcome(flying.popleft())
            while flying:
                yield await self._outcome(flying.popleft())
        finally:
            for each in flying:
                if not isinstance(each, MedserveError):
                    each[1].cancel()

    async def _outcome(self, flying: tuple[Job, _Call] | MedserveError) -> bytes | MedserveError:
        if isinstance(flying, MedserveError):
            return flying
        try:
            return await self._finish(*flying)
        except MedserveError as error:
            return error
