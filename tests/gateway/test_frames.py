"""The typed `Segment` call hands on what a model of frames answers."""

from __future__ import annotations

import json

import pytest

from medserve.gateway.faces.v1.messages import segment_result
from medserve.imaging.codecs import nifti
from medserve.wire.v1 import imaging_pb2 as pb
from tests.client.framing import LABELS, by_frame_size
from tests.gateway.faces import DIGEST


def answer(payload: bytes) -> bytes:
    head = {"model": "gland", "version": "1.0", "archive_digest": DIGEST}
    return json.dumps({**head, **by_frame_size(payload)}).encode()


def test_a_frame_comes_with_its_mask_and_picture() -> None:
    result, files = segment_result(answer(b"x" * 90))
    assert tuple(result.labels) == LABELS
    assert list(result.shape) == [30, 20, 1]  # columns, rows, frames
    roles = {file.role: file.content for file in files}
    assert roles[pb.FILE_ROLE_OVERLAY] == b"PNG"
    assert roles[pb.FILE_ROLE_MASK] == b"DICM"  # it was asked for
    assert list(result.measures) == []  # one plane has no volume


def test_the_mask_of_a_stack_lies_on_the_grid_that_is_told() -> None:
    content = json.loads(answer(b"loop" + b"x" * 56))
    del content["dicom_seg"]
    result, files = segment_result(json.dumps(content).encode())
    mask = nifti.decode(next(each.content for each in files if each.role == pb.FILE_ROLE_MASK))
    assert mask.array.shape == tuple(result.shape) == (30, 20, 3)
    assert list(result.spacing_mm) == pytest.approx([0.3, 0.2, 5.0])
    assert mask.array.sum(axis=(0, 1)).tolist() == [60, 60, 0]
