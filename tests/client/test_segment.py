"""Volumes through both clients: options, folders, many cases, errors."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medserve.client import (
    AsyncClient,
    Client,
    FileResult,
    Limits,
    Segmentation,
    VolumeFormat,
    VolumeOptions,
    VolumeResult,
)
from medserve.errors import (
    InvalidImageError,
    InvalidRequestError,
    PayloadTooLargeError,
    ServerFailedError,
    ServerUnreachableError,
    UnknownModelError,
)
from tests.client.fake_gateway import FakeGateway, failure, refusing, serving
from tests.client.segmenting import GEOMETRY, LABELS, by_size, volumes_model


@pytest.fixture
def fake() -> Iterator[FakeGateway]:
    with serving(FakeGateway(volumes_model(), answer=by_size)) as server:
        yield server


@pytest.fixture
def client(fake: FakeGateway) -> Iterator[Client]:
    with Client(fake.address, limits=Limits(attempts=1)) as client:
        yield client


def test_a_volume_gives_its_mask_with_volumes_and_grid(client: Client) -> None:
    options = VolumeOptions(overlay=True, uncertainty=True, format=VolumeFormat.DICOM_SEG)
    answer = client.segment("mednist", b"x" * 100, options=options)
    assert answer.volumes_ml == {"anterior": 0.2, "posterior": 0.002}
    segmentation = Segmentation.from_result(answer)
    assert segmentation.geometry == GEOMETRY
    assert segmentation.labels == LABELS
    assert answer.mask_nifti[:2] == b"\x1f\x8b"
    assert (answer.overlay_png, answer.entropy_nifti, answer.dicom_seg) == (
        b"PNG",
        b"ENTROPY",
        b"DICM",
    )
    assert answer.provenance.model == "mednist"


def test_only_what_was_decided_is_asked_for(client: Client, fake: FakeGateway) -> None:
    client.segment("mednist", b"x")
    client.segment(
        "mednist",
        b"x",
        options=VolumeOptions(
            channel=0,
            spacing_mm=(1.0, 2.0, 3.0),
            flips=False,
            largest_component=True,
            overlay=True,
            uncertainty=True,
            format=VolumeFormat.DICOM_SEG,
        ),
    )
    plain, full = (json.loads(request.inputs["params"]) for request in fake.requests)
    assert plain == {"output": "json"}
    assert full == {
        "output": "json",
        "format": "dicom-seg",
        "channel": 0,
        "spacing_mm": [1.0, 2.0, 3.0],
        "flips": False,
        "largest_component": True,
        "overlay": True,
        "uncertainty": True,
    }


def test_a_folder_travels_as_one_zip_without_names(
    client: Client, fake: FakeGateway, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "Doe^John.dcm").write_bytes(b"one")
    (tmp_path / "sub" / "2.dcm").write_bytes(b"two")
    (tmp_path / ".DS_Store").write_bytes(b"no")
    (tmp_path / "link.dcm").symlink_to(tmp_path / "Doe^John.dcm")
    client.segment("mednist", tmp_path)
    sent = zipfile.ZipFile(io.BytesIO(fake.requests[0].inputs["data"]))
    assert [sent.read(name) for name in sent.namelist()] == [b"one", b"two"]
    assert all(name.isdigit() for name in sent.namelist())


def test_an_empty_or_too_large_folder_is_refused_unsent(fake: FakeGateway, tmp_path: Path) -> None:
    with Client(fake.address, limits=Limits(message_bytes=50_000)) as client:
        with pytest.raises(InvalidRequestError, match="got none"):
            client.segment("mednist", tmp_path)
        (tmp_path / "large").write_bytes(np.random.default_rng(0).bytes(60_000))
        with pytest.raises(PayloadTooLargeError, match="bytes"):
            client.segment("mednist", tmp_path)
    assert not fake.requests


def test_a_link_out_of_a_folder_is_refused_unsent(fake: FakeGateway, tmp_path: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "1.dcm").write_bytes(b"one")
    (tmp_path / "2.dcm").write_bytes(b"two")
    (folder / "2.dcm").symlink_to(tmp_path / "2.dcm")
    with (
        Client(fake.address) as client,
        pytest.raises(InvalidRequestError, match="link out of the folder"),
    ):
        client.segment("mednist", folder)
    assert not fake.requests


def test_the_error_of_a_volume_is_raised(client: Client) -> None:
    with pytest.raises(InvalidImageError, match="send a volume"):
        client.segment("mednist", b"broken")


def test_an_error_that_comes_as_a_status_is_the_same_error(
    client: Client, fake: FakeGateway
) -> None:
    fake.hooks = [refusing(PayloadTooLargeError("expected at most 7 voxels, got 8"))]
    with pytest.raises(PayloadTooLargeError, match="at most 7 voxels"):
        client.segment("mednist", b"x")


def test_many_volumes_come_in_order_and_a_broken_one_costs_no_other(
    client: Client, fake: FakeGateway, tmp_path: Path
) -> None:
    missing = tmp_path / "missing.nii"
    cases: list[bytes | Path] = [b"x" * 10, missing, b"broken", b"x" * 20, b"x" * 30]
    results = list(client.segment_each("mednist", cases))
    assert [type(each.error) for each in results] == [
        type(None),
        InvalidRequestError,
        InvalidImageError,
        type(None),
        type(None),
    ]
    found = [each.unwrap().volumes_ml["anterior"] for each in results if each.result]
    assert found == pytest.approx([0.02, 0.04, 0.06])
    assert fake.most_in_flight <= 2
    with pytest.raises(InvalidImageError):
        results[2].unwrap()


def test_what_concerns_every_volume_is_raised(client: Client) -> None:
    with pytest.raises(UnknownModelError):
        list(client.segment_each("nosuch", [b"x", b"y"]))


def _sometimes(code: str, sign: bytes) -> Callable[[bytes], dict[str, Any]]:
    """Answers of a model whose calls fail where the payload begins with `sign`."""
    return lambda payload: failure(code, "no") if payload.startswith(sign) else by_size(payload)


@pytest.mark.parametrize("code", ["INVALID_REQUEST", "UNREACHABLE", "UNAUTHENTICATED"])
def test_one_failed_call_among_answers_costs_no_other(
    client: Client, fake: FakeGateway, code: str
) -> None:
    fake.answer = _sometimes(code, b"no")
    payloads = [b"x", b"x", b"no", b"x", b"x", b"no", b"x"]
    results = list(client.segment_each("mednist", payloads))
    assert [each.error is None for each in results] == [each == b"x" for each in payloads]
    assert {each.error.code for each in results if each.error} == {code}


def test_a_run_ends_when_every_further_call_fails(client: Client, fake: FakeGateway) -> None:
    fake.answer = _sometimes("UNREACHABLE", b"no")
    with pytest.raises(ServerUnreachableError):
        list(client.segment_each("mednist", [b"x"] * 2 + [b"no"] * 20))
    assert len(fake.requests) < 8


def test_volumes_that_nobody_waits_for_are_not_sent(client: Client, fake: FakeGateway) -> None:
    stream = client.segment_each("mednist", [b"x"] * 50)
    next(stream)
    stream.close()
    assert len(fake.requests) <= 3


def test_a_classifier_s_answer_is_no_mask(fake: FakeGateway, client: Client) -> None:
    fake.answer = lambda payload: {"status": "ok", "label": "Hand"}
    with pytest.raises(ServerFailedError, match="segmentation with its mask"):
        client.segment("mednist", b"x")
    fake.answer = lambda payload: {**by_size(b"x"), "overlay_png": "no base64!"}
    with pytest.raises(ServerFailedError, match="overlay_png"):
        client.segment("mednist", b"x", options=VolumeOptions(overlay=True))


def test_the_other_client_gives_the_same(fake: FakeGateway, client: Client, tmp_path: Path) -> None:
    async def one() -> VolumeResult:
        async with AsyncClient(fake.address) as other:
            return await other.segment("mednist", tmp_path / "case.nii")

    async def many() -> list[FileResult[VolumeResult]]:
        async with AsyncClient(fake.address) as other:
            cases: list[bytes | Path] = [b"x" * 5, b"broken", tmp_path / "missing"]
            return [each async for each in other.segment_each("mednist", cases)]

    (tmp_path / "case.nii").write_bytes(b"x" * 40)
    assert asyncio.run(one()).volumes_ml == client.segment("mednist", b"x" * 40).volumes_ml
    good, bad, missing = asyncio.run(many())
    assert good.unwrap().volumes_ml["anterior"] == pytest.approx(0.01)
    assert (type(bad.error), type(missing.error)) == (InvalidImageError, InvalidRequestError)
