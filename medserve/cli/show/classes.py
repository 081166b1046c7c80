"""Classes of images: what a line of JSON, a row of a table and the terminal tell of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from medserve.cli.show.images import ImageRecord
from medserve.client import Classification
from medserve.tasks.classification import Explanation

__all__ = ["ClassRecord"]


@dataclass(frozen=True)
class ClassRecord(ImageRecord[Classification]):
    """The class of one input, or the labels that are present."""

    heading: ClassVar[tuple[str, str]] = ("class", "probability")
    columns: ClassVar[tuple[str, ...]] = (
        *("label", "label_id", "probability", "review", "unlike_training", "novelty"),
    )

    top_k: int = 1

    @property
    def _explanation(self) -> Explanation | None:
        answer = self.result.result
        return None if answer is None else answer.explanation

    def members(self) -> dict[str, Any]:
        """Return class, probabilities and flags.

        `explanation` is there only where a class was explained, without its picture; `present` only
        where labels are independent, of which no single one is the class.
        """
        answer = self.result.result
        explained: dict[str, Any] = {}
        present = {} if answer is None or answer.present is None else {"present": answer.present}
        named = None if present else answer
        if self._explanation is not None:
            explained = {"explanation": self._explanation.to_json()}
            del explained["explanation"]["heatmap_png"]
        return {
            "label": named and named.label,
            "label_id": named and named.label_id,
            "probability": named and named.probability,
            **present,
            "probabilities": answer and dict(zip(answer.labels, answer.probabilities, strict=True)),
            "top": answer
            and [{"label": label, "probability": p} for label, p in answer.top(self.top_k)],
            "review": answer and answer.review,
            "unlike_training": answer and answer.unlike_training,
            "novelty": answer and answer.novelty,
            **explained,
        }

    def row(self) -> dict[str, Any]:
        """Return, of independent labels, what is present and the probability of each."""
        answer = self.result.result
        if answer is None or answer.present is None:
            return {}
        found = zip(answer.labels, answer.probabilities, strict=True)
        return {"present": answer.finding} | {f"p_{label}": share for label, share in found}

    def pictures(self) -> Mapping[str, bytes]:
        """Return the heat map, where the class was explained."""
        found = self._explanation
        return {} if found is None else {"heatmap.png": found.heatmap_png}

    def told(self, answer: Classification) -> tuple[list[tuple[str, str]], list[str]]:
        """Return the most probable classes, or what is present, and notes."""
        best: Iterable[tuple[str, float]] = answer.top(max(self.top_k, 1))
        if answer.present is not None:
            best = sorted(answer.found, key=lambda each: -each[1])
        notes = ["review"] if answer.review else []
        notes += ["unlike the training data"] if answer.unlike_training else []
        if (explanation := answer.explanation) is not None:
            notes.append(f"{explanation.without_warmest:.4f} without its warmest quarter")
        lines = [(label, f"{probability:.4f}") for label, probability in best]
        return lines or [(answer.finding, "")], notes
