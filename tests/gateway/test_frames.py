"""The typed `Segment` call hands on what a model of frames answers."""

from __future__ import annotations

import json

import pytest

from medserve.errors import InvalidRequestError
from medserve.gateway.faces.v1.messages import segment_result
from medserve.imaging.codecs import nifti
from medserve.spec import Task
from medserve.wire.v1 import imaging_pb2 as pb
from tests.client.framing import LABELS, by_frame_size
from tests.gateway.faces import DIGEST, reason


def answer(payload: bytes) -> bytes:
    head = {"model": "gland", "version": "1.0", "archive_digest": DIGEST}
    return json.dumps({**head, **by_frame_size(payload)}).encode()


def test_a_frame_comes_with_its_mask_and_picture() -> None:
    result, files = segment_result(answer(b"x" * 90), Task.FRAMES)
    assert tuple(result.labels) == LABELS
    assert list(result.shape) == [30, 20, 1]  # columns, rows, frames
    roles = {file.role: file.content for file in files}
    assert roles[pb.FILE_ROLE_OVERLAY] == b"PNG"
    assert roles[pb.FILE_ROLE_MASK] == b"DICM"  # it was asked for
    assert list(result.measures) == []  # one plane has no volume


def test_the_mask_of_a_stack_lies_on_the_grid_that_is_told() -> None:
    result, files = segment_result(without_dicom(b"loop" + b"x" * 56), Task.FRAMES)
    mask = nifti.decode(next(each.content for each in files if each.role == pb.FILE_ROLE_MASK))
    assert mask.array.shape == tuple(result.shape) == (30, 20, 3)
    assert list(result.spacing_mm) == pytest.approx([0.3, 0.2, 5.0])
    assert mask.array.sum(axis=(0, 1)).tolist() == [60, 60, 0]


def test_every_frame_has_its_measurements_or_its_error_and_the_stack_its_own() -> None:
    result, _ = segment_result(answer(b"loop" + b"x" * 56), Task.FRAMES)
    grid = result.grid
    assert (grid.rows, grid.columns, grid.frames, grid.step_mm) == (20, 30, 3, 5.0)
    assert list(grid.spacing_mm) == [0.2, 0.3]
    assert result.view == "stored"
    assert (result.stack.frames_found, result.stack.largest_frame) == (2, 0)
    assert result.stack.area_cm2 == pytest.approx(60 * 0.06 / 100)
    assert not result.stack.HasField("volume_ml")  # the frame that failed may have held a part
    assert [frame.WhichOneof("outcome") for frame in result.frames] == [
        "measure", "measure", "error",
    ]  # fmt: skip
    first = result.frames[0].measure
    assert (first.pixels, list(first.box_start), list(first.box_stop)) == (60, [0, 0], [2, 30])
    assert reason(result.frames[2].error) == "INVALID_IMAGE"


def test_lengths_that_nobody_states_are_absent() -> None:
    content = json.loads(answer(b"x" * 90))
    content["stack"] |= {"area_cm2": None, "width_mm": None}
    content["grid"]["spacing_mm"] = None
    result, _ = segment_result(json.dumps(content).encode(), Task.FRAMES)
    assert not result.stack.HasField("area_cm2")
    assert list(result.grid.spacing_mm) == []


def test_the_mask_of_a_single_frame_comes_as_png_where_that_is_asked_for() -> None:
    _, files = segment_result(without_dicom(b"x" * 90), Task.FRAMES, "png")
    assert (files[0].role, files[0].media_type) == (pb.FILE_ROLE_MASK, "image/png")
    assert files[0].content.startswith(b"\x89PNG")
    with pytest.raises(InvalidRequestError, match="stack"):
        segment_result(without_dicom(b"loop" + b"x" * 56), Task.FRAMES, "png")


def without_dicom(payload: bytes) -> bytes:
    content = json.loads(answer(payload))
    del content["dicom_seg"]
    return json.dumps(content).encode()
