"""Occlusion of networks that are one line of numpy, so the right map is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from medserve.errors import DeadlineError
from medserve.imaging import Image
from medserve.inference.engines import Outputs
from medserve.inference.fit import Box, fitted_box
from medserve.inference.occlusion import ROWS, log_odds, occlude

Rows = npt.NDArray[np.float32]
Odds = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]

SIDE = 28  # four pixels a cell
WHOLE = Box(0, 0, SIDE, SIDE)


def network(odds: Odds) -> Callable[[Rows], Outputs]:
    """Two classes; the log-odds of the second one are a function of the rows (N, C, H, W)."""

    def run(rows: Rows) -> Outputs:
        found = odds(rows.astype(np.float64))
        return {"logits": np.stack([np.zeros_like(found), found], axis=1).astype(np.float32)}

    return run


def cell(rows: npt.NDArray[np.float64], down: int, across: int) -> npt.NDArray[np.float64]:
    """Mean over the middle of one cell: (N,)."""
    top, left = 4 * down + 1, 4 * across + 1
    return rows[:, :, top : top + 2, left : left + 2].mean(axis=(1, 2, 3))


def spots(*cells: tuple[int, int]) -> Rows:
    """Black but for these cells."""
    image = np.zeros((1, SIDE, SIDE), np.float32)
    for down, across in cells:
        image[:, 4 * down : 4 * down + 4, 4 * across : 4 * across + 4] = 1.0
    return image


def at(evidence: npt.NDArray[np.float64], down: int, across: int) -> float:
    return float(evidence[4 * down + 1 : 4 * down + 3, 4 * across + 1 : 4 * across + 3].mean())


def test_the_cell_that_decides_alone_owns_all_the_evidence() -> None:
    found = occlude(spots((1, 5)), WHOLE, network(lambda rows: 5 * cell(rows, 1, 5)))
    assert found.label_id == 1
    peak = np.unravel_index(found.evidence.argmax(), found.evidence.shape)
    assert [int(place) // 4 for place in peak] == [1, 5]
    far = np.ones((SIDE, SIDE), bool)
    far[0:16, 12:28] = False  # cells that fade into the one that counts
    assert np.abs(found.evidence[far]).max() < 0.01 * found.evidence.max()


def test_evidence_is_counted_in_log_odds() -> None:
    row = spots((3, 3))
    found = occlude(row, WHOLE, network(lambda rows: 5 * cell(rows, 3, 3)))
    # Cells fade into each other: along each side the middle of a cell is its own to 7/8, and the
    # neighbour on one side has the rest, a half of which counts in the mean of two pixels.
    share = (7 / 8) ** 2 + 1 / 8 * 1 / 16
    assert at(found.evidence, 3, 3) == pytest.approx(5 * (1 - row.mean()) * share**2, rel=1e-4)


def test_what_speaks_against_the_class_is_below_zero() -> None:
    def odds(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return 9 * cell(rows, 1, 1) - 3 * cell(rows, 5, 5)

    found = occlude(spots((1, 1), (5, 5)), WHOLE, network(odds))
    assert at(found.evidence, 1, 1) > 4
    assert at(found.evidence, 5, 5) < -1.3


def test_redundant_evidence_is_found_that_no_single_square_betrays() -> None:
    def either(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return 6 * np.maximum(cell(rows, 1, 1), cell(rows, 5, 5)) - 1

    row = spots((1, 1), (5, 5))
    hidden = row.copy()
    hidden[:, 4:8, 4:8] = 0
    run = network(either)
    assert log_odds(run(np.stack([row, hidden]))["logits"], 1).tolist() == [5, 5]
    found = occlude(row, WHOLE, run)
    for place in ((1, 1), (5, 5)):
        assert at(found.evidence, *place) > 0.5
    assert abs(at(found.evidence, 1, 5)) < 0.1


def test_two_cells_that_act_together_leave_the_others_alone() -> None:
    found = occlude(
        spots((2, 2), (4, 4)), WHOLE, network(lambda rows: 8 * cell(rows, 2, 2) * cell(rows, 4, 4))
    )
    assert at(found.evidence, 2, 2) == pytest.approx(at(found.evidence, 4, 4), rel=0.1)
    others = [
        at(found.evidence, i, j) for i in range(7) for j in range(7) if abs(i - j) > 2
    ]  # far from both
    assert max(map(abs, others)) < 0.05 * at(found.evidence, 2, 2)


def test_the_check_tells_a_map_that_holds_from_one_that_says_nothing() -> None:
    row = spots((2, 2), (2, 3), (3, 2))
    telling = occlude(row, WHOLE, network(lambda rows: 20 * rows[:, 0].mean((1, 2))))
    assert telling.without_warmest < telling.without_coolest
    whole = log_odds(np.array([[0.0, 20 * row.mean()]]), 1)[0]
    assert telling.without_coolest >= whole
    blind = occlude(row, WHOLE, network(lambda rows: np.ones(len(rows))))
    assert blind.without_warmest == blind.without_coolest == pytest.approx(1.0)
    assert np.abs(blind.evidence).max() < 1e-6


def test_padding_around_an_image_is_never_covered() -> None:
    box = fitted_box(Image(np.zeros((20, 80), np.float32)), (32, 32))
    row = np.zeros((3, 32, 32), np.float32)
    row[:, box.top : box.top + box.height] = np.linspace(0, 1, 32, dtype=np.float32)
    touched = np.zeros((32, 32), bool)

    def run(rows: Rows) -> Outputs:
        touched[:] |= (rows != row).any(axis=(0, 1))
        return {"logits": np.zeros((len(rows), 2), np.float32)}

    found = occlude(row, box, run)
    assert found.evidence.shape == (8, 32)
    assert touched[box.top : box.top + box.height].all()
    assert touched.sum() == box.height * box.width


@pytest.mark.parametrize("shape", [(28, 28), (1, 28), (28, 3), (2, 2), (1, 1)])
def test_cost_is_bounded_whatever_the_image(shape: tuple[int, int]) -> None:
    calls: list[int] = []

    def run(rows: Rows) -> Outputs:
        calls.append(len(rows))
        return {"logits": np.zeros((len(rows), 2), np.float32)}

    found = occlude(np.ones((1, SIDE, SIDE), np.float32), Box(0, 0, *shape), run)
    assert found.evidence.shape == shape
    assert sum(calls) == ROWS == 131
    assert max(calls) == 32


def test_work_ends_between_two_calls_once_nobody_waits() -> None:
    calls: list[int] = []

    def run(rows: Rows) -> Outputs:
        calls.append(len(rows))
        return {"logits": np.zeros((len(rows), 2), np.float32)}

    def between() -> None:
        if len(calls) == 2:
            raise DeadlineError("enough")

    with pytest.raises(DeadlineError):
        occlude(spots((1, 1)), WHOLE, run, between)
    assert len(calls) == 2


def test_the_same_image_gets_the_same_map_and_stays_as_it_is() -> None:
    row = spots((3, 3))
    before = row.copy()
    run = network(lambda rows: 5 * cell(rows, 3, 3))
    first, second = occlude(row, WHOLE, run), occlude(row, WHOLE, run)
    np.testing.assert_array_equal(first.evidence, second.evidence)
    np.testing.assert_array_equal(row, before)


def test_log_odds_hold_where_probabilities_round_to_one() -> None:
    probabilities = np.array([0.7, 0.2, 0.1])
    assert log_odds(np.log(probabilities)[None], 0)[0] == pytest.approx(np.log(0.7 / 0.3))
    assert log_odds(np.array([[800.0, 0.0, -5.0]]), 0)[0] == pytest.approx(
        800 - np.log1p(np.exp(-5.0))
    )
