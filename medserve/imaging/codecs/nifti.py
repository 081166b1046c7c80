"""NIfTI-1 and NIfTI-2 (.nii, .nii.gz) <-> Volume, by content; the file's name plays no part.

Where the voxels lie is told in `medserve.imaging.codecs.nifti_space`. A mask that is encoded with
the space of its source repeats sform and qform, their codes, pixdim and units bit by bit.

What the numbers mean: stored * scl_slope + scl_inter, unless scl_slope is 0 or not finite
(nifti1.h, "DATA SCALING"). NaN and infinite voxels are background: they take the smallest finite
value. Two axes become (I, J, 1), and of a loop (I, J, 1, T), where `loop` allows it, (I, J, T).
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from medserve.errors import InvalidImageError, MedserveError, PayloadTooLargeError
from medserve.imaging.codecs.nifti_space import NiftiSpace
from medserve.imaging.codecs.payload import Payload, quietly
from medserve.imaging.codecs.samples import check_channels, finite, refuse_second, spatial_shape
from medserve.imaging.codecs.unpack import is_gzip, peek
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume, VolumeLimits

__all__ = [
    "NiftiSpace",
    "NiftiVolume",
    "decode",
    "encode",
    "encode_maps",
    "encode_planes",
    "recognises",
]

_HEADERS: dict[int, Any] = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
_SINGLE_FILE_MAGIC = {348: (b"n+1\0",), 540: (b"n+2\0\r\n\x1a\n", b"n+2\0")}
_MAGIC_AT = {348: 344, 540: 4}
_REAL_TYPES = (2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280)  # nifti1.h, DT_UINT8 .. DT_UINT64
_MAX_EXTENSION_BYTES = 64 * 2**20
_MAX_DEFLATE_RATIO = 1032  # of DEFLATE (RFC 1951): 258 bytes from two bits
_GZIP_LEVEL = 1  # 65 times faster than Python's default of 9, masks stay below 0.1 MB
_BLOCK = 2**20


@dataclass(frozen=True, eq=False)
class NiftiVolume(Volume):
    """A volume that remembers the header that placed it, for the mask that answers it."""

    space: NiftiSpace


def recognises(payload: Payload) -> bool:
    """Whether the bytes begin as NIfTI does, in gzip or not; nothing else is checked."""
    return _header_size(peek(payload)) is not None


def decode(
    payload: Payload,
    limits: VolumeLimits | None = None,
    channel: int | None = None,
    *,
    loop: bool = False,
) -> NiftiVolume:
    """One volume, on its own grid, in its own unit.

    Args:
        payload: The file's bytes.
        limits: What is refused for its size.
        channel: Which of several volumes along a fourth axis; without it such files are refused.
        loop: Whether a fourth axis beside a third of 1 counts planes, as in a cine loop.

    Raises:
        InvalidImageError: no NIfTI, damaged, cut short, colour or complex, more than three axes
            without a chosen channel, an affine or values that cannot be used.
        PayloadTooLargeError: above `limits`; known from the header, before memory is taken.
    """
    try:
        with quietly():
            return _decode(payload, limits or VolumeLimits(), channel, loop=loop)
    except MedserveError:
        raise
    except MemoryError:
        raise PayloadTooLargeError(
            "expected a volume that fits into memory, got a larger one; crop or resample it"
        ) from None
    except Exception as error:  # a parser of hostile bytes may raise anything
        raise InvalidImageError(
            "expected a whole NIfTI file, got one that is damaged or cut short; export it again"
        ) from error


def encode(volume: Volume, space: NiftiSpace | None = None, *, compress: bool = True) -> bytes:
    """A .nii.gz (or .nii): the same volume always gives the same bytes.

    Args:
        volume: Integers or floats on any grid.
        space: Header fields of the source, to be repeated as they are. Without it, sform and
            qform are written from the geometry with code 1 (scanner).
        compress: gzip at level 1, with time stamp 0.

    Raises:
        ValueError: `space` describes another grid than the volume's.
    """
    if space is None and isinstance(volume, NiftiVolume):
        space = volume.space
    array = volume.array
    if array.dtype.kind == "b" or array.dtype.itemsize < 1:
        array = array.astype(np.uint8)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    header = _new_header(volume.geometry, space)
    header.set_data_dtype(array.dtype)
    values = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(order="F")
    raw = _finished(header) + values
    return gzip.compress(raw, _GZIP_LEVEL, mtime=0) if compress else raw


def encode_maps(maps: npt.NDArray[np.float32], names: Sequence[str], like: Volume) -> bytes:
    """Several float maps (C, I, J, K) on one grid -> a four-dimensional .nii.gz (I, J, K, C).

    Args:
        maps: What to write; one map at a time is copied.
        names: Of the maps, in their order; written into the header's `descrip` as far as it holds
            them (79 letters).
        like: A volume on the same grid; the header of its file, where it has one, is repeated.
    """
    header = _new_header(like.geometry, like.space if isinstance(like, NiftiVolume) else None)
    header.set_data_shape((*like.geometry.shape, len(maps)))
    header.set_data_dtype(np.float32)
    header["descrip"] = ",".join(names).encode("ascii", "replace")[:79]
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=_GZIP_LEVEL, mtime=0) as packed:
        packed.write(_finished(header))
        for each in maps:
            packed.write(each.astype("<f4", copy=False).tobytes(order="F"))
    return stream.getvalue()


def encode_planes(
    planes: Iterable[npt.NDArray[np.uint8]], geometry: Geometry, space: NiftiSpace
) -> bytes:
    """Planes uint8 (J, I) in the order of axis k -> a .nii.gz (I, J, K), one plane at a time.

    Raises:
        ValueError: `space` describes another grid, or there are more or fewer planes than K.
    """
    header = _new_header(geometry, space)
    header.set_data_dtype(np.uint8)
    columns, rows, count = geometry.shape
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=_GZIP_LEVEL, mtime=0) as packed:
        packed.write(_finished(header))
        for plane in planes:
            if plane.shape != (rows, columns):
                raise ValueError(f"expected planes of {(rows, columns)}, got {plane.shape}")
            packed.write(plane.tobytes())  # i runs fastest, as the columns of a plane do
            count -= 1
    if count != 0:
        raise ValueError(f"expected {geometry.shape[2]} planes, got {geometry.shape[2] - count}")
    return stream.getvalue()


def _new_header(geometry: Geometry, space: NiftiSpace | None) -> Any:
    """A header that places the grid, as `space` did where it is given."""
    needs_two = max(geometry.shape) > np.iinfo(np.int16).max
    header: Any = _HEADERS[540 if needs_two or (space and space.version == 2) else 348]()
    if space is None:
        header.set_data_shape(geometry.shape)
        header.set_xyzt_units("mm")
        header.set_sform(geometry.affine, code=1)
        header.set_qform(geometry.affine, code=1)  # strips shears, which Method 2 lacks
    else:
        space.write(header, geometry)
    return header


def _finished(header: Any) -> bytes:
    """The header's bytes, up to where voxels begin."""
    offset = header.single_vox_offset
    header["vox_offset"], header["magic"] = offset, header.single_magic
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    written: bytes = header.as_byteswapped("<").binaryblock.ljust(offset, b"\0")
    return written


def _decode(
    payload: Payload, limits: VolumeLimits, channel: int | None, *, loop: bool
) -> NiftiVolume:
    if not payload:
        raise InvalidImageError("expected a NIfTI file, got no bytes; check that the file is whole")
    size = _header_size(peek(payload))
    if size is None:
        raise InvalidImageError("expected a NIfTI file, got bytes that are not a NIfTI header")
    with _open(payload) as stream:
        header: Any = _HEADERS[size](stream.read(size), check=False)
        _refuse_pair(header, size)
        stored = _stored_shape(header)
        shape, channels = _loop_shape(stored) if loop else spatial_shape(stored, channel)
        check_channels(shape, channels, limits)
        dtype = _dtype(header)
        count = channels * math.prod(shape)
        offset = _data_offset(header)
        _refuse_impossible_size(payload, offset + count * dtype.itemsize)
        # The grid is checked before the voxels are read: a bad header costs nothing.
        space = NiftiSpace.from_header(header, stored if channels == 1 else stored[:3])
        geometry = space.geometry(shape)
        _skip(stream, offset - size)
        values = _read(stream, count * dtype.itemsize).view(dtype)
        refuse_second(_tail(stream), values.nbytes)
    stack = values.reshape((*shape, channels), order="F")
    array = _rescale(stack[..., 0 if channel is None else channel], header)
    return NiftiVolume(finite(array), geometry, space)


def _header_size(start: bytes) -> int | None:
    """348 or 540 where a NIfTI header of either byte order begins, None elsewhere."""
    for size, at in _MAGIC_AT.items():
        written = {size.to_bytes(4, "little"), size.to_bytes(4, "big")}
        if start[:4] in written and start[at : at + 2] in (b"n+", b"ni"):
            return size
    return None


def _refuse_pair(header: Any, size: int) -> None:
    if bytes(header["magic"]).rstrip(b"\0") not in {
        magic.rstrip(b"\0") for magic in _SINGLE_FILE_MAGIC[size]
    }:
        raise InvalidImageError(
            "expected one file with header and voxels (.nii), got the header of a .hdr/.img pair; "
            "convert it to .nii.gz"
        )


def _stored_shape(header: Any) -> tuple[int, ...]:
    """Lengths of the stored axes; behind the third, 0 counts as 1, as in nifti1_io.c."""
    stored = tuple(int(n) for n in header.get_data_shape())
    return (*stored[:3], *(n or 1 for n in stored[3:]))


def _loop_shape(stored: tuple[int, ...]) -> tuple[tuple[int, int, int], int]:
    """Columns, rows and frames of a stack of planes (I, J, K) or a loop (I, J, 1, T)."""
    if len(stored) == 4 and stored[2] == 1 and min(stored) > 0:
        return (stored[0], stored[1], stored[3]), 1
    if len(stored) > 3 and math.prod(stored[3:]) > 1 and min(stored) > 0:
        listed = " x ".join(str(n) for n in stored)
        raise InvalidImageError(
            f"expected planes along 3 spatial axes, or a loop of one plane over time, got "
            f"{listed}; send one of the {math.prod(stored[3:])} volumes in it alone"
        )
    return spatial_shape(stored, None)


def _dtype(header: Any) -> np.dtype[Any]:
    code = int(header["datatype"])
    if code not in _REAL_TYPES:
        raise InvalidImageError(
            "expected voxels that are integers or 32- or 64-bit floats, got NIfTI datatype "
            f"{code} (colour, complex or unknown); convert the volume to grey"
        )
    dtype: np.dtype[Any] = header.get_data_dtype()
    return dtype


def _data_offset(header: Any) -> int:
    stated = float(header["vox_offset"])
    if stated == 0:
        return int(header.single_vox_offset)
    if not header.single_vox_offset <= stated <= _MAX_EXTENSION_BYTES:
        raise InvalidImageError(
            f"expected voxels to begin at byte {header.single_vox_offset} or soon after, "
            f"got {stated:g}; the header is damaged"
        )
    return int(stated)


def _refuse_impossible_size(payload: Payload, needed: int) -> None:
    ratio = _MAX_DEFLATE_RATIO if is_gzip(payload) else 1
    if len(payload) * ratio < needed:
        raise InvalidImageError(
            f"expected {needed} bytes by the header, got a file of {len(payload)} bytes that "
            "cannot hold them; it is cut short or its header is wrong"
        )


def _open(payload: Payload) -> gzip.GzipFile | io.BytesIO:
    plain = io.BytesIO(payload)
    return gzip.GzipFile(fileobj=plain) if is_gzip(payload) else plain


def _skip(stream: gzip.GzipFile | io.BytesIO, count: int) -> None:
    while count > 0 and (block := stream.read(min(count, _BLOCK))):
        count -= len(block)


def _read(stream: gzip.GzipFile | io.BytesIO, count: int) -> npt.NDArray[np.uint8]:
    """Exactly `count` bytes; memory is touched only as far as data really come."""
    buffer = np.empty(count, dtype=np.uint8)
    view, filled = buffer.data, 0
    try:
        while filled < count and (block := stream.read(min(count - filled, _BLOCK))):
            view[filled : filled + len(block)] = block
            filled += len(block)
    except (EOFError, OSError, zlib.error):
        raise InvalidImageError(
            f"expected {count} bytes of voxels, got compressed data that are damaged or cut short "
            f"after {filled}; send the whole file"
        ) from None
    if filled < count:
        raise InvalidImageError(
            f"expected {count} bytes of voxels, got {filled}; the file is cut short"
        )
    return buffer


def _tail(stream: gzip.GzipFile | io.BytesIO) -> Iterator[bytes]:
    """Yield what follows the voxels; of gzip that ends with its CRC.

    Raises:
        InvalidImageError: gzip data that are damaged.
    """
    try:
        while block := stream.read(_BLOCK):
            yield block
    except (EOFError, OSError, zlib.error) as error:
        if str(error).startswith("Not a gzipped file"):
            return  # something follows whole data whose checksum was right; gzip warns
        raise InvalidImageError(
            "expected gzip data that match their checksum, got damaged ones; send the file again"
        ) from None


def _rescale(stored: npt.NDArray[Any], header: Any) -> npt.NDArray[Any]:
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    native: npt.NDArray[Any] = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if slope == 0 or not math.isfinite(slope) or (slope, inter) == (1.0, 0.0):
        return native
    if not math.isfinite(inter):
        raise InvalidImageError(f"expected a finite scl_inter, got {inter}; correct the header")
    is_short = native.dtype.itemsize <= 2 or native.dtype == np.float32
    exact = np.dtype(np.float32 if is_short else np.float64)
    return np.asarray(native.astype(exact) * exact.type(slope) + exact.type(inter))
