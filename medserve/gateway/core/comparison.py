"""How the answers of two versions to the same calls compare; numbers alone, nothing of an image.

Nobody knows the truth of a call, so the version that answers is the reference: classes that
differ, Dice of the masks, volumes of the structures. A version may be worse than allowed as long as
the interval of what is measured reaches beyond that.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.imaging.codecs import nifti
from medserve.spec import Task
from medserve.tasks.classification import as_finding
from medserve.tasks.frames import FrameResult
from medserve.tasks.volumes import VolumeResult

__all__ = ["Comparison", "binomial_interval", "mcnemar"]

_MOST_PAIRS = 100_000  # of which the figures are kept
_RESAMPLES = 2000
_FEWEST_MASKS = 30  # below it, an interval of a mean says nothing
_GZIP = b"\x1f\x8b"
_OUTSIDE = 0.025  # on each side of an interval of 95 %


@dataclass
class Comparison:
    """What is known of a version beside the one that answers.

    Attributes:
        task: Of the model.
        before: The version that answers.
        after: The version that gets copies.
        failed: Calls that the first answered and the second did not.
        dropped: Copies that were not made, because the models were never idle.
        skipped: Answers in a form that is not compared.
        labels: Pairs of classes, the answering version's first.
        dice: Mean over the structures of each mask, one value a call.
        volumes: Difference of the volume of each structure, as a share of the first, by its number.
    """

    task: Task
    before: str
    after: str
    failed: int = 0
    dropped: int = 0
    skipped: int = 0
    labels: Counter[tuple[str, str]] = field(default_factory=Counter)
    dice: list[float] = field(default_factory=list)
    volumes: dict[int, list[float]] = field(default_factory=dict)

    @property
    def pairs(self) -> int:
        """Answers of both that were compared."""
        return self.labels.total() + len(self.dice)

    def add(self, first: bytes, second: bytes) -> None:
        """Compare two answers to one call; takes some time for masks."""
        if self.pairs >= _MOST_PAIRS:
            return
        if self.task is Task.CLASSIFICATION:
            self._add_labels(_labels(first), _labels(second))
        elif self.task.segments:
            self._add_masks(_mask(self.task, first), _mask(self.task, second))
        else:
            self.skipped += 1

    def _add_labels(self, first: Sequence[str | None], second: Sequence[str | None]) -> None:
        for one, other in zip_longest(first, second[: len(first)]):
            if one is not None and other is not None:
                self.labels[one, other] += 1
            elif one is not None:
                self.failed += 1
        self.skipped += not first

    def _add_masks(
        self, first: npt.NDArray[np.uint8] | None, second: npt.NDArray[np.uint8] | None
    ) -> None:
        if first is None:
            self.skipped += 1
        elif second is None or first.shape != second.shape:
            self.failed += 1
        else:
            self.dice.append(self._dice(first, second))

    def _dice(self, first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> float:
        """Return the mean Dice over the structures that either shows; 1 where both show none."""
        sizes = [np.bincount(mask.ravel(), minlength=256) for mask in (first, second)]
        same = np.bincount(first[first == second].ravel(), minlength=256)
        shown = np.flatnonzero(sizes[0] + sizes[1])
        shown = shown[shown > 0]  # the background is none
        for label in shown.tolist():
            if sizes[0][label]:
                change = (sizes[1][label] - sizes[0][label]) / sizes[0][label]
                self.volumes.setdefault(label, []).append(float(change))
        if not len(shown):
            return 1.0
        return float(np.mean(2.0 * same[shown] / (sizes[0][shown] + sizes[1][shown])))

    def evidence(self, allowed: float) -> dict[str, Any]:
        """Return the figures with their intervals, and whether they exclude "worse than allowed".

        Args:
            allowed: Share of differing classes, or what the mean Dice may lack of 1.
        """
        found: dict[str, Any] = {
            "before": self.before,
            "after": self.after,
            "task": str(self.task),
            "allowed": allowed,
            "pairs": self.pairs,
            "failed": self.failed,
            "dropped": self.dropped,
            "skipped": self.skipped,
        }
        worst = 1.0
        if self.task is Task.CLASSIFICATION:
            found["different"] = self._different()
            found["classes"] = self._classes()
            worst = found["different"]["interval_95"][1]
        elif self.task.segments:
            found["dice"] = self._mean_dice()
            found["volumes"] = self._volume_changes()
            worst = 1.0 - found["dice"]["interval_95"][0]
        return found | {"worst": worst, "excluded": self.pairs > 0 and worst <= allowed}

    def _different(self) -> dict[str, Any]:
        different = self.failed + sum(n for (a, b), n in self.labels.items() if a != b)
        total = self.labels.total() + self.failed
        low, high = binomial_interval(different, total)
        return {"share": different / total if total else 0.0, "interval_95": [low, high]}

    def _classes(self) -> list[dict[str, Any]]:
        names = sorted({name for pair in self.labels for name in pair})
        rows = []
        for name in names:
            both = self.labels[name, name]
            before = sum(n for (a, b), n in self.labels.items() if a == name != b)
            after = sum(n for (a, b), n in self.labels.items() if b == name != a)
            agreement = both / (both + before + after)
            rows.append(
                {
                    "label": name,
                    "both": both,
                    "only_before": before,
                    "only_after": after,
                    "agreement": agreement,
                    "mcnemar_p": mcnemar(before, after),
                }
            )
        return rows

    def _mean_dice(self) -> dict[str, Any]:
        values = np.array([*self.dice, *[0.0] * self.failed])
        if len(values) < _FEWEST_MASKS:
            mean = float(values.mean()) if len(values) else 0.0
            return {"mean": mean, "interval_95": [0.0, 1.0], "histogram": _histogram(values)}
        low, high = _interval_of_mean(values)
        return {
            "mean": float(values.mean()),
            "interval_95": [low, high],
            "histogram": _histogram(values),
        }

    def _volume_changes(self) -> dict[str, Any]:
        found = {}
        for label, changes in sorted(self.volumes.items()):
            values = np.array(changes)
            few = len(values) < _FEWEST_MASKS
            interval = None if few else list(_interval_of_mean(values))
            found[str(label)] = {"mean": float(values.mean()), "interval_95": interval}
        return found


def binomial_interval(count: int, total: int) -> tuple[float, float]:
    """Return the exact interval of 95 % of a share (Clopper and Pearson, Biometrika 26, 1934)."""
    if not total:
        return 0.0, 1.0
    low = 0.0 if count == 0 else _share_with_tail(count - 1, total, 1 - _OUTSIDE)
    high = 1.0 if count == total else _share_with_tail(count, total, _OUTSIDE)
    return low, high


def mcnemar(only_before: int, only_after: int) -> float:
    """Return the two-sided exact probability of a difference at least this large by chance.

    The marginal test of one class: both versions name it equally often (McNemar, Psychometrika 12,
    1947, in its binomial form).
    """
    total = only_before + only_after
    if not total:
        return 1.0
    return min(1.0, 2.0 * _at_most(min(only_before, only_after), total, 0.5))


def _share_with_tail(count: int, total: int, tail: float) -> float:
    """Return the share p at which at most `count` of `total` have the probability `tail`."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if _at_most(count, total, middle) > tail:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _at_most(count: int, total: int, share: float) -> float:
    """Return the probability of at most `count` successes in `total` trials."""
    if share <= 0 or count >= total:
        return 1.0
    if share >= 1:
        return 0.0
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total + 1)))])
    k = np.arange(count + 1)
    terms = logs[total] - logs[k] - logs[total - k] + k * np.log(share)
    return float(min(1.0, np.exp(terms + (total - k) * np.log1p(-share)).sum()))


def _interval_of_mean(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the interval of 95 % of a mean by resampling, the same each time."""
    generator = np.random.default_rng(0)
    kept = values[-5000:]  # of many, the latest say enough
    means = [float(generator.choice(kept, len(kept)).mean()) for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, [_OUTSIDE, 1 - _OUTSIDE])
    return float(low), float(high)


def _histogram(values: npt.NDArray[np.float64]) -> list[int]:
    """Return how many values lie in each twentieth from 0 to 1."""
    return [int(each) for each in np.histogram(values, bins=20, range=(0.0, 1.0))[0]]


def _labels(answer: bytes) -> list[str | None]:
    """Return the finding of each image of an answer; None for one that was refused."""
    try:
        content = json.loads(answer)
    except ValueError:
        return []
    items = content.get("items", [content])
    return [_finding(each) if each.get("status") == "ok" else None for each in items]


def _finding(item: Mapping[str, Any]) -> str | None:
    """Return the class, or all labels that are present as one text."""
    if "present" in item:
        return as_finding([str(label) for label in item["present"]])
    return str(item["label"]) if "label" in item else None


def _mask(task: Task, answer: bytes) -> npt.NDArray[np.uint8] | None:
    """Return the label ids of an answer; None where it holds them in another form."""
    if not answer.startswith(_GZIP):
        if not answer.startswith(b"{"):
            return None
        kind = FrameResult if task is Task.FRAMES else VolumeResult
        found: FrameResult | VolumeResult = kind.decode(answer)
        answer = found.mask_nifti
    return np.asarray(nifti.decode(answer).array).round().astype(np.uint8)
