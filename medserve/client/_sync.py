"""The client for ordinary programs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

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
from medserve.client._sample_calls import SampleCalls
from medserve.errors import MedserveError, PayloadTooLargeError
from medserve.tasks.classification import Classification
from medserve.wire import inference_pb2

__all__ = ["Client"]

if TYPE_CHECKING:
    _Call = grpc.CallFuture[inference_pb2.PredictionResponse]


class Client(SampleCalls):
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

    def classify(
        self,
        model: str,
        images: Sequence[bytes | Path],
        *,
        version: str | None = None,
        explain: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[ItemResult]:
        """Classify any number of images: one result per image, in order.

        An image that fails costs no other; its result holds the error. `progress` gets the number
        of images done and of all. `explain` asks for what each class rests on: 131 rows of the
        network for an image instead of one.

        Raises:
            MedserveError: what no single image is to blame for: no such model, a refused token,
                nobody at that address.
        """
        results = []
        for result in self.classify_each(model, images, version=version, explain=explain):
            results.append(result)
            if progress is not None:
                progress(len(results), len(images))
        return results

    def classify_each(
        self,
        model: str,
        images: Iterable[bytes | Path],
        *,
        version: str | None = None,
        explain: bool = False,
    ) -> Generator[ItemResult, None, None]:
        """Like `classify`, but gives each result as soon as it and those before it are known.

        Takes images as it goes, so that neither they nor their results need to fit in memory.
        """
        limits = self._connection.limits
        if explain:
            limits = for_explanations(limits)
        target = self._target(model, version)
        flying: deque[tuple[PackedJob, _Call | None]] = deque()
        try:
            for chunk in pack(images, limits):
                job = PackedJob(target, chunk, explain=explain)
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
        self,
        model: str,
        image: bytes | Path,
        *,
        version: str | None = None,
        explain: bool = False,
    ) -> Classification:
        """Classify one image; raises the error where that fails."""
        return self.classify(model, [image], version=version, explain=explain)[0].unwrap()

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
        content = read_case(volume, self._connection.limits)
        params = (options or SegmentationOptions()).to_params()
        job = Job.single(self._target(model, version), content, params)
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
        params = (options or SegmentationOptions()).to_params()
        target = self._target(model, version)
        for outcome in self._each(target, volumes, params, read_case):
            yield _answers.volume_result(outcome)

    def segment_frame(
        self,
        model: str,
        frame: bytes | Path,
        *,
        options: FrameOptions | None = None,
        version: str | None = None,
    ) -> FrameAnswer:
        """Segment the frames of one file: each mask lies on the pixels of its frame.

        Args:
            model: Name of the model.
            frame: PNG, JPEG, TIFF, DICOM of one or many frames, or a NIfTI stack.
            options: What to say of the file, and what to ask for beside the mask.
            version: Of the model; the server's default when it is left out.

        Raises:
            MedserveError: why there is no mask.
        """
        content = read(frame, self._connection.limits)
        params = (options or FrameOptions()).to_params()
        job = Job.single(self._target(model, version), content, params)
        return frame_answer(self._finish(job, self._start(job)))

    def segment_frames(
        self,
        model: str,
        frames: Iterable[bytes | Path],
        *,
        options: FrameOptions | None = None,
        version: str | None = None,
    ) -> Generator[FrameResult, None, None]:
        """Segment any number of files with frames: one result each, in order, as it is known.

        While one is worked on, the next one is on its way. A file that fails costs no other.
        """
        params = (options or FrameOptions()).to_params()
        for outcome in self._each(self._target(model, version), frames, params, read):
            yield frame_result(outcome)

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

    def _launch(self, job: PackedJob) -> _Call | None:
        """Start the call; None where no item of the chunk can be sent."""
        return self._start(job) if job.chunk.payloads else None

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

    def _each(
        self,
        target: Target,
        cases: Iterable[bytes | Path],
        params: Mapping[str, Any],
        read_one: Callable[[bytes | Path, Limits], bytes],
    ) -> Generator[bytes | MedserveError, None, None]:
        """One answer or error a case, in order; while one is worked on, the next one travels."""
        flying: deque[tuple[Job, _Call] | MedserveError] = deque()
        try:
            for case in cases:
                try:
                    content = read_one(case, self._connection.limits)
                    job = Job.single(target, content, params)
                    flying.append((job, self._start(job)))
                except MedserveError as error:
                    flying.append(error)
                if len(flying) == VOLUMES_IN_FLIGHT:
                    yield self._outcome(flying.popleft())
            while flying:
                yield self._outcome(flying.popleft())
        finally:
            for each in flying:
                if not isinstance(each, MedserveError):
                    each[1].cancel()  # type: ignore[no-untyped-call]

    def _outcome(self, flying: tuple[Job, _Call] | MedserveError) -> bytes | MedserveError:
        if isinstance(flying, MedserveError):
            return flying
        try:
            return self._finish(*flying)
        except MedserveError as error:
            return error
