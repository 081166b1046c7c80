"""The whole way of a volume without a network: file -> grid of the network -> mask in the file."""

from __future__ import annotations

import gzip
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from medserve.imaging import nifti
from medserve.imaging.geometry import Geometry
from medserve.imaging.segmentation import Segmentation
from medserve.inference import roi, sliding_window
from medserve.inference.normalise import Normalisation
from medserve.inference.resample import resample, restore_labels
from medserve.inference.sliding_window import SlidingWindow
from tests.volume_phantoms import ball, centre_of_mass_mm, geometries

_Image: Any = nibabel.Nifti1Image
SPACING_MM = (1.0, 1.0, 1.0)


def _half(batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A network that calls bright what is above a half: scores (N, 2, i, j, k)."""
    return np.concatenate([1.0 - batch, batch], axis=1)


def _segment(payload: bytes) -> bytes:
    source = nifti.decode(payload)
    upright, order = source.reoriented("RAS")
    box = roi.threshold_box(upright, margin_mm=4.0)
    part = roi.crop(upright, box)
    small = resample(part, SPACING_MM)
    image = Normalisation()(small.array)[np.newaxis]
    scores = sliding_window.scores(image, _half, SlidingWindow((16, 16, 16)), classes=2)
    mask = box.paste(restore_labels(scores, part.geometry), upright.geometry.shape)
    answer = np.ascontiguousarray(order.undo(mask))
    return Segmentation(answer, source.geometry, ("background", "ball")).to_nifti(source.space)


@settings(max_examples=25, deadline=None)
@given(geometries(18, 26, spacing_mm=(0.7, 1.6)), st.tuples(*[st.floats(0.4, 0.6)] * 3))
def test_a_ball_is_found_where_it_is_on_the_grid_of_its_file(
    geometry: Geometry, place: tuple[float, float, float]
) -> None:
    extent = np.array(geometry.shape) * geometry.spacing_mm
    centre = geometry.to_world((np.array(geometry.shape) - 1) * place)
    phantom = ball(geometry, centre, 0.3 * float(extent.min()))
    source = _Image(phantom.array, geometry.affine)
    answer = _Image.from_bytes(gzip.decompress(_segment(source.to_bytes())))
    before = _Image.from_bytes(source.to_bytes())

    np.testing.assert_array_equal(answer.affine, before.affine)
    assert answer.shape == before.shape
    found = np.asarray(answer.dataobj)
    truth = phantom.array > 0.5
    shift = centre_of_mass_mm(found, geometry) - centre_of_mass_mm(truth, geometry)
    assert np.linalg.norm(shift) < 0.15 * max(geometry.spacing_mm)
    overlap = 2 * np.count_nonzero(truth & (found > 0))
    assert (
        overlap / (np.count_nonzero(truth) + np.count_nonzero(found)) > 0.85
    )  # of balls 4 to 14 voxels wide
