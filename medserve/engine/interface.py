"""The interface of an engine: what the gateway asks of whatever executes the archives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Engine", "EngineModel"]


@dataclass(frozen=True)
class EngineModel:
    """What the engine says of one version of one model."""

    name: str
    version: str
    default: bool
    workers: int  # that it should have
    workers_ready: int
    pending: int = 0  # jobs in the engine's own queue


class Engine(Protocol):
    """What runs the models: TorchServe as a rule, a stand-in in tests.

    `message` is a serialized `PredictionsRequest`, complete with the gateway's markers. Each
    failure is a `MedserveError`.
    """

    async def predict(self, message: bytes, timeout_s: float) -> bytes:
        """One answer, the bytes that the handler returned."""

    def stream(self, message: bytes, timeout_s: float) -> AsyncIterator[bytes]:
        """The chunks of a streamed answer, each as soon as it exists."""

    async def describe(self, model: str) -> Sequence[EngineModel]:
        """Every version of the model; UnknownModelError where there is none."""

    async def close(self) -> None:
        """End the connection."""
