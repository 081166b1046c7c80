"""One case on three slices: what was found drawn over what is true, where they differ most."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from medserve.imaging.intensity import percentile_window
from medserve.imaging.volume import Volume
from medserve.results.files.overlay import COLOURS
from training.volumes.metrics import LabelScore

__all__ = ["Picture", "contours"]

_Mask = npt.NDArray[np.uint8]

# Of a volume in LPS: the axis across, the one to the right, the one up or down; as radiologists
# look at it, with letters for what is left and on top.
_VIEWS = (
    ("axial", 2, (0, 1), "upper", ("R", "A")),
    ("coronal", 1, (0, 2), "lower", ("R", "S")),
    ("sagittal", 0, (1, 2), "lower", ("A", "S")),
)
_ORIENTATION = "LPS"
_FINE = 8  # points of a line along a voxel's side


@dataclass(frozen=True, eq=False)
class Picture:
    """What a picture of a case shows.

    Attributes:
        name: Of the case.
        volume: As in its file.
        mask: What was found, on its grid.
        reference: What is true.
        scores: Of the labels.
    """

    name: str
    volume: Volume = field(repr=False)
    mask: _Mask = field(repr=False)
    reference: _Mask = field(repr=False)
    scores: tuple[LabelScore, ...]


def contours(picture: Picture) -> Figure:
    """Three slices, true to scale: found labels as coloured lines, true ones as white dots."""
    seen, order = picture.volume.reoriented(_ORIENTATION)
    mask, reference = order.apply(picture.mask), order.apply(picture.reference)
    grey = percentile_window(seen.array)
    spacing = seen.geometry.spacing_mm
    extents = [n * mm for n, mm in zip(seen.geometry.shape, spacing, strict=True)]
    widths = [extents[right] for _, _, (right, _), _, _ in _VIEWS]
    figure = Figure(figsize=(9.0, 9.0 * _highest(extents) / sum(widths) + 0.35))
    # Room between the slices is for their letters; scale is the same for all three.
    panels = figure.subplots(1, 3, width_ratios=widths)
    figure.subplots_adjust(left=0.02, right=0.99, bottom=0.01, top=0.92, wspace=0.06)
    for axes, (title, across, (right, vertical), origin, letters) in zip(
        panels, _VIEWS, strict=True
    ):
        index = _most_different(mask, reference, across)
        axes.set_title(f"{title}, slice {index}")
        planes = [np.take(each, index, axis=across) for each in (grey, mask, reference)]
        if right > vertical:
            planes = [plane.T for plane in planes]
        box = (0.0, extents[right], 0.0, extents[vertical])
        axes.imshow(planes[0].T, cmap="gray", vmin=0, vmax=1, origin=origin, extent=_turned(
            box, origin), interpolation="bilinear")  # fmt: skip
        step = (spacing[right], spacing[vertical])
        _outline(axes, planes[1].T, step)
        _outline(axes, planes[2].T, step, is_reference=True)
        _letters(axes, letters)
    return figure


def _highest(extents: list[float]) -> float:
    return max(extents[vertical] for _, _, (_, vertical), _, _ in _VIEWS)


def _turned(
    box: tuple[float, float, float, float], origin: str
) -> tuple[float, float, float, float]:
    left, right, low, high = box
    return (left, right, high, low) if origin == "upper" else box


def _most_different(mask: _Mask, reference: _Mask, across: int) -> int:
    """The slice with the most voxels that disagree; of equal ones that with most labels."""
    others = tuple({0, 1, 2} - {across})
    wrong = (mask != reference).sum(axis=others)
    labelled = (reference > 0).sum(axis=others)
    return int(np.lexsort((labelled, wrong))[-1])


def _outline(
    axes: Axes, plane: _Mask, step: tuple[float, float], *, is_reference: bool = False
) -> None:
    """The line around each label, through the faces between voxels."""
    rows, columns = plane.shape
    # Each voxel many times: the line then follows its faces, not the centres of its neighbours.
    fine = np.kron(plane, np.ones((_FINE, _FINE), dtype=np.uint8))
    x = (np.arange(_FINE * columns) + 0.5) * step[0] / _FINE
    y = (np.arange(_FINE * rows) + 0.5) * step[1] / _FINE
    for label in np.unique(fine[fine > 0]):
        colour = tuple(part / 255 for part in COLOURS[(int(label) - 1) % len(COLOURS)])
        axes.contour(
            x, y, fine == label, levels=[0.5],
            colors=["white" if is_reference else colour],
            linewidths=0.9 if is_reference else 1.5,
            linestyles=[(0, (1, 1.5)) if is_reference else "solid"],
        )  # fmt: skip


def _letters(axes: Axes, letters: tuple[str, str]) -> None:
    axes.set_axis_off()
    outline = [withStroke(linewidth=2, foreground="black")]
    style: dict[str, Any] = {"color": "white", "transform": axes.transAxes, "path_effects": outline}
    axes.text(0.015, 0.5, letters[0], va="center", ha="left", **style)
    axes.text(0.5, 0.985, letters[1], va="top", ha="center", **style)
