"""The numbers behind the header of a volume file, read no further than the header says."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.errors import InvalidImageError
from medserve.imaging.intensity import without_background
from medserve.imaging.volume import VolumeLimits, check_shape

__all__ = ["Samples", "check_channels", "finite", "refuse_second", "spatial_shape"]

_BLOCK = 2**16
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS  # told by the data themselves


def spatial_shape(stored: Sequence[int], channel: int | None) -> tuple[tuple[int, int, int], int]:
    """Stored axes -> (I, J, K) and the number of channels.

    Raises:
        InvalidImageError: fewer than two axes, or several channels of which none is chosen.
    """
    listed = " x ".join(str(n) for n in stored)
    if not 2 <= len(stored) <= 7 or min(stored) < 1:
        raise InvalidImageError(f"expected 2 or 3 axes of at least 1 voxel, got {listed or 0}")
    i, j, k = (*stored, 1)[:3]
    channels = math.prod(stored[3:])
    if channels > 1 and channel is None:
        raise InvalidImageError(
            f"expected 3 spatial axes, got {listed}; send one volume, or name one of the "
            f"{channels} channels"
        )
    if channel is not None and not 0 <= channel < channels:
        raise InvalidImageError(
            f"expected a channel from 0 to {channels - 1}, got {channel}; the file is {listed}"
        )
    return (i, j, k), channels


def check_channels(shape: tuple[int, int, int], channels: int, limits: VolumeLimits) -> None:
    """Refuse volumes that are too flat, and files that are too large to hold.

    Raises:
        InvalidImageError: an axis is shorter than `limits.min_side`.
        PayloadTooLargeError: more than `limits.max_voxels` voxels in all channels.
    """
    check_shape(shape, limits)
    if channels * math.prod(shape) > limits.max_voxels:
        check_shape((*shape, channels), limits)


def refuse_second(behind: Iterable[bytes | memoryview], needed: int) -> None:
    """Refuse a file that holds a second image, of which its header does not speak.

    Args:
        behind: What follows the bytes that the header speaks of; no more than needed is looked at.
        needed: Bytes that it speaks of.

    Raises:
        InvalidImageError: as many again, or more, and not only zeros, which fill files up.
    """
    length, is_empty = 0, True
    for block in behind:
        part = block[: needed - length]
        length, is_empty = length + len(part), is_empty and not any(part)
        if length >= needed:
            break
    if 0 < needed <= length and not is_empty:
        raise InvalidImageError(
            f"expected {needed} bytes of voxels, as the header states, got as many again behind "
            "them; correct the header (axes, or type of the voxels), or send one volume"
        )


@dataclass(frozen=True)
class Samples:
    """Numbers as they lie in a file.

    Attributes:
        content: The bytes that hold them.
        dtype: Their type and byte order.
        is_compressed: Whether `content` is zlib or gzip data.
        skip: Bytes before them, of the expanded data where those are compressed.
        footer: Bytes that may follow them.
    """

    content: bytes | memoryview
    dtype: np.dtype[Any]
    is_compressed: bool = False
    skip: int = 0
    footer: int = 0

    def read(self, count: int) -> npt.NDArray[Any]:
        """Return the first `count` numbers in the machine's byte order; no more are expanded.

        Raises:
            InvalidImageError: there are fewer, or twice as many, or compressed data are damaged.
        """
        size = count * self.dtype.itemsize
        needed = self.skip + size
        content = self.content
        if self.is_compressed:
            content = _expanded(self.content, needed, size + self.footer)
        if len(content) < needed:
            raise InvalidImageError(
                f"expected {needed} bytes of voxels, got {len(content)}; the file is cut short"
            )
        refuse_second([memoryview(content)[needed + self.footer :]], size)
        values = np.frombuffer(content, self.dtype, count, self.skip)
        return values.astype(self.dtype.newbyteorder("="), copy=False)


def _expanded(content: bytes | memoryview, count: int, behind: int) -> bytes:
    """The first bytes of zlib or gzip data, whose checksum is compared where it is near.

    Args:
        content: The data.
        count: Bytes without which they are cut short.
        behind: How many more are wanted, where there are as many.
    """
    expander = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        expanded = expander.decompress(content, count + max(behind, _BLOCK))
        expander.decompress(expander.unconsumed_tail, 1)  # up to the checksum
    except zlib.error:
        raise InvalidImageError(
            "expected whole compressed voxels, got damaged ones; send the file again"
        ) from None
    return expanded if expander.eof or len(expanded) >= count + _BLOCK else b""


def finite(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same array with NaN and infinities as background."""
    if array.dtype.kind != "f" or np.isfinite([array.min(), array.max()]).all():
        return array
    return without_background(array.copy(), ~np.isfinite(array))
