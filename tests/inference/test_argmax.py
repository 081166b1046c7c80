from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.inference.argmax import argmax_channels


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_it_is_numpys_argmax_equal_scores_included(classes: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 4, (classes, 5, 4, 3)).astype(np.float32)
    before = scores.copy()
    np.testing.assert_array_equal(argmax_channels(scores), scores.argmax(axis=0))
    np.testing.assert_array_equal(scores, before)


def test_channels_may_come_from_a_generator() -> None:
    found = argmax_channels(np.full((2, 2), value, np.float32) for value in (1.0, 3.0, 2.0))
    assert (found == 1).all()
    assert found.dtype == np.uint8


def test_no_channels_and_too_many_are_mistakes_of_the_code() -> None:
    with pytest.raises(ValueError, match="at least one"):
        argmax_channels([])
    with pytest.raises(ValueError, match="at most 256"):
        argmax_channels(np.zeros((257, 1), np.float32))
