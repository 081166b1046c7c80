"""Sheets to look at before a training: what each filter and each augmentation does to frames.

    python -m training.trus_prostate sheets --data-dir data/trus --out-dir sheets

`filters.png` shows frames as the network would see them behind each speckle filter, with the
parameters of the model's configuration where it names that filter. `augmentations.png` shows one
frame under each change alone, drawn three times, with the outline of its mask, and under all.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from msgspec import structs

import models
from medserve.errors import ConfigError
from medserve.inference.frame_pipeline import FramePipeline
from medserve.spec import ModelSpec
from medserve.spec.frames import FilterKind, FilterSpec
from training.core.config import Setting
from training.core.files import require_folder
from training.core.report import draw
from training.frames.augment import Augmentation
from training.frames.data import FrameCase, LoadedFrame, find_frames, load_frames

__all__ = ["SheetsConfig", "augmentation_sheet", "filter_sheet", "write_sheets"]

_log = logging.getLogger(__name__)

_DRAWS = 3  # of each augmentation
_CHANGES = tuple(each.name for each in dataclasses.fields(Augmentation))
_CERTAIN = ("flip", "blur", "shadow", "cutmix")  # probabilities: on the sheet they always happen


@dataclass(frozen=True)
class SheetsConfig:
    """Draw sheets of the speckle filters and of the augmentations."""

    data_dir: Annotated[Path, Setting("folder with the folders images and masks")] = Path(
        "data/trus"
    )
    out_dir: Annotated[Path, Setting("receives filters.png and augmentations.png")] = Path("sheets")
    model_config: Annotated[
        Path | None, Setting("model-config.yaml with size, crop and filter, if not the room's")
    ] = None
    frames: Annotated[int, Setting("on the sheet of the filters", minimum=1, maximum=12)] = 3
    seed: Annotated[int, Setting("of the choice of frames and of the changes", minimum=0)] = 0


def write_sheets(config: SheetsConfig) -> None:
    """Write both sheets."""
    path = config.model_config or models.room("trus_prostate") / "model-config.yaml"
    spec = ModelSpec.from_file(path)
    cases = find_frames(require_folder(config.data_dir, "--data-dir"))
    generator = np.random.default_rng(config.seed)
    chosen = generator.permutation(len(cases))[: config.frames]
    config.out_dir.mkdir(parents=True, exist_ok=True)
    picked = [cases[index] for index in sorted(chosen)]
    sheets = {
        "filters.png": draw(lambda: filter_sheet(spec, _filtered(spec, picked))),
    }
    frame = load_frames(picked[:1], FramePipeline(spec))[0]
    sheets["augmentations.png"] = draw(lambda: augmentation_sheet(frame, config.seed))
    for name, png in sheets.items():
        (config.out_dir / name).write_bytes(png)
        _log.info("%s", config.out_dir / name)


def filter_sheet(
    spec: ModelSpec, filtered: Sequence[tuple[FilterSpec, Sequence[LoadedFrame]]]
) -> Figure:
    """Frames from top to bottom, filters from left to right."""
    rows = len(filtered[0][1])
    high, wide = spec.input.size[:2]
    figure = Figure(
        figsize=(2.6 * len(filtered), 0.4 + 2.6 * rows * high / wide), layout="constrained"
    )
    grid = figure.subplots(rows, len(filtered), squeeze=False)
    for column, (chosen, frames) in enumerate(filtered):
        for row, frame in enumerate(frames):
            _show(grid[row][column], frame.plane.astype(np.float32))
        grid[0][column].set_title(_described(chosen), fontsize=7)
    return figure


def augmentation_sheet(frame: LoadedFrame, seed: int = 0) -> Figure:
    """One frame as it is, under each change alone, and under all of them."""
    whole = Augmentation()
    nothing = dataclasses.replace(whole, **dict.fromkeys(_CHANGES, 0.0))
    rows = [("as it is", nothing)]
    for name in _CHANGES:
        strength = 1.0 if name in _CERTAIN else getattr(whole, name)
        rows.append((name.replace("_", " "), dataclasses.replace(nothing, **{name: strength})))
    rows.append(("all together", whole))
    high, wide = frame.plane.shape
    figure = Figure(
        figsize=(2.2 * _DRAWS + 0.6, 2.2 * len(rows) * high / wide), layout="constrained"
    )
    grid = figure.subplots(len(rows), _DRAWS, squeeze=False)
    image = torch.from_numpy(frame.plane.astype(np.float32))[None, None]
    mask = torch.from_numpy(frame.mask)[None, None]
    # Mixing takes from the neighbour in the batch: here the frame's own mirror image.
    image, mask = (torch.cat([each, each.flip(3)]) for each in (image, mask))
    for row, (title, augmentation) in enumerate(rows):
        draws = torch.Generator().manual_seed(seed)
        for column in range(_DRAWS):
            changed, outline = augmentation(image, mask, draws)
            _show(grid[row][column], changed[0, 0].numpy(), outline[0, 0].numpy())
        grid[row][0].set_ylabel(title, fontsize=7, visible=True)
    return figure


def _filtered(
    spec: ModelSpec, cases: Sequence[FrameCase]
) -> list[tuple[FilterSpec, list[LoadedFrame]]]:
    if spec.frame is None:
        raise ConfigError(f"{spec.name}: expected a section 'frame' in its model-config.yaml")
    shown = []
    for kind in FilterKind:
        own = spec.frame.filter
        chosen = own if own.kind is kind else FilterSpec(kind)
        frame = structs.replace(spec.frame, filter=chosen)
        pipeline = FramePipeline(structs.replace(spec, frame=frame))
        shown.append((chosen, load_frames(cases, pipeline)))
    return shown


def _described(spec: FilterSpec) -> str:
    if spec.kind is FilterKind.NONE:
        return "no filter"
    if spec.kind is FilterKind.GAUSSIAN:
        return f"Gaussian, sigma {spec.sigma:g}"
    if spec.kind is FilterKind.SRAD:
        return f"SRAD, {spec.iterations} steps of {spec.step:g}"
    return f"Perona-Malik, {spec.iterations} steps of {spec.step:g}, K {spec.contrast:g}"


def _show(
    axes: Axes, plane: npt.NDArray[np.float32], mask: npt.NDArray[np.uint8] | None = None
) -> None:
    axes.imshow(plane, cmap="gray", vmin=0, vmax=1)
    if mask is not None and mask.any() and not mask.all():
        axes.contour(mask, levels=[0.5], colors="#ffd000", linewidths=0.8)
    axes.set(xticks=[], yticks=[])
