"""The report of a judgement: one HTML file with its pictures inside, and the sheets beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medserve.spec import ModelSpec
from training.classification.data import LabelledImages
from training.core.report import data_uri, encode_png, write_page
from training.diffusion.copies import CopyCheck
from training.diffusion.measures import ImageSets, Measured
from training.diffusion.pictures import sheet, write_png

__all__ = ["write"]

_SHOWN = 64  # images of a sheet
_NEAREST = 16  # synthetic images that lie nearest to a training image
_ZOOM = 2  # screen pixels an image pixel

Images = npt.NDArray[np.uint8]


def write(
    out_dir: Path,
    spec: ModelSpec,
    content: Mapping[str, Any],
    image_sets: ImageSets,
    measured: Measured,
) -> Path:
    """Write `report.html`, and each sheet and figure as a PNG."""
    sheets = {
        "synthetic": sheet(image_sets.synthetic.images[:_SHOWN]),
        "real": sheet(_like(image_sets.unseen, image_sets.synthetic)[:_SHOWN]),
        "neighbours": _neighbours(image_sets, measured),
    }
    for name, picture in sheets.items():
        write_png(out_dir / f"{name}.png", picture, _ZOOM)
    return write_page(
        out_dir / "report.html",
        "diffusion_report.html",
        {
            "spec": spec,
            "content": content,
            "sheets": {
                name: data_uri(encode_png(picture, _ZOOM)) for name, picture in sheets.items()
            },
            "nearest": _NEAREST,
        },
        {"distances": lambda: _histograms(measured)},
    )


def _like(real: LabelledImages, synthetic: LabelledImages) -> Images:
    """Real images of the classes of the synthetic ones, one after the other, where there are."""
    waiting = {
        label_id: list(np.flatnonzero(real.label_ids == label_id))
        for label_id in np.unique(real.label_ids)
    }
    wanted = synthetic.label_ids[:_SHOWN]
    chosen = [waiting[each].pop(0) for each in wanted if waiting.get(each)]
    return real.images[np.array(chosen, dtype=np.intp)] if chosen else real.images[:_SHOWN]


def _neighbours(image_sets: ImageSets, measured: Measured) -> Images:
    """Columns of three: a synthetic image, its nearest by grey levels, its nearest by features."""
    order = np.argsort(measured.pixels.synthetic / measured.pixels.threshold)[:_NEAREST]
    columns = [
        image_sets.synthetic.images[order],
        image_sets.training.images[measured.pixels.neighbours[order]],
        image_sets.training.images[measured.features.neighbours[order]],
    ]
    return sheet(np.concatenate(columns), columns=len(order))


def _histograms(measured: Measured) -> Figure:
    figure = Figure(figsize=(9.2, 3.2), layout="constrained")
    for axes, check, unit in zip(
        figure.subplots(1, 2),
        (measured.pixels, measured.features),
        ("RMS difference in grey levels", "distance of features"),
        strict=True,
    ):
        _histogram(axes, check, unit)
    return figure


def _histogram(axes: Axes, check: CopyCheck, unit: str) -> None:
    edges = np.linspace(0, max(check.synthetic.max(), check.unseen.max()), 50)
    for name, values, colour in (
        ("unseen real", check.unseen, "#4878b0"),
        ("synthetic", check.synthetic, "#c4703c"),
    ):
        axes.hist(values, bins=edges.tolist(), density=True, alpha=0.6, label=name, color=colour)
    axes.axvline(check.threshold, color="#b04848", linewidth=1, label="copy below")
    axes.set(xlabel=f"to the nearest training image: {unit}", ylabel="density")
    axes.legend(frameon=False)
