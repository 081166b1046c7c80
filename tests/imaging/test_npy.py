from __future__ import annotations

import contextlib
import io
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.errors import InvalidImageError, MedserveError, PayloadTooLargeError
from medserve.imaging.codecs import npy
from medserve.imaging.volume import VolumeLimits
from tests.volume_phantoms import SHAPE, oblique, ramp

ARRAY = ramp(oblique()).array


@pytest.mark.parametrize("dtype", ["u1", ">i2", "<i4", "f4", ">f8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_of_any_type_byte_order_and_layout_come_back(dtype: str, order: str) -> None:
    array = np.array(ARRAY.astype(dtype), order="F" if order == "F" else "C")
    volume = npy.decode(npy.encode(array))
    np.testing.assert_array_equal(volume.array, array)
    assert volume.array.dtype == np.dtype(dtype).newbyteorder("=")


def test_the_grid_is_of_one_millimetre_unless_told_otherwise() -> None:
    np.testing.assert_array_equal(npy.decode(npy.encode(ARRAY)).geometry.affine, np.eye(4))
    told = npy.decode(npy.encode(ARRAY), spacing_mm=(0.5, 1.0, 2.0))
    assert told.geometry.spacing_mm == (0.5, 1.0, 2.0)


def test_a_plane_becomes_one_slice() -> None:
    assert npy.decode(npy.encode(ARRAY[:, :, 0])).array.shape == (*SHAPE[:2], 1)


def test_pickled_objects_are_never_loaded() -> None:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.array([[[print]]], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidImageError, match="pickled objects"):
        npy.decode(stream.getvalue())
    with pytest.raises(InvalidImageError, match="do not begin as one"):
        npy.decode(pickle.dumps(ARRAY))


@pytest.mark.parametrize(
    "array",
    [ARRAY.astype(np.complex64), np.zeros((3, 3, 3), dtype="U4"), np.zeros((2, 2), "i4,f4")],
)
def test_what_is_no_real_number_is_refused(array: np.ndarray) -> None:
    with pytest.raises(InvalidImageError, match="integers or floats"):
        npy.decode(npy.encode(array))


@pytest.mark.parametrize("shape", [(5,), (), (2, 3, 4, 5), (0, 4, 4)])
def test_another_number_of_axes_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidImageError, match="3 axes"):
        npy.decode(npy.encode(np.zeros(shape)))


def test_a_header_without_its_values_is_refused_before_memory_is_taken() -> None:
    stream = io.BytesIO()
    header = {"shape": (2000, 2000, 2000), "fortran_order": False, "descr": "<f4"}
    np.lib.format.write_array_header_1_0(stream, header)
    with pytest.raises(PayloadTooLargeError, match="2000 x 2000 x 2000"):
        npy.decode(stream.getvalue())
    with pytest.raises(InvalidImageError, match="cut short"):
        npy.decode(stream.getvalue(), VolumeLimits(max_voxels=10**10))


def test_not_a_number_is_refused() -> None:
    with pytest.raises(InvalidImageError, match="NaN"):
        npy.decode(npy.encode(np.full(SHAPE, np.nan)))


@pytest.mark.parametrize("spacing", [(0.0, 1.0, 1.0), (1.0, -1.0, np.nan), (1.0, 1.0)])
def test_an_unusable_spacing_is_refused(spacing: tuple[float, float, float]) -> None:
    with pytest.raises(InvalidImageError):
        npy.decode(npy.encode(ARRAY), spacing_mm=spacing)


@settings(deadline=None)
@given(st.binary(max_size=200), st.lists(st.tuples(st.integers(6, 127), st.integers(0, 255))))
def test_damaged_files_raise_only_our_own_errors(
    tail: bytes, changes: list[tuple[int, int]]
) -> None:
    raw = bytearray(npy.encode(ARRAY))
    for at, value in changes:
        raw[at] = value
    for payload in (bytes(raw), b"\x93NUMPY" + tail, tail):
        with contextlib.suppress(MedserveError):
            npy.decode(payload)
