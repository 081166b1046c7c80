"""The interface of an engine: what the gateway asks of that which executes the archives.

An engine is added by implementing `Engine` and by naming it in the fixture of
`tests/engine/test_contract.py`; the gateway knows nothing else of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from medserve.archive.read import ArchiveInfo
from medserve.errors import ServerFailedError
from medserve.tracing import Trace

__all__ = ["Engine", "EngineModel", "EngineRequest", "Health", "WorkerLostError"]


class WorkerLostError(ServerFailedError):
    """The worker ended while it had the request, which may not be the reason for it."""


@dataclass(frozen=True)
class Health:
    """State of a model, or of all models, with the reason where it does not serve."""

    serving: bool
    reason: str = ""


@dataclass(frozen=True)
class EngineModel:
    """One version of one model as the engine describes it."""

    name: str
    version: str
    default: bool  # answers when a request names no version
    workers: int  # that it should have
    workers_ready: int
    pending: int = 0  # jobs in the engine's own queue
    pids: tuple[int, ...] = ()  # of the processes of its workers, where the engine tells
    batch_size: int = 1  # requests that the engine gathers for a worker

    @property
    def health(self) -> Health:
        """The engine's own belief; only an answer proves that a ready worker works."""
        return Health(True) if self.workers_ready else Health(False, "no worker is ready")


@dataclass(frozen=True)
class EngineRequest:
    """One request to one model.

    Attributes:
        model: Name of the model.
        version: "" asks the default version.
        inputs: `data` (one file) or `data.0` … `data.N` (many files), and `params` (JSON).
        request_id: Hexadecimal digits and hyphens, for logs and answers; "" for none.
        deadline: `time.monotonic()` at which nobody waits any more, so that a model that works in
            steps can stop; None: never.
        wire: The request as a serialized `PredictionsRequest` of TorchServe's contract, in the
            place of `inputs`. TorchServe gets these bytes unchanged, unknown fields included;
            another engine parses them.
        trace: The span to which the request belongs; None where it is not traced.
    """

    model: str
    version: str
    inputs: Mapping[str, bytes]
    request_id: str = ""
    deadline: float | None = None
    wire: bytes | None = field(default=None, repr=False)
    trace: Trace | None = field(default=None, repr=False, compare=False)


class Engine(Protocol):
    """Executes archives; used inside the event loop in which it was made.

    Each failure is a `MedserveError`: UnknownModelError for a name or version that is not loaded,
    DeadlineError where the time is over, ServerBusyError where the same request may be sent again,
    WorkerLostError where its worker ended, ServerUnreachableError where the engine does not answer
    or has been drained.
    """

    async def load(self, archive: ArchiveInfo, *, workers: int = 0, default: bool = False) -> None:
        """Load an archive beside those that are loaded; return when a worker of it is ready.

        Args:
            archive: Verified by the caller.
            workers: Number of them; 0 takes what the archive asks for.
            default: Let this version answer requests that name none.

        Raises:
            InvalidRequestError: this version is loaded already.
            ModelNotReadyError: its workers do not start.
        """

    async def unload(self, model: str, version: str) -> None:
        """Take one version away, and the model with its last version.

        Raises:
            InvalidRequestError: it is the default version, and there are others.
        """

    async def set_default(self, model: str, version: str) -> None:
        """Let a loaded version answer requests that name none.

        Raises:
            UnknownModelError: it is not loaded.
        """

    async def scale(self, model: str, version: str, workers: int) -> None:
        """Change how many workers a version has; return when they are ready."""

    async def describe(self, model: str = "") -> Sequence[EngineModel]:
        """Return every loaded version of `model`, or of all models where no name is given.

        Raises:
            UnknownModelError: no version of `model` is loaded.
        """

    async def call(self, request: EngineRequest, timeout_s: float) -> bytes:
        """Return one answer, the bytes that the handler returned; the model never streams."""

    def stream(self, request: EngineRequest, timeout_s: float) -> AsyncIterator[bytes]:
        """Yield the parts of an answer as soon as they exist; a model that cannot yields one."""

    async def drain(self, timeout_s: float = 0.0) -> None:
        """Take no new requests, let running ones end within `timeout_s`, and release everything."""
