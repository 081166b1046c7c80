"""The whole way of a volume without a trained network: bright is the structure."""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Mapping
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from medserve.errors import ConfigError, DeadlineError, InvalidImageError, PayloadTooLargeError
from medserve.imaging.codecs import nifti
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from medserve.inference.sliding_window import until
from medserve.inference.volume_pipeline import Prepared, VolumePipeline, VolumeSettings
from medserve.spec import ModelSpec
from tests.volume_phantoms import ball, centre_of_mass_mm, geometries, oblique

_Image: Any = nibabel.Nifti1Image
BOTH = VolumeSettings(probabilities=True, entropy=True)


def pipeline(**volume: object) -> VolumePipeline:
    """A model of one structure in windows of 16 voxels of 1 mm."""
    own: Mapping[str, object] = {
        "name": "balls",
        "version": "1.0",
        "title": "Balls",
        "task": "volumes",
        "labels": ["background", "ball"],
        "input": {"kinds": ["nifti"], "size": [16, 16, 16]},
        "volume": {"spacing_mm": [1.0, 1.0, 1.0], **volume},
    }
    return VolumePipeline(
        ModelSpec.from_mapping({"minWorkers": 1, "maxWorkers": 1, "medserve": own})
    )


def half(windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A network that calls bright what is above a half: logits (N, 2, i, j, k)."""
    return np.concatenate([0.5 - windows, windows - 0.5], axis=1) * np.float32(8)


def lopsided(windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A network that sees nothing in the lower half of a window along its first axis."""
    logits = half(windows)
    logits[:, 1, : windows.shape[2] // 2] = -9.0
    return logits


def phantom(geometry: Geometry | None = None, radius: float = 0.3) -> Volume:
    """A ball in the middle of a grid."""
    geometry = geometry or oblique((30, 26, 14), (0.8, 1.1, 2.3))
    extent = np.array(geometry.shape) * geometry.spacing_mm
    return ball(geometry, geometry.centre_mm, radius * float(extent.min()))


@settings(max_examples=25, deadline=None)
@given(geometries(18, 26, spacing_mm=(0.7, 1.6)), st.tuples(*[st.floats(0.4, 0.6)] * 3))
def test_a_ball_is_found_where_it_is_on_the_grid_of_its_file(
    geometry: Geometry, place: tuple[float, float, float]
) -> None:
    extent = np.array(geometry.shape) * geometry.spacing_mm
    centre = geometry.to_world((np.array(geometry.shape) - 1) * place)
    truth = ball(geometry, centre, 0.3 * float(extent.min()))
    before = _Image.from_bytes(_Image(truth.array, geometry.affine).to_bytes())
    source = nifti.decode(before.to_bytes())
    own = pipeline(roi={"kind": "otsu", "margin_mm": 4.0})

    answer = own.segment(own.prepare(source), half).segmentation
    after = _Image.from_bytes(gzip.decompress(answer.to_nifti(source.space)))

    np.testing.assert_array_equal(after.affine, before.affine)
    assert after.shape == before.shape
    found, inside = np.asarray(after.dataobj), truth.array > 0.5
    shift = centre_of_mass_mm(found, geometry) - centre_of_mass_mm(inside, geometry)
    assert np.linalg.norm(shift) < 0.15 * max(geometry.spacing_mm)
    overlap = 2 * np.count_nonzero(inside & (found > 0))
    assert overlap / (np.count_nonzero(inside) + np.count_nonzero(found)) > 0.85  # 4 to 14 voxels


def test_the_network_sees_its_own_orientation_spacing_and_intensities() -> None:
    volume = phantom()
    prepared = pipeline().prepare(volume)
    grid = prepared.inverse.grid
    assert grid.codes == "RAS"
    np.testing.assert_allclose(grid.spacing_mm, 1.0, atol=0.03)
    assert prepared.tensor.dtype == np.float32
    assert prepared.tensor.shape == (1, *grid.shape)
    assert (prepared.tensor.min(), prepared.tensor.max()) == (0.0, 1.0)
    centre = centre_of_mass_mm(prepared.tensor[0], grid)
    np.testing.assert_allclose(centre, centre_of_mass_mm(volume.array, volume.geometry), atol=0.1)


def test_a_reference_mask_comes_onto_the_network_s_grid_and_back() -> None:
    volume = phantom()
    own = pipeline()
    prepared = own.prepare(volume)
    reference = (volume.array > 0.5).astype(np.uint8)
    small = own.prepare_labels(reference, prepared.inverse)
    assert small.shape == prepared.tensor.shape[1:]
    np.testing.assert_allclose(
        centre_of_mass_mm(small, prepared.inverse.grid),
        centre_of_mass_mm(reference, volume.geometry),
        atol=0.2,
    )
    overlap = 2 * np.count_nonzero((small > 0) & (prepared.tensor[0] > 0.5))
    assert overlap / (np.count_nonzero(small) + np.count_nonzero(prepared.tensor[0] > 0.5)) > 0.97


def test_without_a_change_of_spacing_the_mask_is_the_network_s_own() -> None:
    geometry = oblique((20, 18, 22), (1.0, 1.0, 1.0))
    volume = phantom(geometry)
    own = pipeline()
    prepared = own.prepare(volume)
    found = own.segment(prepared, half).segmentation.mask
    np.testing.assert_array_equal(prepared.inverse.apply(found), prepared.tensor[0] > 0.5)


def test_probabilities_and_entropy_lie_on_the_grid_of_the_source() -> None:
    volume = phantom()
    own = pipeline()
    result = own.segment(own.prepare(volume), half, BOTH)
    assert result.probabilities is not None
    assert result.entropy is not None
    assert result.probabilities.shape == (2, *volume.geometry.shape)
    assert result.entropy.shape == volume.geometry.shape
    np.testing.assert_allclose(result.probabilities.sum(axis=0), 1.0, atol=1e-5)
    np.testing.assert_array_equal(result.probabilities.argmax(axis=0), result.segmentation.mask)
    p = np.float64(result.probabilities).clip(1e-30)
    expected = -(p * np.log2(p)).sum(axis=0)  # of two labels: bits
    assert result.entropy.max() > 0.9  # at the edge of the ball
    np.testing.assert_allclose(result.entropy, expected, atol=1e-5)


def test_the_mask_does_not_depend_on_what_else_is_asked_for() -> None:
    volume = phantom()
    own = pipeline(roi={"kind": "otsu"})
    prepared = own.prepare(volume)
    np.testing.assert_array_equal(
        own.segment(prepared, half).segmentation.mask,
        own.segment(prepared, half, BOTH).segmentation.mask,
    )


def test_outside_the_region_of_interest_all_is_certain_background() -> None:
    volume = phantom(radius=0.15)
    own = pipeline(roi={"kind": "threshold", "threshold": 0.5, "margin_mm": 3.0})
    prepared = own.prepare(volume)
    result = own.segment(prepared, half, BOTH)
    inside = np.zeros(volume.geometry.shape, dtype=bool)
    prepared.inverse.apply(inside)[:] = True
    assert 0 < np.count_nonzero(inside) < 0.7 * inside.size
    assert result.probabilities is not None
    assert result.entropy is not None
    assert (result.probabilities[0][~inside] == 1.0).all()
    assert (result.entropy[~inside] == 0.0).all()
    assert not result.segmentation.mask[~inside].any()


def test_mirrored_windows_are_averaged() -> None:
    geometry = oblique((16, 16, 16), (1.0, 1.0, 1.0))  # one window
    own = pipeline(flip_axes=[0])
    prepared = own.prepare(phantom(geometry))
    once = own.scores(prepared, lopsided, VolumeSettings())
    both = own.scores(prepared, lopsided, VolumeSettings(flips=True))
    mirrored = Prepared(np.ascontiguousarray(prepared.tensor[:, ::-1]), prepared.inverse)
    other = own.scores(mirrored, lopsided, VolumeSettings())[:, ::-1]
    np.testing.assert_allclose(both, (once + other) / 2, atol=1e-5)
    assert not np.allclose(both, once)


def test_the_model_s_own_choices_hold_unless_a_call_makes_others() -> None:
    own = pipeline(flips=True, largest_component=True, fill_holes=True)
    chosen = VolumeSettings(flips=True, largest_component=True, fill_holes=True, quality=True)
    assert own.defaults() == chosen


def test_only_the_largest_piece_stays_and_its_holes_are_filled_on_request() -> None:
    geometry = oblique((32, 16, 16), (1.0, 1.0, 1.0))
    array = np.zeros(geometry.shape, dtype=np.float32)
    array[4:12, 4:12, 4:12] = 1.0
    array[7:9, 7:9, 7:9] = 0.0
    array[26:28, 4:6, 4:6] = 1.0
    own = pipeline()
    prepared = own.prepare(Volume(array, geometry))

    def found(largest: bool, holes: bool) -> int:
        options = VolumeSettings(largest_component=largest, fill_holes=holes)
        return int(np.count_nonzero(own.segment(prepared, half, options).segmentation.mask))

    assert found(False, False) == 8**3 - 8 + 8
    assert found(True, False) == 8**3 - 8
    assert found(False, True) == 8**3 + 8
    assert found(True, True) == 8**3


def test_the_largest_piece_is_that_of_the_groups_of_labels_that_the_model_names() -> None:
    geometry = oblique((32, 16, 16), (1.0, 1.0, 1.0))
    array = np.zeros(geometry.shape, dtype=np.float32)
    array[4:12, 4:12, 4:12] = 1.0
    array[26:28, 4:6, 4:6] = 1.0
    own = pipeline(largest_of=[[pipeline().spec.labels[1]]])
    options = VolumeSettings(largest_component=True)
    found = own.segment(own.prepare(Volume(array, geometry)), half, options).segmentation.mask
    assert np.count_nonzero(found) == 8**3
    with pytest.raises(ConfigError, match="'spleen' is no label"):
        pipeline(largest_of=[["spleen"]])


def test_a_volume_of_one_value_has_no_structure() -> None:
    volume = Volume(np.full((20, 20, 20), 7, dtype=np.int16), oblique((20, 20, 20)))
    own = pipeline(roi={"kind": "otsu"})
    assert not own.segment(own.prepare(volume), half).segmentation.mask.any()


def test_work_that_nobody_waits_for_ends_between_windows() -> None:
    own = pipeline()
    prepared = own.prepare(phantom())
    calls = []

    def slow(windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        calls.append(len(windows))
        return half(windows)

    late = until(1.0, clock=lambda: 2.0 * len(calls))  # time is up after the first batch
    with pytest.raises(DeadlineError, match="windows done"):
        own.segment(prepared, slow, VolumeSettings(between=late))
    assert len(calls) == 1


def test_a_volume_that_would_not_fit_is_refused_before_any_work() -> None:
    volume = phantom(oblique((64, 64, 64), (1.0, 1.0, 1.0)))
    small = pipeline(max_memory_bytes=9 * 2**19, network_bytes=0)
    with pytest.raises(PayloadTooLargeError, match="would fit") as refusal:
        small.prepare(volume)
    fitting = refusal.value.message.split("; ")[1].split(" voxels")[0]
    sides = [int(side) for side in fitting.split(" x ")]
    assert 8 < min(sides) < 64
    small.prepare(phantom(oblique(sides, (1.0, 1.0, 1.0))))


def test_scores_are_counted_where_they_are_asked_for() -> None:
    volume = phantom(oblique((64, 64, 64), (1.0, 1.0, 1.0)))
    small = pipeline(max_memory_bytes=8 * 2**20, network_bytes=0)
    small.prepare(volume)
    with pytest.raises(PayloadTooLargeError):
        small.prepare(volume, dataclasses.replace(BOTH))


@pytest.mark.parametrize("spacing_mm", [9000.0, 300.0])
def test_absurd_spacings_are_refused_without_being_resampled(spacing_mm: float) -> None:
    volume = phantom(oblique((64, 64, 64), (spacing_mm,) * 3))
    with pytest.raises(PayloadTooLargeError, match="would take"):
        pipeline().prepare(volume)


def test_a_speck_is_refused_as_no_volume() -> None:
    with pytest.raises(InvalidImageError, match="check its spacing"):
        pipeline().prepare(phantom(oblique((40, 40, 40), (0.001, 0.001, 0.001))))


def test_a_model_without_the_section_has_no_pipeline() -> None:
    with pytest.raises(ConfigError, match="expected the section 'volume'"):
        structs.replace(pipeline().spec, volume=None)


def test_a_limit_below_one_window_is_a_mistake_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match="at least 257 MiB"):
        pipeline(max_memory_bytes=2**20)


def test_the_golden_window_is_the_middle_of_what_the_network_sees() -> None:
    own = pipeline()
    wide = own.prepare(phantom(oblique((20, 18, 12), (1.0, 1.0, 1.0))))
    window = own.golden_window(wide)
    assert window.shape == (1, 1, 16, 16, 16)
    shape = wide.tensor.shape[1:]
    assert sorted(shape) == [12, 18, 20]
    inside = [slice((side - 16) // 2, (side - 16) // 2 + 16) if side > 16 else slice(None)
              for side in shape]  # fmt: skip
    here = [slice(2, 14) if side == 12 else slice(None) for side in shape]
    np.testing.assert_array_equal(window[0, 0][tuple(here)], wide.tensor[0][tuple(inside)])
    assert np.count_nonzero(window) == np.count_nonzero(window[0, 0][tuple(here)])
