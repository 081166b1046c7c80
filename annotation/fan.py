"""Where on a machine's screen the ultrasound is: the fan, found from the picture alone.

What is written around it names the patient, so everything outside the fan is made black. A cine
loop gives the fan away by what changes from frame to frame; a single frame by its grain: strokes
of letters are thin, and a median removes them. The sector of a convex probe is then fitted, so
that shadows do not bite into the fan and letters that touch it do not belong to it. Other forms
(linear probes, cropped pictures) keep their outline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import numpy.typing as npt
from scipy import ndimage, optimize
from skimage.morphology import convex_hull_image

from medserve.errors import InvalidImageError
from medserve.inference.frame_pipeline import FrameBox

__all__ = ["FoundFan", "Sector", "find_fan", "moves"]

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_SIDE = 384  # longer side at which pieces are looked for; strokes of letters are 1-2 pixels there
_FIT_SIDES = (64, 160)  # and at which the sector is fitted, coarse then fine
_MEDIAN = 5  # pixels
_DARK, _STILL = 4, 6  # grey levels that compression leaves on black, and on what stands still
_LEAST_SHARE = 0.03  # of the frame; a fan is larger
_LEAST_PIECE = 0.1  # of the largest piece; a shadow may split the fan
_SECTOR_AGREES = 0.85  # intersection over union; below it the probe is not a convex one
_LEAST_HALF_ANGLE = 0.2  # radians; a narrower sector is a linear probe's rectangle
_STROKE_GREY, _STROKE_STEP = 100, 20  # grey levels of a stroke, and above what is beside it
_STROKE_RUN, _STROKE_NEAR, _STROKE_LEAST = 5, 6, 24  # pixels: a run, a gap, a group
_WRITING, _CHROMA = 180, 40  # grey level of writing, difference of channels that is colour


@dataclass(frozen=True)
class Sector:
    """A ring's part, symmetric to the vertical.

    Attributes:
        row: Of the centre of both arcs, in pixels; mostly outside the picture.
        column: Of that centre.
        inner: Radius of the arc at the probe.
        outer: Radius of the arc that is deepest.
        half_angle: Between the middle and a side, radians.
        upwards: Whether the fan opens towards the first row, the probe below.
    """

    row: float
    column: float
    inner: float
    outer: float
    half_angle: float
    upwards: bool

    def distance(self, height: int, width: int) -> npt.NDArray[np.float64]:
        """How far each pixel (H, W) lies inside, in pixels; negative outside."""
        rows, columns = np.mgrid[:height, :width].astype(np.float64)
        ahead = (self.row - rows) if self.upwards else (rows - self.row)
        aside = columns - self.column
        radius = np.hypot(ahead, aside)
        angle = np.abs(np.arctan2(aside, ahead))
        sides = (self.half_angle - angle) * radius
        return np.minimum(np.minimum(radius - self.inner, self.outer - radius), sides)

    def scaled(self, factor: float) -> Sector:
        """The same on a picture `factor` times as large; pixel centres are at half numbers."""
        return Sector(
            (self.row + 0.5) * factor - 0.5, (self.column + 0.5) * factor - 0.5,
            self.inner * factor, self.outer * factor, self.half_angle, self.upwards,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class FoundFan:
    """The fan of a picture.

    Attributes:
        mask: bool (H, W), True inside.
        box: The smallest rectangle around it.
        sector: Its form; None where it is no sector.
    """

    mask: Mask
    box: FrameBox
    sector: Sector | None

    def overlay_pixels(
        self, brightest: Pixels, varying: Pixels | None, chroma: Pixels | None = None
    ) -> int:
        """Return how many pixels inside look like writing.

        Writing is coloured, or bright while the tissue moves; where nothing moves, strokes of one
        grey with straight edges, which letters below about 16 pixels have not.
        """
        if moves(varying):
            written = (varying <= _STILL) & (brightest >= _WRITING)
        else:
            written = _strokes(brightest, self.mask)
        if chroma is not None:
            written |= chroma > _CHROMA
        return int((written & self.mask).sum())


def moves(varying: Pixels | None) -> TypeGuard[Pixels]:
    """Tell whether so much changes from frame to frame that what stands still stands out."""
    return varying is not None and bool((varying > _STILL).mean() >= _LEAST_SHARE)


def _strokes(frame: Pixels, inside: Mask) -> Mask:
    """Edges of strokes: runs of one grey beside a drop, near enough others of their kind.

    Speckle has no such runs: 80 frames of the simulator have groups of at most 11 pixels, letters
    of 16 pixels and 200 grey levels on the same tissue of 35 and more.
    """
    found = np.zeros_like(inside)
    for turned in (False, True):
        grey, within = (each.T if turned else each for each in (frame.astype(np.int16), inside))
        for side in (1, -1):
            beside = np.roll(grey, side, axis=1)
            beside[:, 0 if side == 1 else -1] = grey.max()  # what rolled in is no neighbour
            edge = (grey >= _STROKE_GREY) & (grey - beside >= _STROKE_STEP) & within
            alike = edge[1:] & edge[:-1] & (grey[1:] == grey[:-1])
            line = np.ones((_STROKE_RUN - 1, 1), dtype=bool)
            runs = ndimage.binary_opening(alike, structure=line)
            on = np.zeros_like(edge)
            on[1:] |= runs
            on[:-1] |= runs
            found |= on.T if turned else on
    groups, count = ndimage.label(ndimage.binary_dilation(found, iterations=_STROKE_NEAR))
    sizes = ndimage.sum(found, groups, np.arange(count + 1))
    return found & (np.asarray(sizes) >= _STROKE_LEAST)[groups]


def find_fan(brightest: Pixels, varying: Pixels | None = None) -> FoundFan:
    """The fan of one frame, or of a loop.

    Args:
        brightest: The frame (H, W), or the maximum over the frames of a loop.
        varying: Maximum less minimum over the frames of a loop.

    Raises:
        InvalidImageError: nothing in it is large enough.
    """
    height, width = brightest.shape
    factor = max(1, round(max(height, width) / _SIDE))
    inside = _inside(brightest, varying, factor)
    pieces = _pieces(inside)
    sector = _fit(pieces)
    if sector is not None:
        sector = sector.scaled(factor)
        mask = sector.distance(height, width) >= 0
    else:
        outline = convex_hull_image(pieces)  # type: ignore[no-untyped-call]
        mask = np.kron(outline, np.ones((factor, factor), dtype=bool))
        mask = np.pad(mask, ((0, factor), (0, factor)), mode="edge")[:height, :width]
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = FrameBox(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
    return FoundFan(mask, box, sector)


def _inside(brightest: Pixels, varying: Pixels | None, factor: int) -> Mask:
    """Reduced (H // factor, W // factor): what is neither dark nor a thin stroke."""
    if varying is not None:
        moving = _median(varying, factor) > _STILL
        if moving.mean() >= _LEAST_SHARE:  # else a frozen loop
            return moving
    return _median(brightest, factor) > _DARK


def _median(picture: Pixels, factor: int) -> Pixels:
    """Reduced, each pixel the median of its surroundings."""
    height, width = (side // factor for side in picture.shape)
    blocks = picture[: height * factor, : width * factor]
    blocks = blocks.reshape(height, factor, width, factor).swapaxes(1, 2)
    reduced = np.median(blocks.reshape(height, width, -1), axis=2).astype(np.uint8)
    return np.asarray(ndimage.median_filter(reduced, size=_MEDIAN))


def _pieces(inside: Mask) -> Mask:
    """The largest piece and those not much smaller, holes filled."""
    numbered, count = ndimage.label(inside, structure=np.ones((3, 3)))
    sizes = np.bincount(numbered.ravel(), minlength=count + 1)
    sizes[0] = 0
    if sizes.max() < _LEAST_SHARE * inside.size:
        raise InvalidImageError(
            "expected an ultrasound picture, got one without a lit region of "
            f"{100 * _LEAST_SHARE:.0f} % of the frame; leave out black and empty frames"
        )
    kept = sizes >= _LEAST_PIECE * sizes.max()
    return np.asarray(ndimage.binary_fill_holes(kept[numbered]))


def _fit(pieces: Mask) -> Sector | None:
    """The sector that covers the pieces best; None where none does."""
    best: tuple[float, Sector] | None = None
    for side in _FIT_SIDES:
        factor = max(1, round(max(pieces.shape) / side))
        height, width = (length // factor for length in pieces.shape)
        blocks = pieces[: height * factor, : width * factor].astype(np.float64)
        share = blocks.reshape(height, factor, width, factor).mean(axis=(1, 3))
        starts = _starts(share > 0.5) if best is None else [best[1].scaled(1 / factor)]
        fitted = [_refine(share, start) for start in starts]
        cost, sector = min(fitted, key=lambda each: each[0])
        best = cost, sector.scaled(factor)
    assert best is not None  # `_FIT_SIDES` is not empty
    found = best[1].distance(*pieces.shape) >= 0
    agreement = (found & pieces).sum() / max((found | pieces).sum(), 1)
    is_convex = agreement >= _SECTOR_AGREES and best[1].half_angle >= _LEAST_HALF_ANGLE
    return best[1] if is_convex else None


def _starts(pieces: Mask) -> list[Sector]:
    """Guesses from the extent of the pieces: both directions, two opening angles."""
    rows, columns = np.flatnonzero(pieces.any(axis=1)), np.flatnonzero(pieces.any(axis=0))
    top, bottom = float(rows[0]), float(rows[-1])
    half_width = max(float(columns[-1] - columns[0]) / 2, 2.0)
    middle = (float(columns[0]) + float(columns[-1])) / 2
    axis = np.flatnonzero(pieces[:, round(middle)])
    starts = []
    for upwards in (True, False):
        for half_angle in (0.75, 1.2):
            outer = half_width / np.sin(half_angle)
            row = top + outer if upwards else bottom - outer
            near = axis[-1 if upwards else 0] if axis.size else row
            inner = max((row - near) if upwards else (near - row), 0.05 * outer)
            starts.append(Sector(row, middle, float(inner), outer, half_angle, upwards))
    return starts


def _refine(share: npt.NDArray[np.float64], start: Sector) -> tuple[float, Sector]:
    """Move the sector until it overlaps the pieces most; the cost is 1 - their soft overlap."""
    height, width = share.shape
    total = share.sum()

    def sector(values: npt.NDArray[np.float64]) -> Sector:
        row, column, inner, outer, half_angle = values.tolist()
        return Sector(row, column, abs(inner), outer, min(half_angle, 3.1), start.upwards)

    def cost(values: npt.NDArray[np.float64]) -> float:
        # One pixel of transition, so that the cost changes smoothly.
        covered = np.clip(sector(values).distance(height, width) + 0.5, 0.0, 1.0)
        common = float((covered * share).sum())
        return 1 - common / (float(covered.sum()) + total - common)

    first = [start.row, start.column, start.inner, start.outer, start.half_angle]
    steps = np.diag([0.06 * height, 0.04 * width, 0.06 * height, 0.06 * height, 0.12])
    simplex = np.vstack([first, first + steps])
    found = optimize.minimize(
        cost, first, method="Nelder-Mead",
        options={"initial_simplex": simplex, "maxiter": 350, "xatol": 0.02, "fatol": 1e-5},
    )  # fmt: skip
    return float(found.fun), sector(found.x)
