"""The calls of both clients for models that make images."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, Generator
from typing import Any

import grpc

from medserve.client._connection import Connection
from medserve.client._failures import explain
from medserve.client._requests import Job, Target
from medserve.client._sampling import (
    SampleOptions,
    SampleProgress,
    SampleSet,
    read_part,
    read_set,
    sample_job,
)
from medserve.errors import ServerFailedError

__all__ = ["AsyncSampleCalls", "SampleCalls"]


class _Sampler:
    """What both clients bring along."""

    _connection: Connection
    _inference: Any  # the stub of either kind

    @abstractmethod
    def _target(self, model: str, version: str | None) -> Target: ...

    def _open_stream(self, job: Job) -> Any:
        return self._inference.StreamPredictions(
            job.request(), timeout=job.left_s, metadata=self._connection.inference_metadata
        )

    def _failed(self, job: Job, error: grpc.RpcError, *, begun: bool) -> float:
        """Seconds until the next attempt; raises where none may follow."""
        failure = explain(error, str(self._connection.inference))
        if begun:
            raise failure.error from error
        return job.wait_after(failure)


class SampleCalls(_Sampler):
    """Of `Client`."""

    def sample(
        self, model: str, options: SampleOptions | None = None, *, version: str | None = None
    ) -> Generator[SampleProgress | SampleSet, None, None]:
        """Draw synthetic images: progress while they form, and at last all of them.

        Close the generator to cancel; the server then stops within a step where it hears of it,
        and at the latest when `timeout_s` is over.

        Raises:
            MedserveError: why there are no images, also after some progress.
        """
        job = sample_job(self._target(model, version), options, stream=True)
        part: SampleProgress | SampleSet | None = None
        while True:
            call = self._open_stream(job)
            try:
                for answer in call:
                    part = read_part(answer.prediction)
                    yield part
                break
            except grpc.RpcError as error:
                wait_s = self._failed(job, error, begun=part is not None)
            finally:
                call.cancel()
            time.sleep(wait_s)
        _refuse_without_end(part)

    def sample_all(
        self, model: str, options: SampleOptions | None = None, *, version: str | None = None
    ) -> SampleSet:
        """Draw synthetic images, without progress; see `sample`."""
        job = sample_job(self._target(model, version), options, stream=False)
        return read_set(self._finish(job, self._start(job)))

    @abstractmethod
    def _start(self, job: Job) -> Any: ...

    @abstractmethod
    def _finish(self, job: Job, call: Any) -> bytes: ...


class AsyncSampleCalls(_Sampler):
    """Of `AsyncClient`."""

    async def sample(
        self, model: str, options: SampleOptions | None = None, *, version: str | None = None
    ) -> AsyncGenerator[SampleProgress | SampleSet, None]:
        """Draw synthetic images: progress while they form, then all; see `Client.sample`."""
        job = sample_job(self._target(model, version), options, stream=True)
        part: SampleProgress | SampleSet | None = None
        while True:
            call = self._open_stream(job)
            try:
                async for answer in call:
                    part = read_part(answer.prediction)
                    yield part
                break
            except grpc.RpcError as error:
                wait_s = self._failed(job, error, begun=part is not None)
            finally:
                call.cancel()
            await asyncio.sleep(wait_s)
        _refuse_without_end(part)

    async def sample_all(
        self, model: str, options: SampleOptions | None = None, *, version: str | None = None
    ) -> SampleSet:
        """Draw synthetic images, without progress; see `Client.sample`."""
        job = sample_job(self._target(model, version), options, stream=False)
        return read_set(await self._finish(job, self._start(job)))

    @abstractmethod
    def _start(self, job: Job) -> Any: ...

    @abstractmethod
    async def _finish(self, job: Job, call: Any) -> bytes: ...


def _refuse_without_end(last: SampleProgress | SampleSet | None) -> None:
    if not isinstance(last, SampleSet):
        raise ServerFailedError("expected images at the end of the stream, got none")
