"""Masks of many frames in as few bits a pixel as their label ids take.

With one structure a loop of 500 frames of 1024 x 768 takes 50 MB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Self, overload

import numpy as np
import numpy.typing as npt

__all__ = ["PackedMasks"]

_Mask = npt.NDArray[np.uint8]


class PackedMasks(Sequence[_Mask]):
    """Label ids uint8 (H, W), in the order of their frames; of one structure 0 and 1."""

    def __init__(
        self,
        size: tuple[int, int],
        masks: Iterable[npt.NDArray[np.integer]] = (),
        labels: int = 2,
    ):
        self.size = size
        self.labels = labels
        self._bits: list[_Mask] = []
        for mask in masks:
            self.append(mask)

    @classmethod
    def of(cls, array: npt.NDArray[np.integer]) -> Self:
        """Of an array (N, H, W)."""
        return cls((array.shape[1], array.shape[2]), array)

    def append(self, mask: npt.NDArray[np.integer]) -> None:
        """Put one more frame's mask behind the others.

        Of one structure whatever is not 0 is set.

        Raises:
            ValueError: another size, or an id that is no label's.
        """
        if mask.shape != self.size:
            raise ValueError(f"expected a mask of {self.size}, got {mask.shape}")
        if self.labels == 2:
            self._bits.append(np.packbits(mask != 0))
            return
        if not 0 <= mask.min() <= mask.max() < self.labels:
            raise ValueError(f"expected ids below {self.labels}, got up to {mask.max()}")
        ids = mask.astype(np.uint8)
        planes = [ids >> place & 1 for place in range(self._planes)]
        self._bits.append(np.concatenate([np.packbits(plane) for plane in planes]))

    def __len__(self) -> int:
        return len(self._bits)

    @overload
    def __getitem__(self, index: int) -> _Mask: ...
    @overload
    def __getitem__(self, index: slice) -> list[_Mask]: ...
    def __getitem__(self, index: int | slice) -> _Mask | list[_Mask]:
        """The mask of one frame, or of several; copies."""
        if isinstance(index, slice):
            return [self._unpacked(bits) for bits in self._bits[index]]
        return self._unpacked(self._bits[index])

    def __iter__(self) -> Iterator[_Mask]:
        return (self._unpacked(bits) for bits in self._bits)

    @property
    def array(self) -> _Mask:
        """All of them (N, H, W)."""
        stacked = np.empty((len(self), *self.size), dtype=np.uint8)
        for index, mask in enumerate(self):
            stacked[index] = mask
        return stacked

    def _unpacked(self, bits: _Mask) -> _Mask:
        height, width = self.size
        planes = bits.reshape(self._planes, -1)
        mask = np.unpackbits(planes[0], count=height * width)
        for place, plane in enumerate(planes[1:], start=1):
            mask |= np.unpackbits(plane, count=height * width) << place
        return mask.reshape(self.size)

    @property
    def _planes(self) -> int:
        """Bits of a pixel."""
        return (self.labels - 1).bit_length()
