"""Prove that every model answers before anybody relies on it.

TorchServe's own Ping says healthy while workers load, while they crash and with no model at all.
A model counts as ready when DescribeModel shows its workers READY and the archive's golden input,
sent like any request, comes back as a good answer of this very archive.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from medserve.archive.read import ArchiveInfo
from medserve.engine.torchserve.canary import canary_inputs
from medserve.engine.torchserve.log import EngineLog
from medserve.errors import ModelNotReadyError
from medserve.wire import inference_pb2, inference_pb2_grpc, management_pb2, management_pb2_grpc

__all__ = ["Endpoint", "ReadyModel", "Target", "check_answer", "prove"]

_POLL_S = 0.1
_CALL_TIMEOUT_S = 5.0
_SETTLE_S = 0.2  # for the rest of a traceback to arrive
_TIMES_TO_DIE = 2  # without a reason: killed once may be chance, twice is not
_RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 100),  # the port opens seconds after the start
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
]


@dataclass(frozen=True)
class Endpoint:
    """How to reach one API of the server from this machine."""

    address: str
    token: str | None = None
    certificate: bytes | None = None  # PEM; None without TLS
    certificate_name: str | None = None  # the name that the certificate was issued for
    max_message_bytes: int = 4 * 2**20

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        """An open channel, closed at the end."""
        limit = self.max_message_bytes
        options: list[tuple[str, str | int]] = [
            *_RECONNECT,
            ("grpc.max_send_message_length", limit),
            ("grpc.max_receive_message_length", limit),
            ("grpc.enable_http_proxy", 0),  # this machine talks to itself
        ]
        if self.certificate is None:
            channel = grpc.insecure_channel(self.address, options)
        else:
            if self.certificate_name:
                options.append(("grpc.ssl_target_name_override", self.certificate_name))
            credentials = grpc.ssl_channel_credentials(self.certificate)
            channel = grpc.secure_channel(self.address, credentials, options)
        with channel:
            yield channel

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The header that carries the token."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


@dataclass(frozen=True)
class Target:
    """One archive and what it must show before it counts as ready."""

    archive: ArchiveInfo
    workers: int
    default: bool  # answers when a request names no version

    def __str__(self) -> str:
        return f"{self.archive.name} {self.archive.version}"


@dataclass(frozen=True)
class ReadyModel:
    """A model that has answered its golden input through gRPC."""

    name: str
    version: str
    title: str
    workers: int
    default: bool
    digest: str
    canary_ms: float


@dataclass
class _Proof:
    """The state of one proof: who is asked, who is watched, and until when."""

    management: management_pb2_grpc.ManagementAPIsServiceStub
    inference: inference_pb2_grpc.InferenceAPIsServiceStub
    endpoints: tuple[Endpoint, Endpoint]  # of the same two
    log: EngineLog
    check_alive: Callable[[], None]
    deadline: float


def prove(
    targets: Sequence[Target],
    endpoints: tuple[Endpoint, Endpoint],
    log: EngineLog,
    check_alive: Callable[[], None],
    deadline: float,
) -> tuple[ReadyModel, ...]:
    """Wait until every target is proven; scales workers and sets the default versions.

    Args:
        targets: what must be ready.
        endpoints: management and inference API.
        log: the engine's output, which tells why a worker died.
        check_alive: raises when the engine itself has ended.
        deadline: `time.monotonic()` at which all must be ready.

    Raises:
        ModelNotReadyError: a worker dies while loading, or the time is over.
    """
    management, inference = endpoints
    with management.channel() as manager, inference.channel() as caller:
        proof = _Proof(
            management_pb2_grpc.ManagementAPIsServiceStub(manager),
            inference_pb2_grpc.InferenceAPIsServiceStub(caller),
            endpoints,
            log,
            check_alive,
            deadline,
        )
        for target in targets:
            _await_loaded(proof, target)
        for target in targets:
            _await_workers(proof, target)
        for target in targets:
            if target.default:
                _set_default(proof, target)
        return tuple(_ready(proof, target) for target in targets)


def _await_loaded(proof: _Proof, target: Target) -> None:
    """Wait until TorchServe knows the model, then ask for its workers."""
    while (description := _describe(proof, target)) is None:
        _pause(proof, target, "TorchServe has not loaded it")
    if description["minWorkers"] == target.workers:
        return
    request = management_pb2.ScaleWorkerRequest(
        model_name=target.archive.name,
        model_version=target.archive.version,
        min_worker=target.workers,
        max_worker=max(target.workers, description["maxWorkers"]),
    )
    try:
        proof.management.ScaleWorker(
            request,
            metadata=proof.endpoints[0].metadata,
            timeout=_CALL_TIMEOUT_S,
            wait_for_ready=True,
        )
    except grpc.RpcError as error:
        raise ModelNotReadyError(
            f"{target}: cannot be scaled to {target.workers} workers: {_details(error)}"
        ) from error


def _await_workers(proof: _Proof, target: Target) -> None:
    while True:
        workers = (_describe(proof, target) or {}).get("workers", [])
        ready = sum(worker.get("status") == "READY" for worker in workers)
        if ready >= target.workers:
            return
        _pause(proof, target, f"{ready} of {target.workers} workers are ready")


def _describe(proof: _Proof, target: Target) -> dict[str, Any] | None:
    """TorchServe's view of the model, None while nobody answers."""
    request = management_pb2.DescribeModelRequest(
        model_name=target.archive.name, model_version=target.archive.version
    )
    try:
        answer = proof.management.DescribeModel(
            request, metadata=proof.endpoints[0].metadata, timeout=_CALL_TIMEOUT_S
        )
    except grpc.RpcError as error:
        if "not found" not in _details(error).lower():
            return None
        # Archives are registered before the ports open: this one will never come.
        reason = proof.log.tail(r"(?i)failed to load model|invalid|exception") or _details(error)
        raise ModelNotReadyError(f"{target}: TorchServe cannot load it: {reason}") from error
    descriptions = json.loads(answer.msg)
    return descriptions[0] if descriptions else None


def _pause(proof: _Proof, target: Target, state: str) -> None:
    """Wait a moment; raise where waiting longer cannot help."""
    proof.check_alive()
    death = proof.log.death(target.archive.name, target.archive.version)
    if death and death.reason:  # it raised while loading, and would raise again
        time.sleep(_SETTLE_S)
        death = proof.log.death(target.archive.name, target.archive.version) or death
        raise ModelNotReadyError(f"{target}: its worker died while loading: {death.reason}")
    if death and death.count >= _TIMES_TO_DIE:
        raise ModelNotReadyError(
            f"{target}: its worker died {death.count} times without a reason in its log; it may "
            f"have been killed for using too much memory"
        )
    if time.monotonic() > proof.deadline:
        raise ModelNotReadyError(f"{target}: not ready in time: {state}")
    time.sleep(_POLL_S)


def _set_default(proof: _Proof, target: Target) -> None:
    request = management_pb2.SetDefaultRequest(
        model_name=target.archive.name, model_version=target.archive.version
    )
    try:
        proof.management.SetDefault(
            request, metadata=proof.endpoints[0].metadata, timeout=_CALL_TIMEOUT_S
        )
    except grpc.RpcError as error:
        raise ModelNotReadyError(
            f"{target}: cannot become the default version: {_details(error)}"
        ) from error


def _ready(proof: _Proof, target: Target) -> ReadyModel:
    """Send the canary; a default version is asked without naming the version."""
    archive = target.archive
    request = inference_pb2.PredictionsRequest(
        model_name=archive.name,
        model_version="" if target.default else archive.version,
        input=canary_inputs(archive.path, archive.spec.task),
    )
    started = time.perf_counter()
    try:
        answer = proof.inference.Predictions(
            request,
            metadata=proof.endpoints[1].metadata,
            timeout=max(1.0, proof.deadline - time.monotonic()),
        )
    except grpc.RpcError as error:
        raise ModelNotReadyError(
            f"{target}: its golden input was not answered: {_details(error)}"
        ) from error
    canary_ms = 1000 * (time.perf_counter() - started)
    check_answer(str(target), archive.digest, answer.prediction)
    return ReadyModel(
        name=archive.name,
        version=archive.version,
        title=archive.spec.title,
        workers=target.workers,
        default=target.default,
        digest=archive.digest,
        canary_ms=canary_ms,
    )


def check_answer(target: str, digest: str, prediction: bytes) -> None:
    """A JSON answer must be good and come from this archive; other forms cannot be told.

    Args:
        target: name and version of the model, for the message.
        digest: `archive_digest` that the answer must name.
        prediction: what the golden input got.

    Raises:
        ModelNotReadyError: it is no good answer of this archive.
    """
    if not prediction:
        raise ModelNotReadyError(f"{target}: its golden input got an empty answer")
    if not prediction.startswith(b"{"):
        return
    answer = json.loads(prediction)
    if answer.get("status") != "ok":
        error = answer.get("error") or {}
        raise ModelNotReadyError(
            f"{target}: its golden input was refused: {error.get('message', answer)}"
        )
    if answer.get("archive_digest") != digest:
        raise ModelNotReadyError(
            f"{target}: expected an answer of the archive {digest}, got one of "
            f"{answer.get('archive_digest')!r}"
        )


def _details(error: grpc.RpcError) -> str:
    """Code and text of a failed call."""
    if isinstance(error, grpc.Call):
        return f"{error.code().name} {error.details()}"
    return str(error)
