from __future__ import annotations

import random

import pytest

from benchmarks.ratios import Ratio, Spread, percentile, ratio_by_round

HUNDRED = [float(value) for value in range(100, 0, -1)]  # 1 … 100, unsorted


@pytest.mark.parametrize(
    ("share", "expected"), [(0.01, 1.0), (0.5, 50.0), (0.501, 51.0), (0.99, 99.0), (1.0, 100.0)]
)
def test_percentile_is_the_nearest_rank(share: float, expected: float) -> None:
    assert percentile(HUNDRED, share) == expected


def test_percentile_of_one_value_is_that_value() -> None:
    assert percentile([3.5], 0.99) == 3.5


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01])
def test_percentile_refuses_a_share_outside_its_range(share: float) -> None:
    with pytest.raises(ValueError, match="expected a share"):
        percentile(HUNDRED, share)


def test_percentile_and_spread_refuse_nothing() -> None:
    with pytest.raises(ValueError, match="at least one"):
        percentile([], 0.5)
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


def test_spread_keeps_median_and_both_ends() -> None:
    assert Spread.of([3.0, 1.0, 10.0, 2.0]) == Spread(median=2.5, low=1.0, high=10.0)


def test_spread_reads_median_first() -> None:
    assert Spread(0.714, 0.66, 0.738).format() == "0.71 [0.66 0.74]"


def test_ratios_are_formed_within_a_round() -> None:
    # The machine was half as fast in round 1; the ratio is the same in both.
    assert ratio_by_round({0: 800.0, 1: 400.0}, {0: 1000.0, 1: 500.0}) == {0: 0.8, 1: 0.8}


def test_a_round_without_partner_or_with_nothing_to_divide_by_is_left_out() -> None:
    assert ratio_by_round({0: 1.0, 1: 2.0, 2: 3.0}, {1: 4.0, 2: 0.0}) == {1: 0.5}


def test_the_interval_of_a_ratio_holds_it_though_the_machine_changes_between_pairs() -> None:
    draw, pairs = random.Random(1), []
    for _ in range(60):
        load = draw.uniform(1.0, 3.0)  # of the machine, alike for both of a pair
        pairs.append(([load * draw.gauss(1, 0.02)], [1.01 * load * draw.gauss(1, 0.02)]))
    found = Ratio.of_pairs(pairs, sum)
    assert found.low < 1.01 < found.high
    assert found.high - found.low < 0.02


def test_a_ratio_is_one_of_the_figures_of_all_values() -> None:
    pairs = [([1.0, 1.0, 4.0], [2.0, 2.0]), ([1.0, 3.0], [2.0, 8.0, 8.0])]
    assert Ratio.of_pairs(pairs, max).value == 2.0
    assert Ratio.of_pairs(pairs, lambda values: percentile(values, 0.5)).value == 2.0
    with pytest.raises(ValueError, match="at least one"):
        Ratio.of_pairs([], max)
