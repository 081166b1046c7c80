"""The direct engine: worker processes of this process run the archives, without TorchServe.

    engine = DirectEngine(DirectConfig())            # inside the event loop that uses it
    await engine.load(verify_archive(path))          # returns when its workers are proven
    answer = await engine.call(request, timeout_s=30.0)
    await engine.drain()

An archive is unpacked into a private folder, byte for byte what was verified; its workers run the
handler in it (`medserve.engine.direct.worker`), as TorchServe would.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from medserve.archive.read import ArchiveInfo
from medserve.archive.unpack import unpack_archive
from medserve.cores import available_cores
from medserve.engine.direct.metrics import EngineMetrics
from medserve.engine.direct.process import Job, Program
from medserve.engine.direct.workers import ModelWorkers
from medserve.engine.environment import CANCELLED, UPLOADS, worker_environment
from medserve.engine.interface import EngineModel, EngineRequest
from medserve.errors import (
    ConfigError,
    DeadlineError,
    InvalidRequestError,
    MedserveError,
    ModelNotReadyError,
    ServerUnreachableError,
    UnknownModelError,
)
from medserve.run_folder import RunFolder
from medserve.spec.model import ServingSpec
from medserve.tracing import TRACEPARENT
from medserve.wire import inference_pb2

__all__ = ["DirectConfig", "DirectEngine"]

_LOOK_S = 1.0  # between two looks at the workers
Awaited = TypeVar("Awaited")

_LEAST_STARTS = 2  # of workers at the same time, however few the cores


@dataclass(frozen=True)
class DirectConfig:
    """What the engine is told.

    Attributes:
        threads: Of each worker; 0: cores / workers of its model.
        max_message_bytes: The largest answer.
        upload_dir: Where large files are left for the workers; None: in the private folder.
    """

    threads: int = 0
    max_message_bytes: int = 64 * 2**20
    upload_dir: Path | None = None


@dataclass
class _Loaded:
    """One version that is loaded, or about to be."""

    serving: ServingSpec
    workers: ModelWorkers
    folder: Path


class DirectEngine:
    """An `Engine`; to be made inside the event loop that uses it."""

    def __init__(self, config: DirectConfig) -> None:
        if sys.platform != "linux":
            raise ConfigError("the direct engine needs Linux; use TorchServe on this machine")
        self._config = config
        self._folder = RunFolder.create()
        for name in ("tmp", "models", CANCELLED, UPLOADS):
            (self._folder.path / name).mkdir()
        self._loaded: dict[tuple[str, str], _Loaded] = {}
        self._defaults: dict[str, str] = {}
        self._drained = False
        self._starts = asyncio.Semaphore(max(_LEAST_STARTS, available_cores()))
        self._watching = asyncio.create_task(self._watch())
        self.metrics = EngineMetrics()

    @property
    def cancelled_dir(self) -> Path:
        """Where a gateway marks calls that nobody waits for any more."""
        return self._folder.path / CANCELLED

    @property
    def upload_dir(self) -> Path:
        """Where a gateway leaves files that are too large for a message."""
        return self._config.upload_dir or self._folder.path / UPLOADS

    # ---- requests

    async def call(self, request: EngineRequest, timeout_s: float) -> bytes:
        """Return one answer, the bytes that the handler returned."""
        with self._submitted(request, stream=False) as job:
            return await _in_time(job.answer, time.monotonic() + timeout_s)

    async def stream(self, request: EngineRequest, timeout_s: float) -> AsyncGenerator[bytes, None]:
        """Yield the parts of an answer as soon as they exist, and then the answer itself."""
        ends_at = time.monotonic() + timeout_s
        with self._submitted(request, stream=True) as job:
            assert job.parts is not None  # it streams
            while (part := await _in_time(job.parts.get(), ends_at)) is not None:
                if job.worker is not None:
                    job.worker.resume()
                yield part
            yield await job.answer

    @contextlib.contextmanager
    def _submitted(self, request: EngineRequest, *, stream: bool) -> Iterator[Job]:
        """The call in the engine; leaving the block tells the worker that nobody waits."""
        self._require_open()
        markers = {"transport": b"grpc", "stream": b"1" if stream else b"0"}
        if request.request_id:
            markers["request_id"] = request.request_id.encode()
        if request.trace is not None and request.trace.traceparent:
            markers[TRACEPARENT] = request.trace.traceparent.encode()
        job = Job(
            {**_inputs(request), **markers},
            request.request_id,
            request.deadline,
            asyncio.get_running_loop().create_future(),
            asyncio.Queue() if stream else None,
        )
        version = request.version or self._defaults.get(request.model, "")
        self._find(request.model, version).workers.submit(job)
        self.metrics.called(request.model, version)
        try:
            yield job
        finally:
            if not job.ended:
                job.abandon(self.cancelled_dir)

    # ---- models

    async def load(self, archive: ArchiveInfo, *, workers: int = 0, default: bool = False) -> None:
        """Load an archive beside those that are loaded; return when its workers are proven."""
        self._require_open()
        name, version = key = archive.name, archive.version
        if key in self._loaded:
            raise InvalidRequestError(f"{name} {version} is loaded already")
        number = workers or archive.spec.serving.min_workers
        loaded = self._loaded[key] = self._prepared(archive, number)
        self._defaults.setdefault(name, version)
        try:
            await asyncio.to_thread(unpack_archive, archive, loaded.folder)
            await loaded.workers.scale(number)
        except MedserveError as error:
            await self._remove(key, error)
            raise ModelNotReadyError(
                f"{name} {version} cannot be loaded: {error.message}"
            ) from error
        except BaseException:
            await self._remove(key, _shut_down())
            raise
        if default:
            self._defaults[name] = version

    async def unload(self, model: str, version: str) -> None:
        """Take one version away; its calls end before its workers do."""
        self._require_open()
        loaded = self._find(model, version)
        others = [key for key in self._loaded if key[0] == model and key[1] != version]
        if others and self._defaults.get(model) == version:
            raise InvalidRequestError(
                f"{version} is the default version of {model}; make another version the default "
                "before you unload it"
            )
        del self._loaded[model, version]
        if not others:
            self._defaults.pop(model, None)
        await loaded.workers.finish(loaded.serving.response_timeout)
        await self._dispose(loaded, _unknown())

    async def scale(self, model: str, version: str, workers: int) -> None:
        """Change how many workers a version has; return when the new ones are proven."""
        self._require_open()
        await self._find(model, version).workers.scale(workers)

    async def set_default(self, model: str, version: str) -> None:
        """Let this version answer requests that name none."""
        self._require_open()
        self._find(model, version)
        self._defaults[model] = version

    async def describe(self, model: str = "") -> Sequence[EngineModel]:
        """Return every loaded version of `model`, or of all models where no name is given."""
        self._require_open()
        found = [
            loaded.workers.describe(name, version, default=self._defaults.get(name) == version)
            for (name, version), loaded in self._loaded.items()
            if model in ("", name)
        ]
        if model and not found:
            raise _unknown()
        return found

    async def drain(self, timeout_s: float = 0.0) -> None:
        """Take no new requests, let running ones end within `timeout_s`, and end the workers."""
        self._drained = True
        self._watching.cancel()
        every = list(self._loaded.values())
        await asyncio.gather(*(each.workers.finish(timeout_s) for each in every))
        await asyncio.gather(*(each.workers.stop(_shut_down()) for each in every))
        self._folder.remove()

    # ---- inside

    def _prepared(self, archive: ArchiveInfo, workers: int) -> _Loaded:
        """Decide what the workers of an archive run, and where."""
        spec, folder = archive.spec, self._folder.path
        threads = self._config.threads or max(1, available_cores() // workers)
        label = f"{spec.name}-{spec.version}"
        program = Program(
            model=spec.name,
            label=label,
            folder=Path(tempfile.mkdtemp(prefix=f"{label}-", dir=folder / "models")),
            environment=worker_environment(
                os.environ, folder, threads, self._config.max_message_bytes
            )
            | {"MEDSERVE_UPLOAD_DIR": str(self.upload_dir)},
            answer_s=spec.serving.response_timeout,
            answer_bytes=self._config.max_message_bytes,
        )
        workers_of = ModelWorkers(program, spec.serving, self._starts, self.metrics)
        return _Loaded(spec.serving, workers_of, program.folder)

    def _find(self, model: str, version: str) -> _Loaded:
        loaded = self._loaded.get((model, version or self._defaults.get(model, "")))
        if loaded is None:
            raise _unknown()
        return loaded

    def _require_open(self) -> None:
        if self._drained:
            raise ServerUnreachableError("the engine takes no more requests; it is shutting down")

    async def _remove(self, key: tuple[str, str], reason: MedserveError) -> None:
        """Take away a version that cannot be loaded; another one may have to answer for it."""
        loaded = self._loaded.pop(key, None)
        if self._defaults.get(key[0]) == key[1]:
            del self._defaults[key[0]]
            if others := [version for name, version in self._loaded if name == key[0]]:
                self._defaults[key[0]] = others[0]
        if loaded is not None:
            await self._dispose(loaded, reason)

    async def _dispose(self, loaded: _Loaded, reason: MedserveError) -> None:
        await loaded.workers.stop(reason)
        await asyncio.to_thread(shutil.rmtree, loaded.folder, ignore_errors=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            for loaded in list(self._loaded.values()):
                loaded.workers.look(time.monotonic())


async def _in_time(awaited: Awaitable[Awaited], ends_at: float) -> Awaited:
    """Wait for something until `time.monotonic()` is `ends_at`."""
    try:
        async with asyncio.timeout(ends_at - time.monotonic()):
            return await awaited
    except TimeoutError:
        raise DeadlineError("the engine gave no answer in time") from None


def _inputs(request: EngineRequest) -> dict[str, bytes]:
    """Return what the handler gets; what was parsed for it is let go on leaving."""
    if request.wire is None:
        return dict(request.inputs)
    return dict(inference_pb2.PredictionsRequest.FromString(request.wire).input)


def _unknown() -> UnknownModelError:
    return UnknownModelError("the engine has no such model or version")


def _shut_down() -> ServerUnreachableError:
    return ServerUnreachableError("the engine was shut down before it had answered")
