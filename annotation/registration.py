"""How a picture was turned, cut and scaled: where in the frame each of its pixels comes from.

Both pictures show the same speckle, and speckle is as good as a fingerprint: band-passed, two
frames of one loop agree as little as two patients, unless the probe stood still. A placement is
therefore accepted by the correlation of the grain, which the form of the fan cannot feign.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from PIL import Image as pillow
from scipy import ndimage

__all__ = ["Matrix", "Registration", "thumbnail"]

Pixels = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.floating]
Matrix = npt.NDArray[np.floating]  # (3, 3), homogeneous x, y from the picture's upper left corner

_GRAIN = (0.8, 3.0)  # pixels: finer is noise and compression, coarser is anatomy
_SURROUNDINGS, _FAINT = (
    4.0,
    1.5,
)  # pixels and grey levels: over what, and from what on, it is levelled
_LIT = 8  # grey level above which a pixel of the frame counts
_LEAST_SEEN = 0.25  # of the frame's lit pixels that a placement must show
_LEVELS = ((64, 1.2, 25), (128, 1.2, 15))  # size, blur, steps of the refinement
_LAST_STEPS = 12


class Registration:
    """A frame and an exported picture that may show it.

    Args:
        frame: uint8 (H, W) of the frame.
        picture: uint8 (h, w) of the export.
        side: Longer side at which grain is compared.
    """

    def __init__(self, frame: Pixels, picture: Pixels, side: int = 192) -> None:
        self._frame, self._picture = frame, picture
        self._side = min(side, max(frame.shape), max(picture.shape))

    def likeness(self, matrix: Matrix) -> float:
        """Correlation of the grain, -1 to 1, where both show it; -1 where too little is shown."""
        _, lit = self._level(self._side)
        warped, seen = self._warped(matrix, self._side)
        common = seen & lit
        if common.sum() < _LEAST_SEEN * max(lit.sum(), 1):
            return -1.0
        return _correlation(self._frame_grain, _band(np.where(seen, warped, 0.0)), common)

    def rough_likeness(self, matrix: Matrix, side: int) -> float:
        """Correlation of all that a small thumbnail shows; finds a direction, proves nothing."""
        frame, _ = self._level(side)
        return _correlation(frame, self.view(matrix, side), np.ones(frame.shape, dtype=bool))

    def view(self, matrix: Matrix, side: int) -> Plane:
        """The export as a small picture of the frame; 0 where it shows nothing."""
        warped, seen = self._warped(matrix, side)
        return np.where(seen, warped, 0.0)

    def coverage(self, matrix: Matrix) -> float:
        """Share of the frame's lit pixels that the exported picture shows."""
        _, lit = self._level(self._side)
        _, seen = self._warped(matrix, self._side)
        return float((seen & lit).sum() / max(lit.sum(), 1))

    def refined(self, matrix: Matrix) -> Matrix:
        """The affine map near `matrix` under which both agree best (Gauss-Newton, coarse to fine).

        Lucas and Kanade, IJCAI 1981, with gain and offset, for exports may change both.
        """
        inverse = np.linalg.inv(matrix)  # from the frame to the export
        for side, blur, steps in (*_LEVELS, (self._side, _GRAIN[0], _LAST_STEPS)):
            if side > self._side:
                continue
            inverse = self._descend(inverse, side, blur, steps)
            if not np.isfinite(inverse).all() or abs(np.linalg.det(inverse)) < 1e-6:
                return matrix
        return np.asarray(np.linalg.inv(inverse))

    def _descend(self, inverse: Matrix, side: int, blur: float, steps: int) -> Matrix:
        frame, lit = self._level(side)
        target = ndimage.gaussian_filter(frame, blur)
        source, factor = _reduced(self._picture, side)
        source = ndimage.gaussian_filter(source, blur)
        slopes = np.gradient(source)
        lit = ndimage.binary_dilation(lit, iterations=2)  # its edge says most about the turn
        x, y = _centres(self._frame.shape, frame.shape)
        middle, scale = np.array([x.mean(), y.mean()]), max(self._frame.shape) / 2
        right, down = (x - middle[0]) / scale, (y - middle[1]) / scale
        for _ in range(steps):
            at, seen = _places(inverse, x, y, factor, source.shape)
            seen &= lit
            if seen.sum() < 50:
                return inverse
            value, along_y, along_x = (
                ndimage.map_coordinates(each, [part[seen] for part in at], order=1, mode="nearest")
                for each in (source, *slopes)
            )
            wanted = target[seen]
            gain = (value * wanted).sum() / max((value * value).sum(), 1e-9)
            basis = (right[seen], down[seen], np.ones_like(value))
            columns = [gain * slope * part * factor for slope in (along_x, along_y)
                       for part in basis]  # fmt: skip
            system = np.stack([*columns, value, np.ones_like(value)], axis=1)
            found = np.linalg.lstsq(system, wanted, rcond=None)[0]
            change = np.zeros((3, 3))
            change[:2] = found[:6].reshape(2, 3)
            to_basis = np.array([[1 / scale, 0, -middle[0] / scale],
                                 [0, 1 / scale, -middle[1] / scale], [0, 0, 1]])  # fmt: skip
            inverse = inverse + change @ to_basis
            if np.abs(found[:6]).max() * factor < 0.01:
                break
        return inverse

    def _warped(self, matrix: Matrix, side: int) -> tuple[Plane, npt.NDArray[np.bool_]]:
        """The export on the frame's grid at `side`, and where it shows anything."""
        frame, _ = self._level(side)
        picture, factor = _reduced(self._picture, side)
        x, y = _centres(self._frame.shape, frame.shape)
        at, seen = _places(np.linalg.inv(matrix), x, y, factor, picture.shape)
        return ndimage.map_coordinates(picture, at, order=1, mode="nearest"), seen

    @functools.cached_property
    def _frame_grain(self) -> Plane:
        return _band(self._level(self._side)[0])

    def _level(self, side: int) -> tuple[Plane, npt.NDArray[np.bool_]]:
        reduced, _ = _reduced(self._frame, side)
        return reduced, ndimage.binary_closing(reduced > _LIT, iterations=2) & (reduced > 0)


def thumbnail(frame: Pixels, side: int) -> Plane:
    """The frame on the grid that `Registration.view` uses."""
    return _reduced(frame, side)[0]


def _reduced(picture: Pixels, side: int) -> tuple[Plane, float]:
    """Scaled so that the longer side is `side` at most, and by which factor."""
    height, width = picture.shape
    factor = min(1.0, side / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = pillow.fromarray(picture).convert("F").resize(size, pillow.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float64), factor


def _centres(whole: tuple[int, ...], grid: tuple[int, ...]) -> tuple[Plane, Plane]:
    """The x and y, in pixels of the whole picture, of the centres of a reduced grid."""
    rows, columns = np.mgrid[: grid[0], : grid[1]].astype(np.float64) + 0.5
    return columns * (whole[1] / grid[1]), rows * (whole[0] / grid[0])


def _places(
    inverse: Matrix, x: Plane, y: Plane, factor: float, shape: tuple[int, ...]
) -> tuple[list[Plane], npt.NDArray[np.bool_]]:
    """Row and column in the reduced export of each place of the frame; which lie inside."""
    column = factor * (inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2])
    row = factor * (inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2])
    inside = (column >= 0) & (column <= shape[1]) & (row >= 0) & (row <= shape[0])
    return [row - 0.5, column - 0.5], inside


def _band(plane: Plane) -> Plane:
    """The grain, equally strong everywhere: neither a bright line nor a letter may outweigh it."""
    fine, coarse = (ndimage.gaussian_filter(plane, sigma) for sigma in _GRAIN)
    grain = fine - coarse
    strength = np.sqrt(ndimage.gaussian_filter(grain**2, _SURROUNDINGS))
    return np.asarray(grain / (strength + _FAINT))


def _correlation(first: Plane, second: Plane, where: npt.NDArray[np.bool_]) -> float:
    a, b = first[where] - first[where].mean(), second[where] - second[where].mean()
    return float((a * b).sum() / max(np.sqrt((a * a).sum() * (b * b).sum()), 1e-9))
