"""Prepared frames by name, and by what they look like where the name is lost."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from annotation.manifest import IMAGES, FrameEntry, read_grey
from annotation.placing import fits
from annotation.registration import Registration, thumbnail
from medserve.errors import ConfigError

__all__ = ["FrameLookup"]

Pixels = npt.NDArray[np.uint8]

_SIDE = 24  # pixels of a thumbnail
_TRIED = 12  # frames that a thumbnail proposes for the comparison of speckle


class FrameLookup:
    """The frames of a folder."""

    def __init__(self, folder: Path, entries: Sequence[FrameEntry]) -> None:
        self._folder = folder
        self._entries = entries
        self._by_name: dict[str, FrameEntry] = {}
        for entry in entries:
            stem = Path(entry.name).stem.lower()
            if stem in self._by_name:
                raise ConfigError(f"expected names that differ, got {entry.name} twice")
            self._by_name[stem] = entry

    def named(self, stem: str) -> FrameEntry | None:
        """The frame of that name, case aside."""
        return self._by_name.get(stem)

    def frame(self, entry: FrameEntry) -> Pixels:
        """Its pixels (H, W)."""
        frame = read_grey(self._folder / IMAGES / entry.name)
        if frame.shape != entry.crop.shape:
            raise ConfigError(
                f"expected {entry.name} with {entry.crop.shape[1]} x {entry.crop.shape[0]} pixels, "
                f"as the manifest says, got {frame.shape[1]} x {frame.shape[0]}; prepare it anew"
            )
        return frame

    def alike(self, picture: Pixels) -> Iterator[FrameEntry]:
        """The frames that a thumbnail of the picture, however flipped or fitted, is most like."""
        scores: list[tuple[float, int]] = []
        for shape, (numbers, thumbnails) in self._thumbnails.items():
            frame = np.zeros(shape, dtype=np.uint8)  # only its shape is needed
            registration = Registration(frame, picture)
            shape_of = (picture.shape[0], picture.shape[1])
            views = [_unit(registration.view(matrix, _SIDE)) for matrix in fits(shape_of, shape)]
            likeness = (thumbnails @ np.stack(views, axis=1)).max(axis=1)
            scores += zip(likeness.tolist(), numbers, strict=True)
        for _, number in sorted(scores, reverse=True)[:_TRIED]:
            yield self._entries[number]

    @functools.cached_property
    def _thumbnails(self) -> dict[tuple[int, int], tuple[list[int], npt.NDArray[np.floating]]]:
        """By shape: which entries, and their thumbnails (N, pixels) of unit length."""
        by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, entry in enumerate(self._entries):
            by_shape[entry.crop.shape].append(number)
        return {
            shape: (
                numbers,
                np.stack([_unit(thumbnail(self.frame(self._entries[n]), _SIDE)) for n in numbers]),
            )
            for shape, numbers in by_shape.items()
        }


def _unit(plane: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    values = plane.ravel() - plane.mean()
    return np.asarray(values / max(float(np.linalg.norm(values)), 1e-9))
