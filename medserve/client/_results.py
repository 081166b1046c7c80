"""What the client returns; plain values, no protobuf."""

from __future__ import annotations

from dataclasses import dataclass

from medserve.errors import MedserveError
from medserve.imaging.result import Classification, Provenance

__all__ = ["ItemResult", "ModelStatus"]


@dataclass(frozen=True)
class ItemResult:
    """What became of one image: a classification, or the error that stands in its place.

    Attributes:
        outcome: Exactly one of the two.
        provenance: Which archive answered; without version and digest where none did.
    """

    outcome: Classification | MedserveError
    provenance: Provenance

    @property
    def classification(self) -> Classification | None:
        """The answer, or None where the image failed."""
        return self.outcome if isinstance(self.outcome, Classification) else None

    @property
    def error(self) -> MedserveError | None:
        """Why the image failed, or None where it did not."""
        return self.outcome if isinstance(self.outcome, MedserveError) else None

    def unwrap(self) -> Classification:
        """The answer; raises the error where the image failed."""
        if isinstance(self.outcome, MedserveError):
            raise self.outcome
        return self.outcome


@dataclass(frozen=True)
class ModelStatus:
    """One version of one model on a server."""

    name: str
    version: str
    default: bool  # whether a request without a version comes here
    workers: int
    workers_ready: int
    batch_size: int
    pending: int  # requests that wait in its queue

    @property
    def ready(self) -> bool:
        """Whether a worker has proven itself and takes requests."""
        return self.workers_ready > 0
