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

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from medserve.archive.reference import Observed, Reference, read_answer_items
from medserve.gateway.core.calls import ModelInfo
from medserve.gateway.core.metrics import GatewayMetrics

__all__ = ["ALARM", "DriftTest", "Watched", "Watching"]

ALARM = 1e6
# Sums stop here, so that an alarm ends within some hundred inputs once the drift has ended.
_MOST = 1e8
_LATER_S = 0.05  # from an answer to its count, when its caller has it
_MOST_HELD, _MOST_HELD_BYTES = 16, 2**20  # of answers that are not counted yet
_OTHER = "other"  # stands for a label that the archive does not name: metrics must stay few


class DriftTest:
    """The evidence that inputs are no longer like those of a reference."""

    def __init__(self, reference: Reference) -> None:
        self._known = {
            (name, label): (held_out, 1 + held_out.tolerance)
            for name, classes in reference.signals.items()
            for label, held_out in classes.items()
        }
        self._sums = {name: (0.0, 0.0) for name in reference.signals}  # of shifts up and down
        self._most = _MOST * 2 * len(self._sums)

    @property
    def evidence(self) -> float:
        """Mean of the sums; `ALARM` or more is drift."""
        return sum(map(sum, self._sums.values())) / max(1, 2 * len(self._sums))

    def observe(self, answer: Observed) -> None:
        """Take one more answer into account; a class without a reference says nothing."""
        for name, value in answer.signals():
            if (known := self._known.get((name, answer.label))) is None:
                continue
            held_out, scale = known
            shift = held_out.place(value) - 0.5
            up, down = self._sums[name]
            up, down = (1 + up) * ((1 + shift) / scale), (1 + down) * ((1 - shift) / scale)
            most = self._most
            self._sums[name] = (up if up < most else most, down if down < most else most)


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
    """Counts the answers of every model; nothing of an input but these numbers is kept.

    An answer is counted a moment after its caller has it, together with others; who reads the
    numbers finds every answer counted.
    """

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics
        self._watched: dict[tuple[str, str, str], Watched] = {}  # by name, version and digest
        self._held: list[tuple[ModelInfo, bytes]] = []
        self._held_bytes = 0
        metrics.before_reading.append(self.count)

    def of(self, model: ModelInfo) -> Watched:
        """Return what is known of a version of a model."""
        self.count()
        return self._of(model)

    def answered(self, model: ModelInfo, answer: bytes) -> None:
        """Take an answer into account; one that is a bare file tells nothing."""
        if not answer.startswith(b"{"):
            return
        if not self._held:
            with contextlib.suppress(RuntimeError):  # no event loop: who reads counts first
                asyncio.get_running_loop().call_later(_LATER_S, self.count)
        self._held.append((model, answer))
        self._held_bytes += len(answer)
        if len(self._held) >= _MOST_HELD or self._held_bytes > _MOST_HELD_BYTES:
            self.count()

    def count(self) -> None:
        """Count what was answered until now."""
        held, self._held, self._held_bytes = self._held, [], 0
        found: dict[tuple[str, str, str], tuple[ModelInfo, list[Observed]]] = {}
        for model, answer in held:
            key = (model.name, model.version, model.digest)
            found.setdefault(key, (model, []))[1].extend(read_answer_items(answer))
        for model, items in found.values():
            if items:
                self._count(model, self._of(model), items)

    def _of(self, model: ModelInfo) -> Watched:
        key = (model.name, model.version, model.digest)
        if (found := self._watched.get(key)) is None:
            drift = None if model.reference is None else DriftTest(model.reference)
            found = self._watched[key] = Watched(drift=drift)
        return found

    def _count(self, model: ModelInfo, watched: Watched, items: Sequence[Observed]) -> None:
        metrics, key = self._metrics, (model.name, model.version)
        review = sum(item.review for item in items)
        unlike = sum(item.unlike_training for item in items)
        watched.inputs += len(items)
        watched.review += review
        watched.unlike += unlike
        metrics.inputs(*key).inc(len(items))
        metrics.review(*key).inc(review)
        metrics.unlike(*key).inc(unlike)
        for label, count in Counter(
            label for item in items for label in _found(model.labels, item)
        ).items():
            watched.labels[label] = watched.labels.get(label, 0) + count
            metrics.labels(*key, label).inc(count)
        for item in items:
            if item.probability is not None:
                metrics.probability(*key).observe(item.probability)
            for label in item.present or ():
                if label in item.probabilities:
                    metrics.probability(*key).observe(item.probabilities[label])
            if item.volumes_ml or item.stack is not None:
                for label, volume_ml in _volumes(model.labels, item):
                    metrics.structure_ml(*key, label).observe(volume_ml)
        if watched.drift is not None:
            for item in items:
                watched.drift.observe(item)
            evidence = math.log10(max(1.0, watched.drift.evidence))
            metrics.drift_evidence.labels(*key).set(evidence)


def _found(labels: Sequence[str], item: Observed) -> list[str]:
    """Return the class of an input, or the labels or structures that are in it."""
    if item.present is not None:
        return [label if label in labels else _OTHER for label in item.present]
    if item.label:
        return [item.label if item.label in labels else _OTHER]
    if item.grid is not None and any(frame.pixels for frame in item.frames):
        own = [each.label for each in item.structures if each.stack.frames_found]
        return [label for label in own if label in labels] or [labels[-1]]
    return [label for label, volume_ml in _volumes(labels, item) if volume_ml > 0]


def _volumes(labels: Sequence[str], item: Observed) -> list[tuple[str, float]]:
    """Return the structures of known volume."""
    if item.structures:
        found = [(each.label, each.stack.volume_ml) for each in item.structures]
        return [(label, ml) for label, ml in found if label in labels and ml is not None]
    if item.stack is not None and item.stack.volume_ml is not None:
        return [(labels[-1], item.stack.volume_ml)]
    return [(label, ml) for label, ml in item.volumes_ml.items() if label in labels]
