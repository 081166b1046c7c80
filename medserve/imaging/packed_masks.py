"""Masks of many frames, one bit a pixel: a loop of 500 frames of 1024 x 768 takes 50 MB."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Self, overload

import numpy as np
import numpy.typing as npt

__all__ = ["PackedMasks"]

_Mask = npt.NDArray[np.uint8]


class PackedMasks(Sequence[_Mask]):
    """Masks uint8 (H, W) of 0 and 1, in the order of their frames."""

    def __init__(self, size: tuple[int, int], masks: Iterable[npt.NDArray[np.integer]] = ()):
        self.size = size
        self._bits: list[_Mask] = []
        for mask in masks:
            self.append(mask)

    @classmethod
    def of(cls, array: npt.NDArray[np.integer]) -> Self:
        """Of an array (N, H, W)."""
        return cls((array.shape[1], array.shape[2]), array)

    def append(self, mask: npt.NDArray[np.integer]) -> None:
        """Put one more frame's mask behind the others; whatever is not 0 is set."""
        if mask.shape != self.size:
            raise ValueError(f"expected a mask of {self.size}, got {mask.shape}")
        self._bits.append(np.packbits(mask != 0))

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
        return np.unpackbits(bits, count=height * width).reshape(self.size)
