"""What the shipped description calls unlike the hippocampi that the network was trained on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

import models
from medserve.imaging.codecs import nifti
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from medserve.inference.volume_pipeline import VolumePipeline
from medserve.results.seen import doubts_about_image
from medserve.tasks.result import DoubtReason

SPEC = models.spec("segmentation_3d")
EXAMPLE = nifti.decode((models.room(SPEC.name) / "examples/average.nii.gz").read_bytes())


def reasons(array: npt.NDArray[np.generic]) -> set[DoubtReason]:
    """What is told of a volume of 1 mm voxels along RAS."""
    pipeline = VolumePipeline(SPEC)
    assert pipeline.volume.seen is not None
    geometry = Geometry.from_spacing(array.shape, (1.0, 1.0, 1.0))
    image = pipeline.prepare(Volume(array, geometry)).tensor[0]
    return {each.reason for each in doubts_about_image(pipeline.volume.seen, image, array.shape)}


def head(shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    """A computed head: scalp, dark skull, brain, and fluid in its middle."""
    places = np.indices(shape)
    centre = np.reshape(shape, (3, 1, 1, 1)) / 2.0
    radius = np.sqrt((((places - centre) / (0.9 * centre)) ** 2).sum(axis=0))
    shells = np.select([radius < 0.15, radius < 0.85, radius < 0.92, radius <= 1.0],
                       [0.15, 0.6, 0.1, 0.5], 0.0)  # fmt: skip
    noise = np.random.default_rng(0).normal(0.0, 0.02, shape)
    return (shells + noise).astype(np.float32)


def test_a_crop_as_it_was_trained_on_is_not_told_by_its_layout() -> None:
    assert DoubtReason.LAYOUT not in reasons(EXAMPLE.array)


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["left-right", "A-P", "S-I"])
def test_a_crop_that_is_mirrored_along_an_axis_is_told_by_its_layout(axis: int) -> None:
    assert DoubtReason.LAYOUT in reasons(np.flip(EXAMPLE.array, axis).copy())


def test_a_whole_head_is_told_by_its_size_and_its_layout() -> None:
    assert {DoubtReason.SIZE, DoubtReason.LAYOUT} <= reasons(head((80, 100, 84)))


@pytest.mark.parametrize("corner", [(22, 0, 24), (22, 50, 24), (0, 25, 24)])
def test_another_region_of_a_crops_size_is_told(corner: tuple[int, int, int]) -> None:
    i, j, k = corner
    assert reasons(head((80, 100, 84))[i : i + 36, j : j + 50, k : k + 36])
