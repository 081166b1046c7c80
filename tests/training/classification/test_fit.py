"""The schedule of the training loop."""

from __future__ import annotations

import numpy as np
import pytest

from training.core.fit import one_cycle


def test_the_cycle_starts_low_peaks_once_and_ends_at_zero() -> None:
    shares = np.array([one_cycle(progress) for progress in np.linspace(0.0, 1.0, 101)])
    assert shares[0] == pytest.approx(0.04)
    assert shares.max() == pytest.approx(1.0)
    assert shares.argmax() == 20
    assert shares[-1] == pytest.approx(0.0)
    assert (np.diff(shares[:21]) > 0).all()
    assert (np.diff(shares[20:]) < 0).all()


def test_the_cycle_stays_at_its_end() -> None:
    assert one_cycle(1.3) == pytest.approx(0.0)
