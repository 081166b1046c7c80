"""The calls of both clients for models that make images."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Generator

import grpc

from medserve.client._async_server import AsyncServerConnection
from medserve.client._connection import Connection
from medserve.client._failures import explain
from medserve.client._requests import Job
from medserve.client._sampling import (
    SampleOptions,
    SampleProgress,
    SampleSet,
    read_part,
    read_set,
    sample_job,
)
from medserve.client._sync_server import ServerConnection
from medserve.errors import ServerFailedError

__all__ = ["AsyncSampleCalls", "SampleCalls"]


class SampleCalls(ServerConnection):
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
            call = self._inference.StreamPredictions(
                job.request(), timeout=job.left_s, metadata=self._connection.inference_metadata
            )
            try:
                for answer in call:
                    part = read_part(answer.prediction)
                    yield part
                break
            except grpc.RpcError as error:
                wait_s = _pause_s(self._connection, job, error, begun=part is not None)
            finally:
                call.cancel()  # type: ignore[no-untyped-call]
            time.sleep(wait_s)
        _refuse_without_end(part)

    def sample_all(
        self, model: str, options: SampleOptions | None = None, *, version: str | None = None
    ) -> SampleSet:
        """Draw synthetic images, without progress; see `sample`."""
        job = sample_job(self._target(model, version), options, stream=False)
        return read_set(self._finish(job, self._start(job)))


class AsyncSampleCalls(AsyncServerConnection):
    """Of `AsyncClient`."""

    async def sample(
        self, model: str, options: SampleOptions | None = None, *, version: str | None = None
    ) -> AsyncGenerator[SampleProgress | SampleSet, None]:
        """Draw synthetic images: progress while they form, then all; see `Client.sample`."""
        job = sample_job(self._target(model, version), options, stream=True)
        part: SampleProgress | SampleSet | None = None
        while True:
            call = self._inference.StreamPredictions(
                job.request(), timeout=job.left_s, metadata=self._connection.inference_metadata
            )
            try:
                async for answer in call:
                    part = read_part(answer.prediction)
                    yield part
                break
            except grpc.RpcError as error:
                wait_s = _pause_s(self._connection, job, error, begun=part is not None)
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


def _pause_s(connection: Connection, job: Job, error: grpc.RpcError, *, begun: bool) -> float:
    """Seconds until the next attempt; raises where none may follow."""
    failure = explain(error, str(connection.inference))
    if begun:
        raise job.error_of(failure) from error
    return job.wait_after(failure)


def _refuse_without_end(last: SampleProgress | SampleSet | None) -> None:
    if not isinstance(last, SampleSet):
        raise ServerFailedError("expected images at the end of the stream, got none")
