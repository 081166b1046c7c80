from __future__ import annotations

import gzip
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings

from medserve.errors import ServerFailedError
from medserve.imaging.codecs import nifti
from medserve.imaging.geometry import Geometry
from medserve.results.segmentation import Segmentation
from medserve.tasks.volumes import VolumeResult
from tests.volume_phantoms import SHAPE, geometries, oblique, ramp

LABELS = ("background", "anterior", "posterior")
_Image: Any = nibabel.Nifti1Image


def _segmentation(geometry: Geometry) -> Segmentation:
    mask = np.zeros(geometry.shape, np.uint8)
    mask[1:, 0, 1:] = 1
    mask[0, 1, 2:] = 2
    return Segmentation(mask, geometry, LABELS)


@settings(deadline=None)
@given(geometries())
def test_json_brings_back_mask_and_grid_to_the_last_bit(geometry: Geometry) -> None:
    segmentation = _segmentation(geometry)
    back = Segmentation.from_result(VolumeResult.decode(segmentation.to_result().encode()))
    assert back.geometry == geometry
    assert back.labels == LABELS
    assert back.measures == segmentation.measures
    np.testing.assert_array_equal(back.mask, segmentation.mask)


def test_volumes_are_named_and_leave_out_the_background() -> None:
    volumes = _segmentation(oblique()).volumes_ml
    assert list(volumes) == ["anterior", "posterior"]
    assert volumes["posterior"] == pytest.approx(7 * oblique().voxel_volume_ml)


def test_the_mask_file_repeats_the_header_of_its_source() -> None:
    source = _Image(ramp(oblique()).array, oblique().affine)
    source.set_sform(source.affine, code=4)
    volume = nifti.decode(source.to_bytes())
    mask = _segmentation(volume.geometry).to_nifti(volume.space)
    answer = _Image.from_bytes(gzip.decompress(mask))
    assert answer.header["sform_code"] == 4
    assert answer.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(answer.affine, _Image.from_bytes(source.to_bytes()).affine)


def test_measurements_can_travel_without_the_mask() -> None:
    content = _segmentation(oblique()).to_result().without_files()
    assert "mask_nifti" not in content
    assert len(content["measures"]) == 2
    with pytest.raises(ServerFailedError, match="with its mask"):
        VolumeResult.from_json(content)


@pytest.mark.parametrize(
    "change",
    [
        {"mask_nifti": "???"},
        {"mask_nifti": "aGVsbG8="},
        {"shape": [1, 2, 3]},
        {"shape": None},
        {"affine": [[0] * 4] * 4},
        {"labels": ["background"]},
    ],
)
def test_an_answer_that_is_no_segmentation_is_the_servers_fault(change: dict[str, Any]) -> None:
    content = _segmentation(oblique()).to_result().to_json() | change
    with pytest.raises(ServerFailedError, match="a segmentation with its mask"):
        Segmentation.from_result(VolumeResult.from_json(content))


@pytest.mark.parametrize(
    "mask",
    [np.zeros((3, 3, 3), np.uint8), np.zeros(SHAPE, np.int64), np.full(SHAPE, 3, np.uint8)],
)
def test_a_mask_off_its_grid_or_labels_is_a_mistake_of_the_code(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"mask|label"):
        Segmentation(mask, oblique(), LABELS)
