"""The handler of frames in front of a network whose answer is known pixel by pixel."""

from __future__ import annotations

import base64
import gzip
import io
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from handlers.frames import FrameHandler
from medserve.errors import (
    DeadlineError,
    InvalidImageError,
    InvalidRequestError,
    ModelNotReadyError,
    PayloadTooLargeError,
)
from medserve.results.frame_segmentation import FrameSegmentation
from medserve.results.seen import image_layout
from medserve.tasks.frames import FrameOptions, FrameResult
from medserve.tasks.result import DoubtReason
from tests.frame_phantoms import as_nifti, cine, ellipse, region, saved, scan, ultrasound
from tests.handlers.frame_worker import ask, ask_json, ask_packed, changed, ready_for_frames
from tests.phantoms import raster_bytes
from tests.tiny_frame_room import LABELS, SIZE, write_frame_artifact

pytest.importorskip("ts", reason="needs the serve extra")
_Mask = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frame_artifact(tmp_path_factory.mktemp("tiny_frame"))


@pytest.fixture(scope="module")
def handler(artifact: Path) -> FrameHandler:
    return ready_for_frames(artifact)


def picture(answer: bytes) -> _Mask:
    return np.asarray(Image.open(io.BytesIO(answer)))


def volume(answer: bytes) -> Any:
    """A .nii.gz as nibabel, a foreign reader, sees it."""
    kind: Any = nibabel.Nifti1Image
    return kind.from_bytes(gzip.decompress(answer))


def decoded(content: Mapping[str, Any], member: str) -> bytes:
    return base64.b64decode(content[member], validate=True)


def measured_frames(handler: FrameHandler, payload: bytes) -> dict[str, object]:
    """What a training on exactly these frames would have seen of their layout."""
    stack = handler.decode(payload, FrameOptions())
    layouts = [
        image_layout(handler.pipeline.prepare(stack.read(place)).seen)
        for place in range(stack.grid.count)
    ]
    return {"layout": np.mean(layouts, axis=0).tolist(), "layout_correlation": 0.5}


def dice(mask: npt.NDArray[Any], truth: npt.NDArray[Any]) -> float:
    both = np.count_nonzero((mask > 0) & (truth > 0))
    return 2 * both / (np.count_nonzero(mask) + np.count_nonzero(truth))


# ---- one frame


def test_a_frame_is_answered_by_a_mask_of_its_own_size(handler: FrameHandler) -> None:
    mask = picture(ask(handler, raster_bytes(scan())))
    np.testing.assert_array_equal(mask, 255 * ellipse())


@pytest.mark.parametrize(("height", "width"), [(96, 128), (61, 200), (200, 61), (37, 49)], ids=str)
def test_a_frame_of_any_size_gets_its_mask_at_that_size(
    height: int, width: int, handler: FrameHandler
) -> None:
    mask = picture(ask(handler, raster_bytes(scan(height, width))))
    truth = ellipse(height, width)
    assert mask.shape == (height, width)
    assert set(np.unique(mask)) == {0, 255}
    assert dice(mask, truth) > 0.93
    rows, columns = (np.nonzero(each) for each in (mask, truth))
    offset = [np.mean(a) - np.mean(b) for a, b in zip(rows, columns, strict=True)]
    assert np.abs(offset).max() < 0.5  # pixels: nothing is shifted


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_other_pictures_are_read_too(kind: str, handler: FrameHandler) -> None:
    mask = picture(ask(handler, raster_bytes(scan(), kind)))
    assert dice(mask, ellipse()) > 0.97


def test_a_colour_frame_counts_by_its_brightness(handler: FrameHandler) -> None:
    colour = np.repeat(scan()[..., np.newaxis], 3, axis=2)
    np.testing.assert_array_equal(picture(ask(handler, raster_bytes(colour))), 255 * ellipse())


def test_a_json_answer_measures_the_mask(handler: FrameHandler) -> None:
    content = ask_json(handler, raster_bytes(scan()), {"spacing_mm": [0.2, 0.3]})
    truth = ellipse()
    [frame] = content["frames"]
    rows, columns = np.nonzero(truth)
    assert (frame["index"], frame["status"], frame["pixels"]) == (0, "ok", int(truth.sum()))
    assert frame["area_cm2"] == pytest.approx(truth.sum() * 0.2 * 0.3 / 100)
    assert frame["height_mm"] == pytest.approx((np.ptp(rows) + 1) * 0.2)
    assert frame["width_mm"] == pytest.approx((np.ptp(columns) + 1) * 0.3)
    assert frame["centroid"] == pytest.approx([rows.mean(), columns.mean()])
    assert frame["box_start"] == [rows.min(), columns.min()]
    assert frame["box_stop"] == [rows.max() + 1, columns.max() + 1]
    assert frame["touches_border"] is False
    assert frame["unlike_ultrasound"] is False
    assert content["stack"]["volume_ml"] is None  # one plane has no volume
    assert content["grid"] == {
        "rows": 48, "columns": 64, "frames": 1, "spacing_mm": [0.2, 0.3], "step_mm": None,
    }  # fmt: skip
    np.testing.assert_array_equal(picture(decoded(content, "mask_png")), 255 * truth)


def test_lengths_that_nobody_states_are_not_invented(handler: FrameHandler) -> None:
    content = ask_json(handler, raster_bytes(scan()))
    assert content["grid"]["spacing_mm"] is None
    assert content["frames"][0]["area_cm2"] is None
    assert content["frames"][0]["pixels"] > 0
    assert content["measures"] == []


def test_three_diameters_give_the_volume_of_the_ellipsoid(handler: FrameHandler) -> None:
    params = {"spacing_mm": [1.0, 1.0], "length_mm": 40.0}
    stack = ask_json(handler, raster_bytes(scan()), params)["stack"]
    expected = math.pi / 6 * stack["width_mm"] * stack["height_mm"] * 40.0 / 1000
    assert stack["ellipsoid_ml"] == pytest.approx(expected)
    assert stack["length_mm"] == 40.0


def test_the_overlay_replaces_the_frame_pixel_by_pixel(handler: FrameHandler) -> None:
    answer = picture(ask(handler, raster_bytes(scan(90, 120)), {"output": "overlay"}))
    assert answer.shape == (90, 120, 3)
    coloured = np.ptp(answer.astype(int), axis=2) > 20
    assert dice(coloured, ellipse(90, 120)) > 0.9
    frame = scan(90, 120)
    np.testing.assert_array_equal(answer[~coloured][:, 0], frame[~coloured])


def test_json_carries_the_overlay_where_it_is_asked_for(handler: FrameHandler) -> None:
    content = ask_json(handler, raster_bytes(scan()), {"overlay": True})
    assert picture(decoded(content, "overlay_png")).shape == (48, 64, 3)
    assert "overlay_png" not in ask_json(handler, raster_bytes(scan()))


def test_the_mask_of_a_picture_comes_as_nifti_where_that_is_asked_for(
    handler: FrameHandler,
) -> None:
    answer = volume(ask(handler, raster_bytes(scan()), {"format": "nifti"}))
    assert answer.shape == (64, 48, 1)  # columns, rows, frames
    np.testing.assert_array_equal(np.asarray(answer.dataobj)[..., 0].T, ellipse())
    assert (int(answer.header["qform_code"]), int(answer.header["sform_code"])) == (0, 0)


def test_the_client_reads_what_the_handler_built(handler: FrameHandler) -> None:
    found = FrameSegmentation.from_result(
        FrameResult.from_json(ask_json(handler, raster_bytes(scan())))
    )
    np.testing.assert_array_equal(found.mask, ellipse()[np.newaxis])
    assert found.labels == ("background", "bright")
    assert found.frames[0].measure is not None
    assert found.frames[0].measure.pixels == ellipse().sum()


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torchscript"])
def test_every_engine_gives_the_same_mask(name: str, artifact: Path) -> None:
    other = ready_for_frames(artifact, changed(engine={"name": name, "precision": "f32"}))
    np.testing.assert_array_equal(picture(ask(other, raster_bytes(scan()))), 255 * ellipse())


# ---- DICOM


def test_a_dicom_frame_brings_its_calibration(handler: FrameHandler) -> None:
    payload = saved(ultrasound(scan()[np.newaxis], SequenceOfUltrasoundRegions=[region()]))
    content = ask_json(handler, payload)
    assert content["grid"]["spacing_mm"] == pytest.approx([0.2, 0.3])
    assert content["frames"][0]["area_cm2"] == pytest.approx(ellipse().sum() * 0.2 * 0.3 / 100)


@pytest.mark.parametrize("kind", ["region", "spacing", "ratio", "NIfTI"])
@pytest.mark.parametrize("stretch", [(0.5, 1), (1, 0.5), (0.75, 1)])
def test_oblong_pixels_reach_the_network_in_true_proportions(
    kind: str, stretch: tuple[float, float], handler: FrameHandler
) -> None:
    height, width = round(96 * stretch[0]), round(128 * stretch[1])
    frame, truth = scan(height, width), ellipse(height, width)
    spacing = (0.2 / stretch[0], 0.2 / stretch[1])
    elements: dict[str, Any] = {}
    if kind == "region":
        box = {"RegionLocationMaxX1": width - 1, "RegionLocationMaxY1": height - 1}
        deltas = (spacing[0] / 10, spacing[1] / 10)
        elements["SequenceOfUltrasoundRegions"] = [region(deltas, **box)]
    if kind == "spacing":
        elements["PixelSpacing"] = list(spacing)
    if kind == "ratio":
        elements["PixelAspectRatio"] = [round(100 * length) for length in spacing]
    if kind == "NIfTI":
        payload = as_nifti(frame.T[:, :, np.newaxis], np.diag([*spacing[::-1], 1, 1]))
    else:
        payload = saved(ultrasound(frame[np.newaxis], **elements))
    stack = handler.decode(payload, handler.parse_params({}))
    image = stack.read(0)
    prepared = handler.pipeline.prepare(image, stack.grid.aspect)
    inner = prepared.inverse.inner.shape
    lengths = (height * spacing[0] / inner[0], width * spacing[1] / inner[1])
    assert lengths[0] == pytest.approx(lengths[1], rel=0.03)  # mm a pixel of the network
    [found] = ask_json(handler, payload)["frames"]
    assert found["pixels"] == pytest.approx(truth.sum(), rel=0.06)


def test_a_cine_loop_gets_a_mask_for_each_frame(handler: FrameHandler) -> None:
    frames = cine(8)
    content = ask_json(handler, saved(ultrasound(frames)))
    assert [each["status"] for each in content["frames"]] == ["ok"] * 8
    known = frames > 127
    assert [each["pixels"] for each in content["frames"]] == known.sum(axis=(1, 2)).tolist()
    np.testing.assert_array_equal(
        FrameSegmentation.from_result(FrameResult.from_json(content)).mask, known
    )
    answer = volume(ask(handler, saved(ultrasound(frames))))
    np.testing.assert_array_equal(np.asarray(answer.dataobj).transpose(2, 1, 0), known)


def test_a_loop_in_time_has_areas_and_no_volume(handler: FrameHandler) -> None:
    dataset = ultrasound(cine(8), SequenceOfUltrasoundRegions=[region()])
    stack = ask_json(handler, saved(dataset))["stack"]
    assert stack["area_cm2"] > 0
    assert (stack["volume_ml"], stack["ellipsoid_ml"]) == (None, None)


def test_a_sweep_with_known_steps_has_its_volume_by_both_ways(handler: FrameHandler) -> None:
    frames = cine(9)
    dataset = ultrasound(frames, SequenceOfUltrasoundRegions=[region((0.1, 0.1))])
    content = ask_json(handler, saved(dataset), {"step_mm": 5.0})
    known = frames > 127
    shown = np.flatnonzero(known.any(axis=(1, 2)))
    stack, largest = content["stack"], int(known.sum(axis=(1, 2)).argmax())
    rows, columns = np.nonzero(known[largest])
    length = (shown[-1] - shown[0] + 1) * 5.0
    assert stack["volume_ml"] == pytest.approx(known.sum() * 1.0 * 1.0 * 5.0 / 1000)
    assert stack["largest_frame"] == largest
    assert stack["frames_found"] == len(shown)
    assert stack["length_mm"] == pytest.approx(length)
    expected = math.pi / 6 * (np.ptp(rows) + 1) * (np.ptp(columns) + 1) * length / 1000
    assert stack["ellipsoid_ml"] == pytest.approx(expected)
    assert content["measures"][0]["volume_ml"] == pytest.approx(stack["volume_ml"])


@pytest.mark.cpu
def test_dicom_seg_refers_to_the_frames_it_was_made_of(handler: FrameHandler) -> None:
    frames = cine(11)
    source = ultrasound(frames)
    answer = ask(handler, saved(source), {"format": "dicom-seg"})
    found = highdicom.seg.segread(io.BytesIO(answer))
    got = found.get_pixels_by_source_frame(
        source_sop_instance_uid=source.SOPInstanceUID, source_frame_numbers=list(range(1, 12))
    )
    np.testing.assert_array_equal(got[..., 0], frames > 127)
    assert found.PatientID == source.PatientID
    description = found.get_segment_description(1)
    assert description.segment_label == "bright"
    assert description.segmented_property_type.value == "41216001"
    assert found.StudyInstanceUID == source.StudyInstanceUID
    again = dcmread(io.BytesIO(ask(handler, saved(source), {"format": "dicom-seg"})))
    assert again.SOPInstanceUID == found.SOPInstanceUID


def test_dicom_seg_of_a_single_frame_has_one(handler: FrameHandler) -> None:
    content = ask_json(handler, saved(ultrasound(scan()[np.newaxis])), {"format": "dicom-seg"})
    found = dcmread(io.BytesIO(decoded(content, "dicom_seg")))
    assert found.NumberOfFrames == 1
    np.testing.assert_array_equal(found.pixel_array, ellipse())


def test_a_damaged_frame_of_a_loop_costs_no_other(handler: FrameHandler) -> None:
    dataset = ultrasound(cine(6))
    dataset.compress(RLELossless)
    pieces = [bytes(each) for each in _fragments(dataset)]
    pieces[3] = pieces[3][: len(pieces[3]) // 2]
    dataset.PixelData = encapsulate(pieces)
    content = ask_json(handler, saved(dataset), {"step_mm": 1.0})
    assert [each["status"] for each in content["frames"]] == [*["ok"] * 3, "error", "ok", "ok"]
    assert content["frames"][3]["error"]["code"] == "INVALID_IMAGE"
    found = FrameSegmentation.from_result(FrameResult.from_json(content))
    known = cine(6) > 127
    known[3] = False
    np.testing.assert_array_equal(found.mask, known)
    assert found.failed == 1
    assert found.stack.volume_ml is None  # the frame that is missing may have held a part


def _fragments(dataset: Any) -> list[bytes]:
    from pydicom.encaps import generate_frames

    return list(generate_frames(dataset.PixelData, number_of_frames=dataset.NumberOfFrames))


def test_black_frames_of_a_loop_are_told_and_cost_no_other(handler: FrameHandler) -> None:
    frames = cine(5)
    frames[0] = 0
    content = ask_json(handler, saved(ultrasound(frames)))
    assert [each["status"] for each in content["frames"]] == ["error", *["ok"] * 4]
    assert "same grey" in content["frames"][0]["error"]["message"]


def test_a_loop_that_is_black_all_through_is_refused(handler: FrameHandler) -> None:
    with pytest.raises(InvalidImageError, match="3 that cannot"):
        ask(handler, saved(ultrasound(np.zeros((3, 48, 64), np.uint8))))


def test_a_loop_that_is_cut_short_is_refused_with_counts(handler: FrameHandler) -> None:
    dataset = ultrasound(cine(6))
    dataset.PixelData = dataset.PixelData[: 4 * 48 * 64 + 10]
    with pytest.raises(InvalidImageError, match=r"expected 6 frames.*got pixel data of 4"):
        ask(handler, saved(dataset))


def test_another_modality_is_refused(handler: FrameHandler) -> None:
    with pytest.raises(InvalidImageError, match="modality US"):
        ask(handler, saved(ultrasound(scan()[np.newaxis], Modality="CT")))


# ---- NIfTI


def test_a_stack_keeps_header_and_axes_of_its_file(handler: FrameHandler) -> None:
    frames = cine(7)
    affine = np.array(
        [[0.0, 0.3, 0.1, 5.0], [-0.3, 0.0, 0.0, -7.0], [0.0, 0.05, 2.0, 1.0], [0, 0, 0, 1]]
    )
    affine[1, 0] = -np.hypot(0.3, 0.05)  # square pixels, of which nothing is interpolated
    payload = as_nifti(frames.transpose(2, 1, 0), affine)
    before, answer = volume(gzip.compress(payload)), volume(ask(handler, payload))
    np.testing.assert_array_equal(np.asarray(answer.dataobj), (frames > 127).transpose(2, 1, 0))
    np.testing.assert_array_equal(answer.affine, before.affine)
    assert int(answer.header["sform_code"]) == int(before.header["sform_code"])
    stack = ask_json(handler, payload)["stack"]
    voxel_ml = np.prod(before.header.get_zooms()) / 1000
    assert stack["volume_ml"] == pytest.approx((frames > 127).sum() * voxel_ml, rel=1e-4)


def test_an_array_of_rows_columns_frames_is_read_by_its_view(handler: FrameHandler) -> None:
    frames = cine(5)
    payload = as_nifti(frames.transpose(1, 2, 0))
    content = ask_json(handler, payload, {"view": "swapped"})
    assert (content["grid"]["rows"], content["grid"]["columns"]) == (48, 64)
    np.testing.assert_array_equal(
        FrameSegmentation.from_result(FrameResult.from_json(content)).mask, frames > 127
    )
    mask = volume(decoded(content, "mask_nifti"))
    np.testing.assert_array_equal(np.asarray(mask.dataobj).transpose(2, 0, 1), frames > 127)


@pytest.mark.parametrize(
    ("view", "codes"),
    [("axial", "LPS"), ("coronal", "LIP"), ("sagittal", "PIL")],
)
def test_a_view_by_the_affine_does_not_depend_on_how_the_file_was_stored(
    view: str, codes: str, handler: FrameHandler
) -> None:
    frames = cine(5)
    array = frames.transpose(2, 1, 0)  # columns, rows, frames
    upright = _affine(codes)
    image: Any = nibabel.Nifti1Image
    straight = image(array, upright)
    ornt: Any = nibabel.orientations
    for stored in ("RAS", "SLA"):
        turned = straight.as_reoriented(
            ornt.ornt_transform(ornt.io_orientation(upright), ornt.axcodes2ornt(tuple(stored)))
        )
        content = ask_json(handler, turned.to_bytes(), {"view": view})
        np.testing.assert_array_equal(
            FrameSegmentation.from_result(FrameResult.from_json(content)).mask, frames > 127
        )
        mask = volume(decoded(content, "mask_nifti"))
        assert mask.shape == turned.shape
        np.testing.assert_array_equal(np.asarray(mask.dataobj), turned.get_fdata() > 127)


def _affine(codes: str) -> npt.NDArray[np.float64]:
    """Axes along these codes, uneven spacings."""
    affine = np.eye(4)
    affine[:3, :3] = 0.0
    for axis, (code, spacing) in enumerate(zip(codes, (0.3, 0.2, 2.0), strict=True)):
        world = "RAS".find(code) if code in "RAS" else "LPI".find(code)
        affine[world, axis] = spacing if code in "RAS" else -spacing
    return affine


def test_a_stack_of_measurements_is_read_on_one_scale(handler: FrameHandler) -> None:
    frames = cine(5).astype(np.float32) * 17.0 - 300.0
    content = ask_json(handler, as_nifti(frames.transpose(2, 1, 0)))
    pixels = [each["pixels"] for each in content["frames"]]
    assert pixels[0] == pixels[-1] == 0  # frames without the ellipse stay dark
    assert pixels[2] == pytest.approx((cine(5)[2] > 127).sum(), rel=0.05)


def test_a_contact_sheet_shows_frames_of_a_stack(handler: FrameHandler) -> None:
    sheet = picture(ask(handler, saved(ultrasound(cine(30))), {"output": "overlay"}))
    tile = 256 * 48 // 64
    assert sheet.shape == (3 * (tile + 4) - 4, 4 * (256 + 4) - 4, 3)


# ---- many files


def test_many_files_are_answered_one_by_one(handler: FrameHandler) -> None:
    good, loop = raster_bytes(scan()), saved(ultrasound(cine(4)))
    items = ask_packed(handler, good, b"GIF89a", loop, raster_bytes(np.zeros((48, 64), np.uint8)))
    assert [item["status"] for item in items] == ["ok", "error", "ok", "error"]
    assert items[1]["error"]["code"] == "INVALID_IMAGE"
    assert items[0]["frames"][0]["pixels"] == ellipse().sum()
    assert len(items[2]["frames"]) == 4


def test_bare_files_are_refused_in_a_packed_call(handler: FrameHandler) -> None:
    items = ask_packed(handler, raster_bytes(scan()), params={"output": "overlay"})
    assert items[0]["error"]["code"] == "INVALID_REQUEST"
    assert "ask for json" in items[0]["error"]["message"]


# ---- what is refused, and what is flagged


def test_a_photograph_is_answered_with_a_flag(handler: FrameHandler) -> None:
    rows, columns = np.mgrid[:48, :64]
    smooth = np.stack([rows * 5, columns * 3, rows + columns], axis=-1).astype(np.uint8)
    content = ask_json(handler, raster_bytes(smooth))
    assert content["frames"][0]["unlike_ultrasound"] is True
    assert content["review"] is True
    assert content["unlike_training"] is True
    assert "intensities" in [each["reason"] for each in content["doubts"]]


def test_a_file_in_which_nothing_was_found_asks_for_a_review(handler: FrameHandler) -> None:
    content = FrameResult.from_json(ask_json(handler, raster_bytes(scan(scale=0.0))))
    assert content.review
    assert DoubtReason.EMPTY in [each.reason for each in content.doubts]
    assert content.stack.frames_found == 0


@pytest.mark.parametrize(("absent_below", "asks"), [(1e6, False), (0.0, True)])
def test_a_structure_that_may_be_absent_asks_for_a_review_only_where_scores_promise_it(
    artifact: Path, *, absent_below: float, asks: bool
) -> None:
    frame = {"quality": {"absent_below": absent_below}}
    own = ready_for_frames(artifact, changed(frame=frame))
    for payload in (
        raster_bytes(scan(scale=0.0)),
        saved(ultrasound(np.stack([scan(scale=0.0)] * 3))),
    ):
        content = FrameResult.from_json(ask_json(own, payload))
        assert content.stack.frames_found == 0
        assert (DoubtReason.EMPTY in [each.reason for each in content.doubts]) is asks


def test_a_loop_of_which_one_frame_shows_the_structure_asks_for_none(
    handler: FrameHandler,
) -> None:
    content = FrameResult.from_json(ask_json(handler, saved(ultrasound(cine()))))
    assert (content.review, content.unlike_training, content.doubts) == (False, False, ())


@pytest.mark.parametrize("inverted", [False, True])
def test_frames_unlike_what_training_saw_are_told_for_the_file_as_a_whole(
    artifact: Path, handler: FrameHandler, inverted: bool
) -> None:
    stack = np.stack([scan()] * 3)
    seen = measured_frames(handler, saved(ultrasound(stack)))
    doubtful = ready_for_frames(artifact, changed(frame={"seen": seen}))
    payload = saved(ultrasound(255 - stack if inverted else stack))
    content = FrameResult.from_json(ask_json(doubtful, payload))
    assert (DoubtReason.LAYOUT in {each.reason for each in content.doubts}) is inverted
    assert content.unlike_training is inverted
    if inverted:
        [told] = [each for each in content.doubts if each.reason is DoubtReason.LAYOUT]
        assert told.message.startswith("3 of 3 frames, the first: bright and dark lie elsewhere")
    plain = FrameResult.from_json(ask_json(handler, payload))
    assert content.mask_nifti == plain.mask_nifti  # a doubt changes no mask


@pytest.mark.parametrize("covers", [True, False])
def test_the_size_of_a_frame_is_judged_where_its_calibration_holds(
    artifact: Path, covers: bool
) -> None:
    seen = {"size_mm": [[1.0, 2.0], [1.0, 2.0]]}
    doubtful = ready_for_frames(artifact, changed(frame={"seen": seen}))
    corner = region(RegionLocationMaxX1=8, RegionLocationMaxY1=8)
    regions = [region() if covers else corner]
    calibrated = ultrasound(np.stack([scan()] * 2), SequenceOfUltrasoundRegions=regions)
    content = FrameResult.from_json(ask_json(doubtful, saved(calibrated)))
    assert (DoubtReason.SIZE in {each.reason for each in content.doubts}) is covers


def test_a_mask_that_covers_too_much_of_a_frame_asks_for_a_review(artifact: Path) -> None:
    seen = {"label_share": {LABELS[1]: [0.001, 0.002]}}
    doubtful = ready_for_frames(artifact, changed(frame={"seen": seen}))
    content = FrameResult.from_json(ask_json(doubtful, raster_bytes(scan())))
    assert [each.reason for each in content.doubts] == [DoubtReason.LABEL_AREA]
    assert (content.review, content.unlike_training) == (True, False)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "no bytes"),
        (b"%PDF-1.7 and so on", "PDF"),
        (raster_bytes(np.zeros((48, 64), np.uint8)), "same grey"),
        (raster_bytes(np.full((48, 64), 90, np.uint8)), "same grey"),
        (raster_bytes(scan(8, 12)), "at least 16 x 16"),
        (raster_bytes(scan(17, 400)), "8 times as long as wide"),
        (raster_bytes(scan())[:-20], "damaged"),
    ],
    ids=["empty", "pdf", "black", "constant", "tiny", "strip", "cut"],
)
def test_what_is_no_frame_is_refused(payload: bytes, words: str, handler: FrameHandler) -> None:
    with pytest.raises(InvalidImageError, match=words):
        ask(handler, payload)


def test_too_much_is_refused_before_it_is_decoded(handler: FrameHandler) -> None:
    with pytest.raises(PayloadTooLargeError, match="at most 40 frames"):
        ask(handler, saved(ultrasound(np.zeros((41, 16, 16), np.uint8))))
    with pytest.raises(PayloadTooLargeError, match="at most 200000 pixels"):
        ask(handler, saved(ultrasound(np.zeros((2, 500, 500), np.uint8))))
    with pytest.raises(PayloadTooLargeError, match="at most 40 frames"):
        ask(handler, as_nifti(np.zeros((16, 16, 41), np.uint8)))
    with pytest.raises(PayloadTooLargeError, match="bytes a file"):
        ask(handler, bytes(5 * 2**20))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"colour": "red"}, "fill_holes, flips, format"),
        ({"output": "volume"}, "mask, overlay, json"),
        ({"output": "overlay", "format": "nifti"}, "png or json for the output overlay"),
        ({"format": "dicom-seg"}, "DICOM file"),
        ({"spacing_mm": [1.0]}, "two numbers"),
        ({"spacing_mm": [1.0, float("inf")]}, "two numbers"),
        ({"spacing_mm": [1.0, 1e9]}, "lengths from"),
        ({"step_mm": "5"}, "number above 0"),
        ({"step_mm": 5.0}, "single frame"),
        ({"length_mm": -1}, "number above 0"),
        ({"view": "axial"}, "only NIfTI"),
        ({"view": "top"}, "stored, swapped"),
        ({"flips": 1}, "true or false"),
        ({"overlay": True, "output": "mask", "format": "png"}, "with the output json"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_wishes_that_cannot_be_met_are_explained(
    params: dict[str, object], words: str, handler: FrameHandler
) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        ask(handler, raster_bytes(scan()), params)


def test_a_stack_is_never_one_png(handler: FrameHandler) -> None:
    with pytest.raises(InvalidRequestError, match="ask for nifti"):
        ask(handler, saved(ultrasound(cine(3))), {"format": "png"})


def test_lengths_that_the_file_states_are_not_overruled(handler: FrameHandler) -> None:
    payload = saved(ultrasound(scan()[np.newaxis], SequenceOfUltrasoundRegions=[region()]))
    with pytest.raises(InvalidRequestError, match="states itself"):
        ask(handler, payload, {"spacing_mm": [1.0, 1.0]})


@pytest.mark.parametrize("form", ["nifti", "dicom-seg"])
def test_errors_quote_nothing_of_the_header(form: str, handler: FrameHandler) -> None:
    whole = saved(ultrasound(cine(3), PixelSpacing=["1111", "2222"]))
    spoilt = whole.replace(b"1111\\2222", b"Doe.\\Jane")
    assert spoilt != whole
    with pytest.raises(InvalidImageError) as refused:
        ask(handler, spoilt, {"format": form})
    assert "Doe" not in refused.value.message
    assert "Jane" not in refused.value.message


def test_work_stops_when_nobody_waits_for_it(
    handler: FrameHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = 0
    run = handler.engine.run

    def slow(planes: Any) -> Any:
        nonlocal runs
        runs += 1
        time.sleep(0.6)
        return run(planes)

    monkeypatch.setattr(handler.engine, "run", slow)
    with pytest.raises(DeadlineError, match="of 30 frames done"):
        ask(handler, saved(ultrasound(cine(30))), deadline_ms=b"1000")
    assert runs < 5  # of ten batches


def test_frames_pass_in_batches_of_the_stated_size(
    handler: FrameHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    run = handler.engine.run

    def counted(planes: Any) -> Any:
        sizes.append(len(planes))
        return run(planes)

    monkeypatch.setattr(handler.engine, "run", counted)
    ask(handler, saved(ultrasound(cine(8))))
    assert sizes == [3, 3, 2]


def test_an_artifact_with_another_output_never_gets_ready(handler: FrameHandler) -> None:
    with pytest.raises(ModelNotReadyError, match="belongs to another model"):
        handler.check_outputs({"logits": np.zeros((1, 2, 48, 64), np.float32)})
    with pytest.raises(ModelNotReadyError, match="belongs to another model"):
        handler.check_outputs({"mask": np.zeros((1, 1, 48, 64), np.float32)})


def test_dicom_seg_needs_codes(artifact: Path) -> None:
    plain = ready_for_frames(artifact, changed(frame={"snomed": {}}))
    with pytest.raises(InvalidRequestError, match="lacks codes"):
        ask(plain, saved(ultrasound(cine(3))), {"format": "dicom-seg"})


def test_the_proof_runs_on_the_golden_frame(artifact: Path) -> None:
    assert SIZE == (48, 64)
    golden = (artifact / "golden_input.png").read_bytes()
    outputs = ready_for_frames(artifact).reproduce(golden)
    assert outputs["logits"].shape == (1, 1, *SIZE)
