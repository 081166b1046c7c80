"""Frames through both clients: options, loops, many files, errors."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medserve.client import (
    AsyncClient,
    Client,
    FileResult,
    FrameFormat,
    FrameOptions,
    FrameResult,
    FrameSegmentation,
    Limits,
    View,
)
from medserve.errors import (
    InvalidImageError,
    InvalidRequestError,
    ServerFailedError,
    UnknownModelError,
)
from tests.client.fake_gateway import FakeGateway, serving
from tests.client.framing import GRID, LABELS, LOOP, by_frame_size, frames_model


@pytest.fixture
def fake() -> Iterator[FakeGateway]:
    with serving(FakeGateway(frames_model(), answer=by_frame_size)) as server:
        yield server


@pytest.fixture
def client(fake: FakeGateway) -> Iterator[Client]:
    with Client(fake.address, limits=Limits(attempts=1)) as client:
        yield client


def test_a_frame_gives_its_mask_and_area(client: Client) -> None:
    options = FrameOptions(overlay=True, format=FrameFormat.DICOM_SEG)
    answer = client.segment_frame("mednist", b"x" * 90, options=options)
    found = FrameSegmentation.from_result(answer)
    assert found.grid == GRID
    assert found.labels == LABELS
    assert found.mask.shape == (1, 20, 30)
    assert found.mask.sum() == 90
    assert answer.stack.area_cm2 == pytest.approx(90 * 0.2 * 0.3 / 100)
    assert answer.mask_png is not None
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(answer.mask_png))), 255 * found.mask[0]
    )
    assert (answer.overlay_png, answer.dicom_seg) == (b"PNG", b"DICM")
    assert answer.provenance.model == "mednist"


def test_a_loop_tells_the_status_of_each_frame(client: Client) -> None:
    answer = client.segment_frame("mednist", b"loop" + b"x" * 56)
    found = FrameSegmentation.from_result(answer)
    assert found.grid == LOOP
    assert [each.error is None for each in found.frames] == [True, True, False]
    assert isinstance(found.frames[2].error, InvalidImageError)
    assert found.frames[2].measure is None
    assert found.failed == 1
    assert found.mask.sum(axis=(1, 2)).tolist() == [60, 60, 0]


def test_only_what_was_decided_is_asked_for(client: Client, fake: FakeGateway) -> None:
    client.segment_frame("mednist", b"x")
    client.segment_frame(
        "mednist",
        b"x",
        options=FrameOptions(
            view=View.AXIAL,
            spacing_mm=(0.2, 0.3),
            step_mm=5.0,
            length_mm=41.0,
            flips=True,
            largest_component=False,
            fill_holes=True,
            overlay=True,
            format=FrameFormat.DICOM_SEG,
        ),
    )
    plain, full = (json.loads(request.inputs["params"]) for request in fake.requests)
    assert plain == {"output": "json"}
    assert full == {
        "output": "json",
        "format": "dicom-seg",
        "view": "axial",
        "spacing_mm": [0.2, 0.3],
        "step_mm": 5.0,
        "length_mm": 41.0,
        "flips": True,
        "largest_component": False,
        "fill_holes": True,
        "overlay": True,
    }


def test_many_files_come_in_order_and_a_broken_one_costs_no_other(
    client: Client, fake: FakeGateway, tmp_path: Path
) -> None:
    files: list[bytes | Path] = [b"x" * 10, tmp_path / "missing.png", b"broken", b"x" * 30]
    results = list(client.segment_frames("mednist", files))
    errors = [type(each.error) for each in results]
    assert errors == [type(None), InvalidRequestError, InvalidImageError, type(None)]
    assert [
        FrameSegmentation.from_result(each.unwrap()).mask.sum() for each in results if each.result
    ] == [10, 30]
    assert fake.most_in_flight <= 2
    with pytest.raises(InvalidImageError):
        results[2].unwrap()


def test_what_concerns_every_file_is_raised(client: Client) -> None:
    with pytest.raises(UnknownModelError):
        list(client.segment_frames("nosuch", [b"x", b"y"]))


def test_files_that_nobody_waits_for_are_not_sent(client: Client, fake: FakeGateway) -> None:
    stream = client.segment_frames("mednist", [b"x"] * 50)
    next(stream)
    stream.close()
    assert len(fake.requests) <= 3


def test_another_answer_is_no_mask(fake: FakeGateway, client: Client) -> None:
    fake.answer = lambda payload: {"status": "ok", "label": "Hand"}
    with pytest.raises(ServerFailedError, match="masks of frames"):
        client.segment_frame("mednist", b"x")
    good = by_frame_size(b"x")
    for spoilt in (
        {**good, "view": "top"},
        {**good, "frames": []},
        {**good, "frames": [{"status": "ok"}]},
        {**good, "frames": [{"status": "error"}]},
        {**good, "stack": {"frames_found": "many"}},
        {**good, "grid": {"rows": 20}},
        {**good, "mask_nifti": "no base64!"},
    ):
        fake.answer = lambda payload, answer=spoilt: answer  # type: ignore[misc]
        with pytest.raises(ServerFailedError):
            FrameSegmentation.from_result(client.segment_frame("mednist", b"x"))


def test_the_other_client_gives_the_same(fake: FakeGateway, client: Client, tmp_path: Path) -> None:
    async def one() -> FrameResult:
        async with AsyncClient(fake.address) as other:
            return await other.segment_frame("mednist", tmp_path / "frame.png")

    async def many() -> list[FileResult[FrameResult]]:
        async with AsyncClient(fake.address) as other:
            files: list[bytes | Path] = [b"x" * 5, b"broken", tmp_path / "missing"]
            return [each async for each in other.segment_frames("mednist", files)]

    (tmp_path / "frame.png").write_bytes(b"x" * 40)
    assert asyncio.run(one()).stack == client.segment_frame("mednist", b"x" * 40).stack
    good, bad, missing = asyncio.run(many())
    assert FrameSegmentation.from_result(good.unwrap()).mask.sum() == 5
    assert (type(bad.error), type(missing.error)) == (InvalidImageError, InvalidRequestError)
