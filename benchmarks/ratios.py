"""The arithmetic of a side-by-side measurement: percentiles, spreads, ratios round by round."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Spread", "percentile", "ratio_by_round"]


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest value of some rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Spread of at least one value."""
        if not values:
            raise ValueError("expected at least one value")
        return cls(statistics.median(values), min(values), max(values))

    def format(self, digits: int = 2) -> str:
        """`0.71 [0.66 0.74]`."""
        return f"{self.median:.{digits}f} [{self.low:.{digits}f} {self.high:.{digits}f}]"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 < share <= 1) of all values do not exceed.

    The nearest-rank definition: always a value that was measured, never one in between.
    """
    if not values:
        raise ValueError("expected at least one value")
    if not 0 < share <= 1:
        raise ValueError(f"expected a share in (0, 1], got {share}")
    ordered = sorted(values)
    rank = -int(-share * len(ordered) // 1)  # ceiling
    return ordered[min(rank, len(ordered)) - 1]


def ratio_by_round(values: Mapping[int, float], reference: Mapping[int, float]) -> dict[int, float]:
    """Round -> value / reference, for the rounds that have both.

    Two medians divided would compare rounds that met different load on the machine; neighbours in
    one round met the same.
    """
    return {
        index: values[index] / reference[index] for index in sorted(values) if reference.get(index)
    }
