"""The handler of volumes in front of a network whose answer is known voxel by voxel."""

from __future__ import annotations

import base64
import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread

from handlers import volumes as segmentation
from handlers.volumes import VolumeHandler
from medserve.errors import (
    ConfigError,
    DeadlineError,
    InvalidImageError,
    InvalidRequestError,
    ModelNotReadyError,
    PayloadTooLargeError,
    ServerFailedError,
)
from medserve.imaging.codecs import nifti, npy
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from medserve.inference.engines import Outputs
from medserve.inference.sliding_window import until
from medserve.results.segmentation import Segmentation
from medserve.tasks.volumes import VolumeResult
from tests.handlers.volume_worker import ask, ask_json, changed, ready_for_volumes
from tests.imaging.test_research_volumes import metaimage, mgz, nrrd
from tests.tiny_volume_room import LABELS, known_mask, phantom, write_volume_artifact
from tests.volume_phantoms import (
    as_bytes,
    centre_of_mass_mm,
    dicom_slices,
    enhanced_dicom,
    geometries,
    oblique,
    zipped,
)

pytest.importorskip("ts", reason="needs the serve extra")
_Image: Any = nibabel.Nifti1Image
_Header: Any = nibabel.Nifti1Header


@pytest.fixture(scope="module")
def volume_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_volume_artifact(tmp_path_factory.mktemp("tiny_volume"))


@pytest.fixture(scope="module")
def handler(volume_artifact: Path) -> VolumeHandler:
    return ready_for_volumes(volume_artifact)


def loaded(answer: bytes) -> Any:
    """A .nii.gz as nibabel, a foreign reader, sees it."""
    return _Image.from_bytes(gzip.decompress(answer))


def series(volume: Volume, modality: str = "MR") -> bytes:
    return zipped([as_bytes(each) for each in dicom_slices(volume, Modality=modality)])


@pytest.fixture(scope="module")
def volume() -> Volume:
    return phantom()


def test_the_answer_is_the_mask_as_a_file(handler: VolumeHandler, volume: Volume) -> None:
    source = _Image(volume.array, volume.geometry.affine)
    source.header.set_qform(volume.geometry.affine, code=1)
    source.header.set_sform(volume.geometry.affine, code=4)
    payload = gzip.compress(source.to_bytes())
    answer = loaded(ask(handler, payload))
    before = loaded(payload)
    np.testing.assert_array_equal(np.asarray(answer.dataobj), known_mask(volume))
    assert answer.get_data_dtype() == np.uint8
    for field in ("qform_code", "sform_code", "pixdim", "xyzt_units", "srow_x", "qoffset_z"):
        np.testing.assert_array_equal(answer.header[field], before.header[field])


@settings(max_examples=25, deadline=None)
@given(geometries(12, 20, spacing_mm=(0.6, 2.5)))
def test_the_mask_lies_on_the_grid_of_its_file_whatever_that_is(
    handler: VolumeHandler, geometry: Geometry
) -> None:
    volume = phantom(geometry)
    known = known_mask(volume)
    # The centre of a ball of fewer voxels is not known to the tolerance below; of 500 random grids
    # those of at least 40 voxels differ by at most 0.16 of a voxel, without a direction.
    assume(np.count_nonzero(known) >= 60)
    before = _Image(volume.array, geometry.affine)
    answer = loaded(ask(handler, before.to_bytes()))
    stored = _Image.from_bytes(before.to_bytes())
    assert answer.shape == before.shape
    np.testing.assert_array_equal(answer.affine, stored.affine)
    found = np.asarray(answer.dataobj)
    shift = centre_of_mass_mm(found > 0, geometry) - centre_of_mass_mm(known > 0, geometry)
    assert np.linalg.norm(shift) < 0.25 * max(geometry.spacing_mm)


@pytest.mark.parametrize("kind", ["zip of slices", "multi-frame"])
def test_a_dicom_series_is_answered_on_its_own_grid(kind: str, handler: VolumeHandler) -> None:
    affine = oblique(spacing_mm=(1.0, 1.0, 1.0)).affine.copy()
    affine[:3, 2] *= -1  # right-handed, as row, column and normal of DICOM are
    volume = phantom(Geometry((26, 22, 18), affine))
    halved = Volume((volume.array // 2 + 5).astype(np.int16), volume.geometry)  # rescaled: 2, -10
    payload = series(volume)
    if kind == "multi-frame":
        order = [*range(1, volume.geometry.shape[2]), 0]
        payload = as_bytes(enhanced_dicom(halved, order))
    answer = loaded(ask(handler, payload))
    np.testing.assert_allclose(answer.affine, volume.geometry.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(answer.dataobj), known_mask(volume))


@pytest.mark.parametrize("written", [nrrd, metaimage, mgz])
def test_files_of_slicer_itk_and_freesurfer_are_answered_on_their_own_grid(
    written: Callable[[Volume], bytes], handler: VolumeHandler
) -> None:
    volume = phantom(oblique((26, 22, 18), (1.0, 1.0, 1.0)))
    answer = loaded(ask(handler, written(volume)))
    np.testing.assert_allclose(answer.affine, volume.geometry.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(answer.dataobj), known_mask(volume))


def test_an_npy_array_has_the_spacing_that_the_caller_states(handler: VolumeHandler) -> None:
    volume = phantom(Geometry.from_spacing((20, 18, 16), (2.0, 1.0, 1.5)))
    answer = loaded(ask(handler, npy.encode(volume.array), {"spacing_mm": [2, 1, 1.5]}))
    assert tuple(answer.header.get_zooms()) == (2.0, 1.0, 1.5)
    assert answer.shape == (20, 18, 16)


@settings(deadline=None, max_examples=10)
@given(
    st.sampled_from([np.uint8, np.int16, np.float32, np.float64]),
    st.floats(-100, 100),
    st.booleans(),
)
def test_a_volume_without_contrast_is_refused(
    handler: VolumeHandler, dtype: Any, value: float, hollow: bool
) -> None:
    array = np.full((20, 18, 16), value).astype(dtype)
    if hollow and array.dtype.kind == "f":
        array[3:6] = np.nan  # background, and no contrast
    with pytest.raises(InvalidImageError, match="same value all over"):
        ask(handler, _Image(array, np.eye(4)).to_bytes())


@settings(deadline=None, max_examples=10)
@given(st.floats(1e-3, 1e4), st.floats(0, 4e-6), st.sampled_from([np.float32, np.float64]))
def test_rounding_is_no_contrast(
    handler: VolumeHandler, value: float, rounding: float, dtype: Any
) -> None:
    noise = np.random.default_rng(0).uniform(-rounding, rounding, (20, 18, 16))
    array = (value * (1 + noise)).astype(dtype)
    with pytest.raises(InvalidImageError, match="same value all over"):
        ask(handler, _Image(array, np.eye(4)).to_bytes())


def test_the_last_of_16_bits_is_contrast(handler: VolumeHandler) -> None:
    array = np.full((20, 18, 16), 2.0**16 - 1, np.float32)
    array[:10] -= 1
    assert loaded(ask(handler, _Image(array, np.eye(4)).to_bytes())).shape == array.shape


def test_a_channel_of_four_dimensions_is_chosen(handler: VolumeHandler, volume: Volume) -> None:
    stack = np.stack([np.zeros_like(volume.array), volume.array], axis=-1)
    payload = _Image(stack, volume.geometry.affine).to_bytes()
    with pytest.raises(InvalidImageError, match="name one of the 2 channels"):
        ask(handler, payload)
    answer = loaded(ask(handler, payload, {"channel": 1}))
    np.testing.assert_array_equal(np.asarray(answer.dataobj), known_mask(volume))


def test_json_holds_mask_measurements_and_provenance(
    handler: VolumeHandler, volume: Volume
) -> None:
    payload = nifti.encode(volume)
    content = ask_json(handler, payload)
    assert (content["model"], content["version"]) == ("tiny_volume", "1.0")
    known = known_mask(volume)
    for label, name in enumerate(LABELS[1:], start=1):
        expected = np.count_nonzero(known == label) / 1000
        assert content["volumes_ml"][name] == pytest.approx(expected, rel=1e-6)
    assert base64.b64decode(content["mask_nifti"]) == ask(handler, payload)
    returned = Segmentation.from_result(VolumeResult.from_json(content))
    np.testing.assert_array_equal(returned.mask, known)
    centre = content["measures"][1]["centroid_mm"]
    np.testing.assert_allclose(centre, centre_of_mass_mm(known == 2, volume.geometry), atol=1e-3)
    assert "overlay_png" not in content
    assert "entropy_nifti" not in content


LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"  # Label Map Segmentation Storage
SEEN = {
    "size_mm": [[20.0, 40.0]] * 3,
    "texture": [0.0, 0.9],
    "label_ml": {LABELS[1]: [0.01, 100.0]},
}


def test_an_answer_for_what_training_saw_asks_for_no_review(
    volume_artifact: Path, volume: Volume
) -> None:
    extents = np.multiply(volume.geometry.shape, volume.geometry.spacing_mm)
    size_mm = [[float(extents.min()), float(extents.max())]] * 3
    handler = ready_for_volumes(volume_artifact, changed(seen={**SEEN, "size_mm": size_mm}))
    content = VolumeResult.from_json(ask_json(handler, nifti.encode(volume)))
    assert (content.review, content.unlike_training, content.doubts) == (False, False, ())


def test_an_answer_for_something_else_asks_for_a_review_and_has_the_same_mask(
    volume_artifact: Path, handler: VolumeHandler, volume: Volume
) -> None:
    seen = {"size_mm": [[1.0, 2.0]] * 3, "label_ml": {LABELS[1]: [1000.0, 2000.0]}}
    doubtful = ready_for_volumes(volume_artifact, changed(seen=seen))
    content = ask_json(doubtful, nifti.encode(volume))
    found = VolumeResult.from_json(content)
    assert found.review
    assert found.unlike_training
    assert [each.reason for each in found.doubts] == ["size", "label_volume"]
    assert content["mask_nifti"] == ask_json(handler, nifti.encode(volume))["mask_nifti"]


def test_an_empty_mask_asks_for_a_review(handler: VolumeHandler, volume: Volume) -> None:
    dark = np.zeros(volume.geometry.shape, np.float32)
    dark[0, 0, 0] = 1.0  # a contrast, and too little to find
    payload = nifti.encode(Volume(dark, volume.geometry))
    found = VolumeResult.from_json(ask_json(handler, payload))
    assert found.volumes_ml == dict.fromkeys(LABELS[1:], 0.0)
    assert [each.reason for each in found.doubts] == ["empty"]
    assert (found.review, found.unlike_training) == (True, False)


def test_a_mask_of_another_size_alone_does_not_make_the_volume_unlike(
    volume_artifact: Path, volume: Volume
) -> None:
    seen = {"label_ml": {LABELS[1]: [1000.0, 2000.0]}}
    handler = ready_for_volumes(volume_artifact, changed(seen=seen))
    found = VolumeResult.from_json(ask_json(handler, nifti.encode(volume)))
    assert (found.review, found.unlike_training) == (True, False)


def test_errors_to_expect_stand_in_the_answer_and_ask_for_a_review_where_they_are_large(
    volume_artifact: Path, handler: VolumeHandler, volume: Volume
) -> None:
    dice = {"intercept": 0.0, "overlap": 1.0, "size": 0.0, "review_share": 0.1}
    ratios = {LABELS[1]: [0.8, 1.5]}
    plain = ask_json(handler, nifti.encode(volume))
    for limit, reasons in ((0.0, []), (1.0, ["predicted_dice"] * 2)):
        quality = {"dice": {**dice, "review_below": limit}, "volume_ratio": ratios}
        judging = ready_for_volumes(volume_artifact, changed(quality=quality))
        found = VolumeResult.from_json(ask_json(judging, nifti.encode(volume)))
        assert [each.reason for each in found.doubts] == reasons
        assert (found.review, found.unlike_training) == (bool(reasons), False)
        first, second = found.measures
        assert 0.0 < (first.predicted_dice or 0.0) < 1.0
        low, high = first.volume_interval_ml or (0.0, 0.0)
        assert low < first.volume_ml < high
        assert second.volume_interval_ml is None
        assert found.mask_nifti == base64.b64decode(plain["mask_nifti"])


def test_json_carries_what_else_is_asked_for(handler: VolumeHandler, volume: Volume) -> None:
    wanted = {"overlay": True, "uncertainty": True}
    content = ask_json(handler, nifti.encode(volume), wanted)
    picture = Image.open(io.BytesIO(base64.b64decode(content["overlay_png"])))
    assert picture.mode == "RGB"
    entropy = loaded(base64.b64decode(content["entropy_nifti"]))
    assert entropy.shape == volume.geometry.shape


def test_probabilities_are_a_fourth_axis_in_label_order(
    handler: VolumeHandler, volume: Volume
) -> None:
    answer = loaded(ask(handler, nifti.encode(volume), {"output": "probabilities"}))
    assert answer.shape == (*volume.geometry.shape, 3)
    probabilities = np.asarray(answer.dataobj)
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(axis=-1), known_mask(volume))
    np.testing.assert_allclose(answer.affine, volume.geometry.affine, atol=1e-5)
    assert bytes(answer.header["descrip"].item()) == b"background,dim,bright"


def test_the_uncertainty_is_highest_between_two_labels(handler: VolumeHandler) -> None:
    geometry = oblique((16, 16, 16), (1.0, 1.0, 1.0))
    array = np.zeros(geometry.shape, dtype=np.int16)
    array[8] = 333  # a third of the range, where two labels are even
    answer = loaded(ask(handler, nifti.encode(Volume(array, geometry)), {"output": "uncertainty"}))
    entropy = np.asarray(answer.dataobj)
    np.testing.assert_allclose(entropy[8], np.log(2) / np.log(3), atol=1e-3)
    assert entropy[:8].max() < 0.01


def test_the_overlay_is_a_picture(handler: VolumeHandler, volume: Volume) -> None:
    for params in ({"output": "overlay"}, {"format": "png"}):
        answer = ask(handler, nifti.encode(volume), params)
        assert Image.open(io.BytesIO(answer)).format == "PNG"


def test_dicom_is_answered_as_dicom_segmentation(handler: VolumeHandler, volume: Volume) -> None:
    answer = ask(handler, series(volume), {"format": "dicom-seg"})
    found = highdicom.seg.Segmentation.from_dataset(dcmread(io.BytesIO(answer)))
    assert found.number_of_segments == 2
    assert found.NumberOfFrames == 2 * volume.geometry.shape[2]
    frames = dcmread(io.BytesIO(answer))
    assert np.count_nonzero(frames.pixel_array) == np.count_nonzero(known_mask(volume))
    content = ask_json(handler, series(volume), {"format": "dicom-seg"})
    again = dcmread(io.BytesIO(base64.b64decode(content["dicom_seg"])))
    assert again.SOPInstanceUID == frames.SOPInstanceUID


def test_dicom_is_answered_as_a_label_map_where_that_is_asked_for(
    handler: VolumeHandler, volume: Volume
) -> None:
    found = dcmread(io.BytesIO(ask(handler, series(volume), {"format": "dicom-labelmap"})))
    assert found.SOPClassUID == LABEL_MAP
    assert np.count_nonzero(found.pixel_array) == np.count_nonzero(known_mask(volume))
    content = ask_json(handler, series(volume), {"format": "dicom-labelmap"})
    again = dcmread(io.BytesIO(base64.b64decode(content["dicom_seg"])))
    assert again.SOPInstanceUID == found.SOPInstanceUID
    with pytest.raises(InvalidRequestError, match="ask for nifti"):
        ask(handler, nifti.encode(volume), {"format": "dicom-labelmap"})


def test_only_dicom_is_answered_as_dicom(handler: VolumeHandler, volume: Volume) -> None:
    with pytest.raises(InvalidRequestError, match="ask for nifti"):
        ask(handler, nifti.encode(volume), {"format": "dicom-seg"})


def test_a_room_without_codes_has_no_dicom_segmentation(
    volume_artifact: Path, volume: Volume
) -> None:
    uncoded = ready_for_volumes(volume_artifact, changed(snomed={}))
    with pytest.raises(InvalidRequestError, match="lacks codes"):
        ask(uncoded, series(volume), {"format": "dicom-seg"})


def test_half_the_codes_are_a_mistake_of_the_room(volume_artifact: Path) -> None:
    half = {"dim": {"kind": {"value": "5366008", "meaning": "Hippocampus"}}}
    with pytest.raises(ConfigError, match="code for bright"):
        ready_for_volumes(volume_artifact, changed(snomed=half))


def test_another_modality_is_refused(handler: VolumeHandler, volume: Volume) -> None:
    with pytest.raises(InvalidImageError, match="modality MR"):
        ask(handler, series(volume, "CT"))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"colour": "red"}, "known keys: channel, fill_holes, flips, format"),
        ({"output": "meshes"}, "output: expected one of mask, probabilities"),
        ({"output": 3}, "output: expected one of"),
        ({"format": "dicom"}, "format: expected one of nifti, dicom-seg"),
        ({"output": "probabilities", "format": "png"}, "expected nifti or json"),
        ({"output": "overlay", "format": "nifti"}, "expected png or json"),
        ({"channel": -1}, "channel"),
        ({"channel": True}, "channel"),
        ({"channel": 0.5}, "channel"),
        ({"spacing_mm": [1, 1]}, "three numbers above 0"),
        ({"spacing_mm": [1, 1, 0]}, "three numbers above 0"),
        ({"spacing_mm": [1, 1, "1"]}, "three numbers above 0"),
        ({"spacing_mm": "1"}, "three numbers above 0"),
        ({"flips": 1}, "flips: expected true or false"),
        ({"overlay": True}, "with the output json"),
        ({"uncertainty": True, "output": "probabilities"}, "with the output json"),
    ],
)
def test_params_that_cannot_be_followed_are_refused(
    params: dict[str, object], message: str, handler: VolumeHandler, volume: Volume
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        ask(handler, nifti.encode(volume), params)


def test_flips_and_tidying_are_the_caller_s_to_choose(
    handler: VolumeHandler, volume: Volume
) -> None:
    specked = Volume(volume.array.copy(), volume.geometry)
    specked.array[0, 0, 0] = 500
    payload = nifti.encode(specked)
    everything = np.asarray(loaded(ask(handler, payload, {"flips": True})).dataobj)
    tidied = np.asarray(loaded(ask(handler, payload, {"largest_component": True})).dataobj)
    np.testing.assert_array_equal(everything, known_mask(specked))
    assert (everything[0, 0, 0], tidied[0, 0, 0]) == (1, 0)


def test_many_files_in_one_call_are_refused(handler: VolumeHandler, volume: Volume) -> None:
    from tests.handlers.worker import FakeContext

    payload = nifti.encode(volume)
    with pytest.raises(Exception, match="one file a call"):
        handler.handle([{"data.0": bytearray(payload)}], FakeContext({}))


def test_an_expired_deadline_starts_no_work(handler: VolumeHandler, volume: Volume) -> None:
    with pytest.raises(DeadlineError, match="deadline_ms"):
        ask(handler, nifti.encode(volume), deadline_ms=b"0")


def test_work_ends_between_windows_when_time_is_up(
    handler: VolumeHandler, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    once = handler.engine.run

    def counted(windows: npt.NDArray[np.float32]) -> Outputs:
        ran.append(len(windows))
        return once(windows)

    def until_the_first_batch(deadline: float) -> Callable[[int, int], None]:
        return until(deadline, clock=lambda: deadline + len(ran) - 0.5)

    monkeypatch.setattr(handler.engine, "run", counted)
    monkeypatch.setattr(segmentation, "until", until_the_first_batch)
    with pytest.raises(DeadlineError, match="windows done"):
        ask(handler, nifti.encode(volume), deadline_ms=b"60000")
    assert len(ran) == 1


def test_a_network_that_gives_no_numbers_is_a_failure_of_the_server(
    handler: VolumeHandler, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = {"logits": np.full((4, 3, 16, 16, 16), np.nan, np.float32)}
    monkeypatch.setattr(handler.engine, "run", lambda windows: nothing)
    with pytest.raises(ServerFailedError, match="not finite"):
        ask(handler, nifti.encode(volume))


def test_a_volume_that_would_not_fit_is_refused_with_what_would(volume_artifact: Path) -> None:
    small = ready_for_volumes(volume_artifact, changed(max_memory_bytes=3 * 2**20))
    large = phantom(oblique((60, 60, 60), (1.0, 1.0, 1.0)))
    with pytest.raises(PayloadTooLargeError, match="voxels"):
        ask(small, nifti.encode(large))


def test_a_header_of_gigabytes_is_refused_unread(handler: VolumeHandler) -> None:
    header = _Header()
    header.set_data_shape((2000, 2000, 2000))
    header.set_data_dtype(np.int16)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    with pytest.raises(PayloadTooLargeError, match="2000 x 2000 x 2000"):
        ask(handler, header.binaryblock + bytes(4096))


def test_a_worker_with_another_network_stays_unready(volume_artifact: Path, tmp_path: Path) -> None:
    spoiled = tmp_path / "archive"
    spoiled.mkdir()
    for each in volume_artifact.iterdir():
        (spoiled / each.name).write_bytes(each.read_bytes())
    with np.load(volume_artifact / "golden_output.npz") as arrays:
        logits = arrays["logits"]
    np.savez(spoiled / "golden_output.npz", logits=logits + 1, tolerance=np.float32(1e-3))
    with pytest.raises(ModelNotReadyError, match="golden output"):
        ready_for_volumes(spoiled)
    four = changed(snomed={})
    four["medserve"] = {**four["medserve"], "labels": ["a", "b", "c", "d"]}
    with pytest.raises(ModelNotReadyError, match="another model"):
        ready_for_volumes(volume_artifact, four)


def test_volumes_are_answered_one_request_at_a_time(volume_artifact: Path) -> None:
    with pytest.raises(ConfigError, match="batchSize 1"):
        ready_for_volumes(volume_artifact, {**changed(), "batchSize": 4})


def test_work_ends_before_torchserve_would_kill_the_worker(
    volume_artifact: Path, volume: Volume
) -> None:
    hasty = ready_for_volumes(volume_artifact, {**changed(), "responseTimeout": 0})
    with pytest.raises(DeadlineError, match="windows done"):
        ask(hasty, nifti.encode(volume))
