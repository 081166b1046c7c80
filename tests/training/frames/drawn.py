"""Drawn frames on disk: a bright ellipse on noise, and its mask."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from annotation.manifest import write_grey
from medserve.spec import InputKind, InputSpec, ModelSpec, ServingSpec, Task
from medserve.spec.frames import FrameSpec

SHAPE = (48, 72)


def frame_spec(size: tuple[int, int] = (64, 96)) -> ModelSpec:
    """A model of frames that finds one structure."""
    return ModelSpec(
        name="trus_prostate",
        version="1.0",
        title="Ellipses",
        task=Task.FRAMES,
        labels=("background", "prostate"),
        input=InputSpec((InputKind.RASTER,), size),
        serving=ServingSpec(1, 1),
        frame=FrameSpec(),
    )


def ellipse(centre: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    """Boolean (H, W) of `SHAPE`."""
    row, column = np.mgrid[: SHAPE[0], : SHAPE[1]]
    inside = ((row - centre[0]) / radii[0]) ** 2 + ((column - centre[1]) / radii[1]) ** 2 <= 1
    return np.asarray(inside)


def write_frames(folder: Path, patients: int = 6, frames: int = 2, empty: int = 1) -> Path:
    """`images`, `masks` and `patients.csv`; the last `empty` patients have no structure."""
    generator = np.random.default_rng(seed=5)
    rows = []
    for patient in range(patients):
        for number in range(frames):
            name = f"p{patient}_{number}"
            centre = (24 + 3 * generator.normal(), 36 + 6 * generator.normal())
            inside = ellipse(centre, (10 + patient, 14 + number))
            if patient >= patients - empty:
                inside = np.zeros(SHAPE, dtype=bool)
            speckle = generator.gamma(4.0, 0.25, SHAPE)
            image = np.clip(60 + 140 * inside * speckle + 20 * speckle, 0, 255)
            write_grey(folder / "images" / f"{name}.png", image.astype(np.uint8))
            write_grey(folder / "masks" / f"{name}.png", (255 * inside).astype(np.uint8))
            rows.append((f"{name}.png", f"patient {patient}"))
    with (folder / "patients.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("name", "patient"), *rows])
    return folder
