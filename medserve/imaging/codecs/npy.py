"""NPY <-> Volume: numbers alone, never pickled objects.

The format has no geometry. A volume read from it gets axes along the world's (i to the Right,
j Anterior, k Superior), its first voxel at the origin and a spacing of 1 mm unless the caller
knows better; volumes in millilitres are only as true as that spacing.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.errors import InvalidImageError, MedserveError
from medserve.imaging.codecs.payload import Payload, quietly
from medserve.imaging.codecs.samples import refuse_second
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume, VolumeLimits, check_shape

__all__ = ["decode", "encode", "recognises"]

_MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 4096  # of a plain array: about 100


def recognises(payload: Payload) -> bool:
    """Whether the bytes begin as NPY does; nothing else is checked."""
    return bytes(payload[: len(_MAGIC)]) == _MAGIC


def decode(
    payload: Payload,
    limits: VolumeLimits | None = None,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Volume:
    """One array (I, J, K), or (I, J) as (I, J, 1), on a grid of the given spacing.

    Raises:
        InvalidImageError: no NPY, damaged, cut short, another number of axes, objects or records
            instead of numbers, values that are not finite.
        PayloadTooLargeError: above `limits`; known from the header.
    """
    if not recognises(payload):
        raise InvalidImageError("expected an NPY array, got bytes that do not begin as one")
    try:
        with quietly():
            shape, is_fortran, dtype, start = _header(payload)
    except Exception:  # numpy parses the header as Python text
        raise InvalidImageError(
            "expected a whole NPY array, got one whose header is damaged; save it again"
        ) from None
    if dtype.kind not in "biuf":
        raise InvalidImageError(
            f"expected an array of integers or floats, got {dtype.kind!r}; pickled objects, "
            "records, text and complex numbers are not read"
        )
    if not 2 <= len(shape) <= 3 or min(shape) < 1:
        raise InvalidImageError(f"expected 3 axes, got shape {shape}; send one volume")
    i, j, k = (*shape, 1)[:3]
    check_shape((i, j, k), limits or VolumeLimits())
    needed = math.prod(shape) * dtype.itemsize
    if len(payload) - start < needed:
        raise InvalidImageError(
            f"expected {needed} bytes of values, got {len(payload) - start}; the file is cut short"
        )
    refuse_second([memoryview(payload)[start + needed :]], needed)
    values = np.frombuffer(payload, dtype=dtype, count=math.prod(shape), offset=start)
    array: npt.NDArray[Any] = values.reshape((i, j, k), order="F" if is_fortran else "C")
    try:
        geometry = Geometry.from_spacing((i, j, k), spacing_mm)
        return Volume(array.astype(dtype.newbyteorder("="), copy=False), geometry)
    except MedserveError:
        raise
    except (TypeError, ValueError):
        raise InvalidImageError(f"expected a spacing of 3 numbers, got {spacing_mm!r}") from None


def encode(array: npt.NDArray[Any]) -> bytes:
    """The array as NPY; its geometry, if it has one, is lost."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=False)
    return stream.getvalue()


def _header(payload: Payload) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    stream = io.BytesIO(bytes(payload[: _MAX_HEADER_BYTES + 16]))
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, is_fortran, dtype = readers[version](stream, max_header_size=_MAX_HEADER_BYTES)
    return tuple(int(n) for n in shape), bool(is_fortran), np.dtype(dtype), stream.tell()
