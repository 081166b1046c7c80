"""Measure what the training data of a volume model are like, for `volume.seen` of its description.

    python -m training.volumes.seen --data-dir Task04_Hippocampus --model segmentation_3d

prints the section as YAML. Serving judges with the same functions on the same prepared volumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import models
from medserve.inference.volume_pipeline import VolumePipeline
from medserve.spec.seen import VolumeSeenSpec
from training.core.seen import measure_images, measured_range, print_section
from training.volumes.data import LoadedCase, find_cases, load_cases

__all__ = ["main", "measure_seen"]


def measure_seen(cases: Sequence[LoadedCase], labels: Sequence[str]) -> VolumeSeenSpec:
    """Return the ranges of size, intensities, texture, layout and label volumes over all cases."""
    grids = [each.inverse.grid for each in cases]
    sizes = np.array([np.multiply(grid.shape, grid.spacing_mm) for grid in grids])
    counts = [np.bincount(each.mask.numpy().ravel(), minlength=len(labels)) for each in cases]
    volumes = np.array([n * grid.voxel_volume_ml for n, grid in zip(counts, grids, strict=True)])
    return VolumeSeenSpec(
        size_mm=tuple(measured_range(axis, 1) for axis in sizes.T),
        **measure_images(each.image[0].numpy() for each in cases),
        label_ml={
            label: measured_range(volumes[:, number], 3)
            for number, label in enumerate(labels)
            if number > 0
        },
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-dir", type=Path, required=True, help="volumes and their masks")
    parser.add_argument("--model", default="segmentation_3d", help="whose preparation counts")
    given = parser.parse_args(arguments)
    spec = models.spec(given.model)
    cases = load_cases(find_cases(given.data_dir), VolumePipeline(spec))
    print_section(measure_seen(cases, spec.labels))


if __name__ == "__main__":
    main()
