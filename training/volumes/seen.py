"""Measure what the training data of a volume model are like, for `volume.seen` of its description.

    python -m training.volumes.seen --data-dir Task04_Hippocampus --model segmentation_3d

prints the section as YAML. Serving judges with the same functions on the same prepared volumes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import yaml

import models
from medserve.inference.volume_pipeline import VolumePipeline
from medserve.results.seen import image_quantiles, image_texture
from medserve.spec.seen import Range, SeenSpec
from training.volumes.data import LoadedCase, find_cases, load_cases

__all__ = ["main", "measure_seen"]

_QUANTILES = 19  # at 0.05, 0.10 … 0.95
_FLAGGED = 0.01  # of the training volumes lie farther from the mean histogram than the limit


def measure_seen(cases: Sequence[LoadedCase], labels: Sequence[str]) -> SeenSpec:
    """Return the ranges of size, intensities, texture and label volumes over all cases."""
    quantiles = np.array([image_quantiles(each.image[0].numpy(), _QUANTILES) for each in cases])
    mean = quantiles.mean(axis=0).round(3)
    distances = np.abs(quantiles - mean).mean(axis=1)
    grids = [each.inverse.grid for each in cases]
    sizes = np.array([np.multiply(grid.shape, grid.spacing_mm) for grid in grids])
    counts = [np.bincount(each.mask.numpy().ravel(), minlength=len(labels)) for each in cases]
    volumes = np.array([n * grid.voxel_volume_ml for n, grid in zip(counts, grids, strict=True)])
    return SeenSpec(
        size_mm=tuple(_range(axis, 1) for axis in sizes.T),
        quantiles=tuple(mean.tolist()),
        quantile_distance=round(float(np.quantile(distances, 1 - _FLAGGED)), 3),
        texture=_range(np.array([image_texture(each.image[0].numpy()) for each in cases]), 3),
        label_ml={
            label: _range(volumes[:, number], 3)
            for number, label in enumerate(labels)
            if number > 0
        },
    )


def _range(values: np.ndarray, digits: int) -> Range:
    return round(float(values.min()), digits), round(float(values.max()), digits)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path, required=True, help="volumes and their masks")
    parser.add_argument("--model", default="segmentation_3d", help="whose preparation counts")
    given = parser.parse_args(arguments)
    spec = models.spec(given.model)
    cases = load_cases(find_cases(given.data_dir), VolumePipeline(spec))
    seen = measure_seen(cases, spec.labels)
    plain = msgspec.json.decode(msgspec.json.encode({"seen": seen}))  # tuples become lists
    yaml.safe_dump(plain, sys.stdout, sort_keys=False, default_flow_style=None, width=96)


if __name__ == "__main__":
    main()
