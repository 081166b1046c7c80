"""Watch what models answer: counts for Prometheus, and a test of drift.

The test asks, after each input, whether the last inputs, however many, look like those of the
model's `reference.json`. Each signal gives a place p in [0, 1] among held-out inputs of its class,
which is uniform while nothing drifts. A reference is finite, so the mean of p may lie off 1/2 by a
tolerance t. Two bets, (1 + (p - 1/2)) / (1 + t) and (1 - (p - 1/2)) / (1 + t), have an expectation
of 1 at most then, and their Shiryaev-Roberts sums M = (1 + M) * bet grow by 1 an input at most, on
average; under drift one of them grows exponentially. `evidence` is the mean of all sums.

By the optional stopping theorem the probability that it reaches `ALARM` within N undrifted inputs
is at most N / ALARM: 1 % for 10,000. Sources: J. Shin, A. Ramdas, A. Rinaldo, "E-detectors: a
nonparametric framework for sequential change detection", arXiv:2203.03532; V. Vovk et al., "Retrain
or not retrain: conformal test martingales for change-point detection", arXiv:2102.10439.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from medserve.archive.reference import Observed, Reference, read_answer_items
from medserve.gateway.core.calls import ModelInfo
from medserve.gateway.core.metrics import GatewayMetrics

__all__ = ["ALARM", "DriftTest", "Watched", "Watching"]

ALARM = 1e6
# Sums stop here, so that an alarm ends within some hundred inputs once the drift has ended.
_MOST = 1e8
_OTHER = "other"  # stands for a label that the archive does not name: metrics must stay few


class DriftTest:
    """The evidence that inputs are no longer like those of a reference."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._sums = {(name, way): 0.0 for name in reference.signals for way in (1, -1)}

    @property
    def evidence(self) -> float:
        """Mean of the sums; `ALARM` or more is drift."""
        return sum(self._sums.values()) / max(1, len(self._sums))

    def observe(self, answer: Observed) -> None:
        """Take one more answer into account; a class without a reference says nothing."""
        for name, value in answer.signals():
            held_out = self._reference.signals.get(name, {}).get(answer.label)
            if held_out is None:
                continue
            shift = held_out.place(value) - 0.5
            for way in (1, -1):
                bet = (1 + way * shift) / (1 + held_out.tolerance)
                grown = (1 + self._sums[name, way]) * bet
                self._sums[name, way] = min(grown, _MOST * len(self._sums))


@dataclass
class Watched:
    """What one version of a model has answered since the start of the gateway.

    Attributes:
        inputs: How many were answered.
        review: Of how many a person should look at the answer.
        unlike: How many were unlike the training data.
        labels: How often each class, or each structure, was found.
        drift: None where the archive has no reference.
    """

    inputs: int = 0
    review: int = 0
    unlike: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    drift: DriftTest | None = None

    @property
    def drifts(self) -> bool:
        """Whether the inputs are no longer like the reference."""
        return self.drift is not None and self.drift.evidence >= ALARM


class Watching:
    """Counts the answers of every model; nothing of an input but these numbers is kept."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics
        self._watched: dict[tuple[str, str, str], Watched] = {}  # by name, version and digest

    def of(self, model: ModelInfo) -> Watched:
        """Return what is known of a version of a model."""
        key = (model.name, model.version, model.digest)
        if (found := self._watched.get(key)) is None:
            drift = None if model.reference is None else DriftTest(model.reference)
            found = self._watched[key] = Watched(drift=drift)
        return found

    def answered(self, model: ModelInfo, answer: bytes) -> None:
        """Take an answer into account; one that is a bare file tells nothing."""
        items = read_answer_items(answer)
        if not items:
            return
        watched = self.of(model)
        for item in items:
            self._count(model, watched, item)
        if watched.drift is not None:
            evidence = math.log10(max(1.0, watched.drift.evidence))
            self._metrics.drift_evidence.labels(model.name, model.version).set(evidence)

    def _count(self, model: ModelInfo, watched: Watched, item: Observed) -> None:
        metrics, key = self._metrics, (model.name, model.version)
        watched.inputs += 1
        watched.review += item.review
        watched.unlike += item.unlike_training
        metrics.inputs(*key).inc()
        metrics.review(*key).inc(item.review)
        metrics.unlike(*key).inc(item.unlike_training)
        for label in _found(model.labels, item):
            watched.labels[label] = watched.labels.get(label, 0) + 1
            metrics.labels(*key, label).inc()
        if item.probability is not None:
            metrics.probability(*key).observe(item.probability)
        for label, volume_ml in _volumes(model.labels, item):
            metrics.structure_ml(*key, label).observe(volume_ml)
        if watched.drift is not None:
            watched.drift.observe(item)


def _found(labels: Sequence[str], item: Observed) -> list[str]:
    """Return the class of an input, or the structures that are in it."""
    if item.label:
        return [item.label if item.label in labels else _OTHER]
    if item.grid is not None and any(frame.pixels for frame in item.frames):
        return [labels[-1]]  # a model of frames has one structure
    return [label for label, volume_ml in _volumes(labels, item) if volume_ml > 0]


def _volumes(labels: Sequence[str], item: Observed) -> list[tuple[str, float]]:
    """Return the structures of known volume."""
    if item.stack is not None and item.stack.volume_ml is not None:
        return [(labels[-1], item.stack.volume_ml)]
    return [(label, ml) for label, ml in item.volumes_ml.items() if label in labels]
