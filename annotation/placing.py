"""From an exported picture back to the frame that it shows: resized, padded, flipped, turned.

The ways in which annotation tools fit pictures to one size are tried first, for they bring
outlines back exactly; only where none of them fits is an affine map estimated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annotation.model import Annotation
from annotation.outlines import Mask, fill
from annotation.registration import Matrix, Registration

__all__ = ["LEAST_LIKENESS", "Placement", "brought_back", "fits", "place"]

Pixels = npt.NDArray[np.uint8]

LEAST_LIKENESS = 0.4  # correlation of the grain; that of another frame is about 0
_CERTAIN = 0.95  # above it nothing else is tried
_WORTH_IT = (0.02, 0.75)  # likeness and pixels that an estimated map must gain on an exact one
_ANGLES = np.deg2rad(np.arange(-45.0, 46.0, 7.5))
_SCALES = (0.8, 1.0, 1.25)
_ROUGH_SIDE = 48


@dataclass(frozen=True, eq=False)
class Placement:
    """Where an exported picture lies in a frame.

    Attributes:
        matrix: From its x, y to the frame's.
        likeness: Correlation of the grain; None where the export has no pictures.
        coverage: Share of what the frame shows that the exported picture shows, too.
        exact: Whether it is one of the fits of annotation tools, not an estimate.
    """

    matrix: Matrix
    likeness: float | None
    coverage: float
    exact: bool


def place(
    shape: tuple[int, int], picture: Pixels | None, frame: Pixels, *, turned: bool = True
) -> Placement | None:
    """Find the way back; None where the picture does not show the frame.

    Args:
        shape: (H, W) of the exported picture.
        picture: Its pixels; None where the export has none.
        frame: The frame that it should show.
        turned: Also look for other angles and scales than tools fit pictures by, which takes ten
            times as long.
    """
    if picture is None:
        return _unseen(shape, (frame.shape[0], frame.shape[1]))
    registration = Registration(frame, picture)
    likeness = -1.0
    matrix: Matrix = np.eye(3)
    for each in fits(shape, frame.shape):
        alike = registration.likeness(each)
        if alike > likeness:
            likeness, matrix = alike, each
        if likeness >= _CERTAIN:
            break
    estimates = []
    if LEAST_LIKENESS / 2 <= likeness < _CERTAIN:
        estimates.append(registration.refined(matrix))
    if turned and likeness < LEAST_LIKENESS:
        estimates += [registration.refined(each) for each in _turned(registration, shape, frame)]
    exact = True
    for estimate in estimates:
        gained = registration.likeness(estimate) - likeness
        if gained > _WORTH_IT[0] and _moved(matrix, estimate, shape) > _WORTH_IT[1]:
            likeness, matrix, exact = likeness + gained, estimate, False
    if likeness < LEAST_LIKENESS:
        return None
    return Placement(matrix, likeness, registration.coverage(matrix), exact)


def _unseen(shape: tuple[int, int], frame: tuple[int, int]) -> Placement | None:
    """Without a picture only a plain change of size can be taken back."""
    scale = np.array(frame) / np.array(shape)
    if abs(scale[0] - scale[1]) * max(shape) > 1.0:  # by more than the rounding of a pixel
        return None
    return Placement(np.diag([scale[1], scale[0], 1.0]), None, 1.0, exact=True)


def fits(shape: tuple[int, int], frame: tuple[int, ...]) -> Iterator[Matrix]:
    """Every flip and quarter turn, stretched, padded or cut to the middle."""
    for turn, (height, width) in _turns(shape):
        stretch = (frame[1] / width, frame[0] / height)
        options = {stretch, (max(stretch),) * 2, (min(stretch),) * 2}
        for right, down in sorted(options):
            yield _about_middles(np.diag([right, down, 1.0]), (height, width), frame) @ turn


def _turns(shape: tuple[int, int]) -> Iterator[tuple[Matrix, tuple[int, int]]]:
    """The eight symmetries of a rectangle, and the shape that each gives."""
    height, width = shape
    for swapped in (False, True):
        for right in (False, True):
            for down in (False, True):
                flip = np.array([[-1.0 if right else 1.0, 0.0, width if right else 0.0],
                                 [0.0, -1.0 if down else 1.0, height if down else 0.0],
                                 [0.0, 0.0, 1.0]])  # fmt: skip
                if swapped:
                    yield flip[[1, 0, 2]], (width, height)
                else:
                    yield flip, (height, width)


def _about_middles(matrix: Matrix, shape: tuple[int, int], frame: tuple[int, ...]) -> Matrix:
    """The linear map `matrix`, carrying the middle of one picture to that of the other."""
    before, after = np.eye(3), np.eye(3)
    before[:2, 2] = [-shape[1] / 2, -shape[0] / 2]
    after[:2, 2] = [frame[1] / 2, frame[0] / 2]
    return np.asarray(after @ matrix @ before)


def _turned(registration: Registration, shape: tuple[int, int], frame: Pixels) -> Iterator[Matrix]:
    """For each flip the best of many angles and scales, by a thumbnail."""
    for turn, (height, width) in _turns(shape):
        base = np.sqrt(frame.shape[0] * frame.shape[1] / (height * width))
        stretch = np.array([frame.shape[1] / width, frame.shape[0] / height])
        tried = []
        for angle in _ANGLES:
            turning = np.array([[np.cos(angle), -np.sin(angle), 0.0],
                                [np.sin(angle), np.cos(angle), 0.0], [0.0, 0.0, 1.0]])  # fmt: skip
            for scale in _SCALES:
                for sides in {(base, base), (float(stretch[0]), float(stretch[1]))}:
                    # The tool turns the picture that it has fitted, so take the turn back first.
                    linear = np.diag([scale * sides[0], scale * sides[1], 1.0]) @ turning
                    matrix = _about_middles(linear, (height, width), frame.shape) @ turn
                    tried.append((registration.rough_likeness(matrix, _ROUGH_SIDE), matrix))
        yield max(tried, key=lambda each: each[0])[1]


def _moved(first: Matrix, second: Matrix, shape: tuple[int, int]) -> float:
    """The farthest that a corner lies apart under the two maps, in pixels of the frame."""
    height, width = shape
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]]).T
    return float(np.hypot(*((first - second) @ corners)[:2]).max())


def brought_back(annotation: Annotation, placement: Placement, shape: tuple[int, ...]) -> Mask:
    """The annotation as a mask (H, W) of the frame.

    Polygons are carried over by their points, so nothing is lost to the export's size; masks by
    the nearest pixel.
    """
    rows, columns = shape
    matrix = placement.matrix
    polygons = [points @ matrix[:2, :2].T + matrix[:2, 2] for points in annotation.polygons]
    mask = fill(polygons, (rows, columns))
    if annotation.mask is None:
        return mask
    inverse = np.linalg.inv(matrix)
    y, x = np.mgrid[:rows, :columns] + 0.5
    column = inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]
    row = inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]
    height, width = annotation.shape
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    mask[inside] |= annotation.mask[row[inside].astype(int), column[inside].astype(int)]
    return mask
