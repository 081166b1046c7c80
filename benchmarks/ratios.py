"""The arithmetic of a side-by-side measurement: percentiles, spreads, ratios round by round."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Ratio", "Spread", "percentile", "ratio_by_round"]

_RESAMPLES = 1000


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


@dataclass(frozen=True)
class Ratio:
    """How a figure of one way relates to that of another, with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of_pairs(
        cls,
        pairs: Sequence[tuple[Sequence[float], Sequence[float]]],
        figure: Callable[[Sequence[float]], float],
    ) -> Ratio:
        """Divide the figure of all second values by that of all first ones.

        The interval is a bootstrap over pairs: neighbours met the same load on the machine.

        Args:
            pairs: Values of the reference and of the other way, measured in turns; at least one.
            figure: Of values of several pairs together: a sum, a percentile.
        """
        if not pairs:
            raise ValueError("expected at least one pair")

        def ratio(chosen: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float:
            reference, other = ([x for pair in chosen for x in pair[side]] for side in (0, 1))
            return figure(other) / figure(reference)

        draw = random.Random(0)
        resampled = [ratio(draw.choices(pairs, k=len(pairs))) for _ in range(_RESAMPLES)]
        return cls(ratio(pairs), percentile(resampled, 0.025), percentile(resampled, 0.975))

    def format(self, digits: int = 3) -> str:
        """`1.004 (95 % interval 0.998 to 1.010)`."""
        low, high = f"{self.low:.{digits}f}", f"{self.high:.{digits}f}"
        return f"{self.value:.{digits}f} (95 % interval {low} to {high})"


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
