"""What a model answers; the handler builds these and the client returns the same types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medserve.errors import ServerFailedError
from medserve.results.explanation import Explanation

__all__ = ["Classification", "Provenance"]


@dataclass(frozen=True)
class Provenance:
    """Which archive answered."""

    model: str
    version: str
    archive_digest: str  # "sha256:…" over the archive's manifest

    def to_json(self) -> dict[str, str]:
        """The three members that every JSON answer carries."""
        return {
            "model": self.model,
            "version": self.version,
            "archive_digest": self.archive_digest,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Provenance:
        """Read them back from an answer."""
        return cls(
            str(content.get("model", "")),
            str(content.get("version", "")),
            str(content.get("archive_digest", "")),
        )


@dataclass(frozen=True)
class Classification:
    """One image's class, with calibrated probabilities in label order.

    Attributes:
        labels: Class names; the index is the label id.
        probabilities: One per label, in [0, 1], summing to 1.
        review: Probability below the limit that the model card states: let a person look.
        novelty: Distance to the training data over its limit; above 1 the image is unlike it.
        explanation: What the class rests on, where it was asked for.
    """

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    review: bool
    novelty: float
    explanation: Explanation | None = None

    @property
    def label_id(self) -> int:
        """Index of the most probable label."""
        return max(range(len(self.labels)), key=self.probabilities.__getitem__)

    @property
    def label(self) -> str:
        """Name of the most probable label."""
        return self.labels[self.label_id]

    @property
    def probability(self) -> float:
        """Probability of the most probable label."""
        return self.probabilities[self.label_id]

    @property
    def unlike_training(self) -> bool:
        """Whether the image is unlike the training data, so that its class means little."""
        return self.novelty > 1.0

    def top(self, k: int) -> list[tuple[str, float]]:
        """The k most probable labels with their probabilities, most probable first."""
        order = sorted(range(len(self.labels)), key=lambda i: -self.probabilities[i])
        return [(self.labels[i], self.probabilities[i]) for i in order[:k]]

    def to_json(self, top_k: int = 3) -> dict[str, Any]:
        """The members of a JSON answer for one image; `explanation` only where there is one."""
        explained = {} if self.explanation is None else {"explanation": self.explanation.to_json()}
        return {
            "label": self.label,
            "label_id": self.label_id,
            "probability": self.probability,
            "probabilities": dict(zip(self.labels, self.probabilities, strict=True)),
            "top": [{"label": label, "probability": p} for label, p in self.top(top_k)],
            "review": self.review,
            "novelty": self.novelty,
            "unlike_training": self.unlike_training,
            **explained,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Classification:
        """Read an answer back; ServerFailedError where it is not a classification."""
        try:
            probabilities: Mapping[str, float] = content["probabilities"]
            explained = content.get("explanation")
            return cls(
                labels=tuple(probabilities),
                probabilities=tuple(float(p) for p in probabilities.values()),
                review=bool(content["review"]),
                novelty=float(content["novelty"]),
                explanation=None if explained is None else Explanation.from_json(explained),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ServerFailedError(
                f"expected a classification from the server, got members {sorted(content)}"
            ) from error
