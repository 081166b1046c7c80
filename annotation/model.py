"""One annotated picture, and what can be wrong with it, whichever tool it comes from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image as pillow

from annotation.outlines import Mask, Points, fill, outside_by
from medserve.errors import ConfigError

__all__ = [
    "PICTURES",
    "Annotation",
    "Problems",
    "checked_polygon",
    "choose_label",
    "picture_shape",
]

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
_TOLERANCE = 0.005  # of the longer side: tools round coordinates at the border
_LEAST_TOLERANCE = 1.0  # pixel


class Problems:
    """What is wrong with an export, by kind."""

    def __init__(self) -> None:
        self._where: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, where: str) -> None:
        """Note one."""
        self._where[kind].append(where)

    def __len__(self) -> int:
        return sum(len(each) for each in self._where.values())

    def count(self, kind: str) -> int:
        """How many of a kind."""
        return len(self._where.get(kind, ()))

    def __str__(self) -> str:
        """Counts, each with the first place where it occurs."""
        ordered = sorted(self._where.items(), key=lambda each: (-len(each[1]), each[0]))
        return "; ".join(f"{len(where)} x {kind} (first: {where[0]})" for kind, where in ordered)


@dataclass(frozen=True, eq=False)
class Annotation:
    """One picture of an export and what was outlined in it.

    Attributes:
        name: Of the picture in the export.
        original: The name before the export, where the tool states it.
        shape: (H, W) of the picture in the export.
        polygons: Outlines of the chosen label.
        mask: bool (H, W), from what was not exported as polygons; None where all was.
        picture: The exported picture; None where it is not there.
    """

    name: str
    original: str | None
    shape: tuple[int, int]
    polygons: tuple[Points, ...] = ()
    mask: Mask | None = field(default=None, repr=False)
    picture: Path | None = None

    def drawn(self) -> Mask:
        """All of it as a mask on the exported picture."""
        mask = fill(self.polygons, self.shape)
        return mask if self.mask is None else mask | self.mask


def choose_label(labels: Iterable[str], label: str | None) -> str:
    """The label to import; another one must never slip in."""
    known = sorted(set(labels))
    if label is None and len(known) == 1:
        return known[0]
    if label is None or label not in known:
        got = "none" if label is None else repr(label)
        raise ConfigError(f"expected --label to be one of {', '.join(known) or 'none'}, got {got}")
    return label


def checked_polygon(
    points: Points, shape: tuple[int, int], name: str, problems: Problems
) -> Points | None:
    """A usable polygon, cut at the border; None with a note otherwise."""
    if len(points) < 3 or not np.isfinite(points).all():
        problems.add("polygon of fewer than three points", name)
        return None
    if outside_by(points, shape) > max(_LEAST_TOLERANCE, _TOLERANCE * max(shape)):
        problems.add("polygon outside its picture", name)
        return None
    height, width = shape
    return np.clip(points, 0.0, [width, height])


def picture_shape(picture: Path) -> tuple[int, int]:
    """Rows and columns, from the header alone."""
    try:
        with pillow.open(picture) as opened:
            return opened.height, opened.width
    except Exception as error:  # a parser of damaged bytes may raise anything
        raise ConfigError(f"expected a whole picture, got a damaged one: {picture}") from error
