"""Tables in DICOM headers: modality, values of interest, palettes (PS3.3 C.11.1, C.11.2, C.7.9).

A table is described by three numbers: its entries (0 stands for 65536), the first input that it
maps, and the bits of an entry. Inputs below the first take its entry, those beyond the last take
the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medserve.imaging.intensity import full_range

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["LookupTable", "has_palette", "lookup_table", "palette"]

_COLOURS = ("Red", "Green", "Blue")


@dataclass(frozen=True, eq=False)
class LookupTable:
    """One table.

    Attributes:
        first: Input of the first entry.
        bits: Of an entry.
        entries: int32.
    """

    first: int
    bits: int
    entries: npt.NDArray[np.int32] = field(repr=False)

    def __call__(self, values: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """The entries of inputs of any shape."""
        places = values.astype(np.int64) - self.first
        return self.entries[np.clip(places, 0, len(self.entries) - 1)]

    def shown(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The entries as intensities in [0, 1]."""
        return full_range(self(values), 2**self.bits - 1)


def lookup_table(item: Dataset, *, signed: bool, big_endian: bool) -> LookupTable:
    """The table in an item of ModalityLUTSequence or VOILUTSequence.

    Args:
        item: Holds LUTDescriptor and LUTData.
        signed: Whether its inputs can be negative: the descriptor's VR often claims otherwise.
        big_endian: Byte order of the file.

    Raises:
        ValueError: a table that is shorter than it states.
    """
    count, first, bits = _described(item.LUTDescriptor, signed=signed)
    words = _words(item.LUTData, big_endian=big_endian)
    return LookupTable(first, bits, _entries(words, count, bits))


def has_palette(dataset: Dataset) -> bool:
    """Whether the header holds the tables of a palette."""
    return "RedPaletteColorLookupTableDescriptor" in dataset


def palette(
    indices: npt.NDArray[Any], dataset: Dataset, *, signed: bool, big_endian: bool
) -> npt.NDArray[np.float32]:
    """RGB (H, W, 3) in [0, 1] of palette indices (H, W).

    Raises:
        ValueError: tables that are missing or shorter than they state.
    """
    planes = []
    for colour in _COLOURS:
        name = f"{colour}PaletteColorLookupTable"
        count, first, bits = _described(dataset[f"{name}Descriptor"].value, signed=signed)
        if f"{name}Data" in dataset:
            words = _words(dataset[f"{name}Data"].value, big_endian=big_endian)
            entries = _entries(words, count, bits)
        else:
            words = _words(dataset[f"Segmented{name}Data"].value, big_endian=big_endian)
            stored = words.view(np.uint8) if bits <= 8 else words
            entries = np.array(list(_expanded(stored.tolist(), bits)), np.int32)[:count]
            if len(entries) < count:
                raise ValueError("a segmented table is shorter than it states")
        planes.append(LookupTable(first, bits, entries).shown(indices))
    return np.stack(planes, axis=-1)


def _described(descriptor: Any, *, signed: bool) -> tuple[int, int, int]:
    count, first, bits = (int(value) for value in descriptor)
    first &= 0xFFFF
    if signed and first >= 0x8000:
        first -= 0x10000
    if not 1 <= bits <= 16:
        raise ValueError("a table of entries that have no or too many bits")
    return (count & 0xFFFF) or 0x10000, first, bits


def _words(data: Any, *, big_endian: bool) -> npt.NDArray[np.uint16]:
    """Table data of VR OW or US as little-endian words."""
    if isinstance(data, bytes | bytearray):
        even = bytes(data) + b"\0" * (len(data) % 2)
        return np.frombuffer(even, ">u2" if big_endian else "<u2").astype("<u2")
    return np.atleast_1d(np.asarray(data, np.int64)).astype("<u2")


def _entries(words: npt.NDArray[np.uint16], count: int, bits: int) -> npt.NDArray[np.int32]:
    if bits <= 8 and len(words) < count:  # two entries a word, the lower byte first
        words = words.view(np.uint8).astype(np.uint16)
    entries = words[:count].astype(np.int32)
    if len(entries) < count:
        raise ValueError("a table is shorter than it states")
    # Entries of 8 bits in words of 16 are stored in the lower or in both bytes.
    return entries >> 8 if bits <= 8 and int(entries.max()) > 0xFF else entries


def _expanded(stored: list[int], bits: int) -> Iterator[int]:
    """The entries of a segmented table (PS3.3 C.7.9.2): discrete, linear and repeated parts."""
    last = 0
    for kind, values in _segments(stored, bits):
        if kind == 1:
            count, end = values
            yield from (last + round((end - last) * step / count) for step in range(1, count + 1))
            last = end
        elif values:
            yield from values
            last = values[-1]


def _segments(stored: list[int], bits: int) -> Iterator[tuple[int, list[int]]]:
    """Kind and values of each discrete (0) and linear (1) segment, indirect ones followed."""
    wide = 4 if bits <= 8 else 2  # an offset has 32 bits
    ordinary: dict[int, tuple[int, list[int]]] = {}
    at = 0
    while at + 1 < len(stored):
        kind, count, start = stored[at], stored[at + 1], at
        at += 2
        if kind == 2:
            offset = sum(word << (n * 32 // wide) for n, word in enumerate(stored[at : at + wide]))
            at += wide
            places = sorted(place for place in ordinary if place >= offset)[:count]
            yield from (ordinary[place] for place in places)
            continue
        length = count if kind == 0 else 1
        if kind > 1 or at + length > len(stored) or (kind == 1 and count == 0):
            return  # the rest is padding
        values = stored[at : at + length] if kind == 0 else [count, stored[at]]
        at += length
        ordinary[start] = (kind, values)
        yield ordinary[start]
