"""Masks of many frames, packed: what goes in comes out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medserve.imaging.packed_masks import PackedMasks


@given(st.data(), st.integers(2, 255), st.integers(1, 9), st.integers(1, 9))
def test_label_ids_come_out_as_they_went_in(
    data: st.DataObject, labels: int, height: int, width: int
) -> None:
    ids = data.draw(arrays(np.uint8, (3, height, width), elements=st.integers(0, labels - 1)))
    masks = PackedMasks((height, width), ids, labels)
    np.testing.assert_array_equal(masks.array, ids)
    np.testing.assert_array_equal(np.stack(masks[1:]), ids[1:])


def test_an_id_without_a_label_is_refused() -> None:
    with pytest.raises(ValueError, match="ids below 3"):
        PackedMasks((2, 2), [np.full((2, 2), 3)], labels=3)


def test_one_structure_takes_a_bit_a_pixel() -> None:
    masks = PackedMasks((8, 16), [np.full((8, 16), 7)])
    assert masks.array.max() == 1
    assert sum(each.nbytes for each in masks._bits) == 16
