"""What a caller may send: paths, bytes, open files, arrays and pictures; one way to the bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from medserve.client import Limits
from medserve.client.inputs import pack, read, read_case
from medserve.errors import InvalidRequestError, PayloadTooLargeError

LIMITS = Limits()


def test_a_path_may_be_text_or_a_path_or_an_open_file(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(b"content")
    with path.open("rb") as file:
        sent = [read(each, LIMITS) for each in (path, str(path), file, io.BytesIO(b"content"))]
    assert sent == [b"content"] * 4


@given(
    arrays.arrays(
        st.sampled_from([np.uint8, np.uint16]),
        arrays.array_shapes(min_dims=2, max_dims=2, max_side=9),
    )
    | arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))
)
def test_pixels_arrive_as_they_are(pixels: np.ndarray[Any, Any]) -> None:
    for turned in (pixels, np.flip(pixels, 1)):
        with Image.open(io.BytesIO(read(turned, LIMITS))) as sent:
            np.testing.assert_array_equal(np.asarray(sent), turned)
        if pixels.dtype == np.uint8:
            assert read(Image.fromarray(np.ascontiguousarray(turned)), LIMITS) == read(
                turned, LIMITS
            )


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4), bool),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((4, 0), np.uint8),
        np.zeros(4, np.uint8),
        np.array(None),
    ],
    ids=lambda each: f"{each.dtype} {each.shape}",
)
def test_pixels_of_an_unknown_range_are_refused(pixels: np.ndarray[Any, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="expected pixels as uint8"):
        read(pixels, LIMITS)


def test_a_picture_that_no_png_can_hold_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="convert it to L or RGB"):
        read(Image.new("CMYK", (2, 2)), LIMITS)


def test_an_array_of_voxels_needs_their_size() -> None:
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    np.testing.assert_array_equal(np.load(io.BytesIO(read_case(voxels, LIMITS)["data"])), voxels)
    with pytest.raises(InvalidRequestError, match="spacing_mm"):
        read_case(voxels, LIMITS, has_spacing=False)
    with pytest.raises(InvalidRequestError, match="array of numbers"):
        read_case(np.array([None]), LIMITS)


@pytest.mark.parametrize("source", [None, 7, ["a.png"], io.StringIO("text")])
def test_what_cannot_be_sent_is_refused(source: Any) -> None:
    with pytest.raises(InvalidRequestError, match="expected"):
        read(source, LIMITS)


def test_an_open_file_over_the_limit_is_not_read_to_its_end() -> None:
    file = io.BytesIO(bytes(1000))
    with pytest.raises(PayloadTooLargeError):
        read(file, Limits(message_bytes=100))
    assert file.tell() == 101


@pytest.mark.parametrize("source", ["hand.png", b"hand", Path("hand.png")], ids=repr)
def test_one_file_in_the_place_of_several_is_refused(source: Any) -> None:
    with pytest.raises(InvalidRequestError, match="put it into a list"):
        list(pack(source, LIMITS, 8))
