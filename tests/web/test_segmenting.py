"""Volumes in, masks and measures out; pictures that form."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import zipfile
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from medserve.errors import InvalidImageError, PayloadTooLargeError, ServerFailedError
from medserve.gateway.core.gateway import Gateway, Limits
from medserve.imaging.codecs import nifti
from medserve.spec import InputKind, Task
from tests.gateway.faces import SEGMENTATION, drawn, paired, two_images
from tests.gateway.fake_engine import FakeEngine, Request, model
from tests.tiny_volume_room import phantom
from tests.volume_phantoms import as_bytes, dicom_slices, oblique
from tests.web.visiting import LABELS, PACK, Visitor, answers, begin, gateway, pack, visit, visiting

VOLUME = phantom(oblique((9, 8, 7)))
NIFTI = nifti.encode(VOLUME)
SLICES = [as_bytes(each) for each in dicom_slices(VOLUME)]


def organs() -> Any:
    """A model that reads volumes of every kind."""
    info = model("organs", Task.VOLUMES, labels=LABELS)
    kinds = (InputKind.NIFTI, InputKind.DICOM, InputKind.NPY)
    spec = structs.replace(info.spec, input=structs.replace(info.spec.input, kinds=kinds))
    return replace(info, spec=spec)


def volumes(engine: FakeEngine | None = None, **guards: Any) -> Gateway:
    return gateway(engine, models=[organs()], **guards)


async def segmented_job(
    client: Visitor, files: dict[str, bytes], model: str = "organs", **options: bool | str
) -> str:
    job = await begin(client, "segment", model)
    sent = await client.post(f"{job}/volume", content=pack(files), headers=PACK)
    assert sent.status_code == 200, sent.text
    answer = await client.post(f"{job}/segmentation", json=options)
    assert answer.status_code == 200, answer.text
    return job


@visit(volumes)
async def test_a_volume_gets_its_mask_measures_and_colours(client: Visitor) -> None:
    job = await begin(client, "segment", "organs")
    await client.post(f"{job}/volume", content=pack({"a.nii.gz": NIFTI}), headers=PACK)
    answer = (await client.post(f"{job}/segmentation", json={})).json()
    assert answer["volumes_ml"] == SEGMENTATION.volumes_ml
    assert answer["measures"] == [each.to_json() for each in SEGMENTATION.measures]
    assert answer["parts"] == ["mask.nii.gz", "overlay.png"]
    assert answer["colours"] == ["#000000", "#e69f00"]
    assert "mask_nifti" not in answer  # a file of its own
    assert answer["dicom"] is False
    mask = nifti.decode((await client.get(f"{job}/mask.nii.gz")).content)
    np.testing.assert_array_equal(mask.array, SEGMENTATION.mask)
    assert (await client.get(f"{job}/overlay.png")).content == b"overlay"
    assert (await client.get(job)).json()["answer"] == answer


@visit(volumes)
async def test_a_nifti_comes_back_to_the_viewer_as_it_went(client: Visitor) -> None:
    job = await segmented_job(client, {"a.nii.gz": NIFTI})
    assert (await client.get(f"{job}/volume")).content == NIFTI


def test_the_slices_of_a_series_travel_as_one_zip_and_come_back_as_nifti() -> None:
    engine = FakeEngine(answers)
    slices = {f"series/{n}.dcm": content for n, content in enumerate(SLICES)}

    async def run() -> None:
        async with visiting(volumes(engine)) as (_, [client]):
            job = await segmented_job(client, slices)
            found = nifti.decode((await client.get(f"{job}/volume")).content)
            assert found.array.size == VOLUME.array.size
            np.testing.assert_allclose(
                sorted(found.geometry.spacing_mm), sorted(VOLUME.geometry.spacing_mm), atol=1e-4
            )
            seg = await client.get(f"{job}/mask.dcm")
            assert seg.content == b"the mask as dicom-seg"
            assert "attachment" in seg.headers["content-disposition"]
            assert (await client.get(job)).json()["answer"]["dicom"] is True

    asyncio.run(run())
    with zipfile.ZipFile(io.BytesIO(engine.requests[0].inputs["data"])) as archive:
        assert [archive.read(name) for name in archive.namelist()] == list(slices.values())


def test_slices_that_come_later_count_in_the_next_run_and_in_no_file_of_the_one_before() -> None:
    engine = FakeEngine(answers)
    early, late = (
        {f"{n}.dcm": each for n, each in enumerate(part)} for part in (SLICES[:4], SLICES[4:])
    )

    async def run() -> tuple[list[int], list[bytes]]:
        async with visiting(volumes(engine)) as (_, [client]):
            job = await segmented_job(client, early)
            sizes = [nifti.decode((await client.get(f"{job}/volume")).content).array.size]
            await client.get(f"{job}/mask.dcm")
            await client.post(f"{job}/volume", content=pack(late, first=4), headers=PACK)
            for _ in range(2):
                sizes.append(nifti.decode((await client.get(f"{job}/volume")).content).array.size)
                await client.get(f"{job}/mask.dcm")
                await client.post(f"{job}/segmentation", json={})
            return sizes, [request.inputs["data"] for request in engine.requests]

    sizes, sent = asyncio.run(run())
    whole = VOLUME.array.size
    assert sizes == [sizes[0], sizes[0], whole]
    assert sizes[0] < whole
    counts = []
    for each in sent:
        with zipfile.ZipFile(io.BytesIO(each)) as archive:
            counts.append(len(archive.namelist()))
    everything = len(SLICES)
    assert counts == [4, 4, everything, everything, everything]


def test_a_run_takes_no_more_than_one_request_may_hold_and_counts_it() -> None:
    engine = FakeEngine(answers, hold=asyncio.Event())
    to = volumes(engine, limits=Limits(message_bytes=2**20 + 1500))

    async def run() -> None:
        async with visiting(to) as (_, [client]):
            job = await begin(client, "segment", "organs")
            for number in range(2):
                upload = pack({f"{number}.dcm": bytes(1000)}, first=number)
                await client.post(f"{job}/volume", content=upload, headers=PACK)
                if not number:
                    running = asyncio.create_task(client.post(f"{job}/segmentation", json={}))
                    while not engine.requests:
                        await asyncio.sleep(0.01)
                    assert to.budget.reserved == 1000
                    assert engine.hold is not None
                    engine.hold.set()
                    await running
            refused = await client.post(f"{job}/segmentation", json={})
            assert (refused.status_code, to.budget.reserved) == (413, 0)

    asyncio.run(run())


def test_chosen_options_reach_the_model_and_others_are_left_to_it() -> None:
    engine = FakeEngine(answers)

    async def run() -> None:
        async with visiting(volumes(engine)) as (_, [client]):
            job = await segmented_job(client, {"a.nii.gz": NIFTI}, flips=False, fill_holes=True)
            await client.get(f"{job}/mask.dcm")
            for wrong in ({"flips": 1}, {"spacing_mm": True}, {"flips": None}):
                refused = await client.post(f"{job}/segmentation", json=wrong)
                assert refused.status_code == 400

    asyncio.run(run())
    first, second = (json.loads(request.inputs["params"]) for request in engine.requests)
    assert first == {"output": "json", "overlay": True, "flips": False, "fill_holes": True}
    assert second == {"output": "mask", "format": "dicom-seg", "flips": False, "fill_holes": True}


def test_options_that_are_longer_than_any_choice_are_not_kept() -> None:
    long = {"select": "series=" + "1" * 5000}

    async def run() -> None:
        async with visiting(volumes()) as (site, [client]):
            job = await segmented_job(client, {"a.nii.gz": NIFTI}, select="series=1")
            refused = await client.post(f"{job}/segmentation", json=long)
            begun = {"kind": "segment", "model": "organs", "options": long}
            for response in (refused, await client.post("/jobs", json=begun)):
                assert response.status_code == 400
                assert "at most 4096 bytes" in response.json()["error"]["message"]
            [kept] = site.jobs._jobs.values()
            assert kept.options["select"] == "series=1"

    asyncio.run(run())


@visit(volumes)
async def test_an_earlier_run_leaves_no_file_that_a_later_one_does_not_have(
    client: Visitor,
) -> None:
    job = await segmented_job(client, {"a.nii.gz": NIFTI}, uncertainty=True)
    assert (await client.get(f"{job}/entropy.nii.gz")).content == b"uncertainty"
    again = await client.post(f"{job}/segmentation", json={})
    assert "entropy.nii.gz" not in again.json()["parts"]
    assert (await client.get(f"{job}/entropy.nii.gz")).status_code == 400


@visit(volumes)
async def test_what_is_not_there_yet_is_refused_with_its_reason(client: Visitor) -> None:
    job = await begin(client, "segment", "organs")
    for answer in (
        await client.post(f"{job}/segmentation", json={}),
        await client.get(f"{job}/mask.nii.gz"),
        await client.get(f"{job}/volume"),
        await client.get(f"{job}/000000"),
    ):
        assert answer.status_code == 400
    for name in ("..%2F..%2Fetc%2Fpasswd", "%2e%2e", "source"):
        assert (await client.get(f"{job}/{name}")).status_code in (400, 404)


def test_a_file_that_the_model_refuses_is_not_decoded_here() -> None:
    def refuse(request: Request) -> bytes:
        raise InvalidImageError("expected a whole DICOM series, got a decompression bomb")

    async def run() -> None:
        async with visiting(volumes(FakeEngine(refuse))) as (_, [client]):
            job = await begin(client, "segment", "organs")
            await client.post(f"{job}/volume", content=pack({"a.zip": b"PK\3\4"}), headers=PACK)
            answer = await client.post(f"{job}/segmentation", json={})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_IMAGE")
            assert (await client.get(f"{job}/volume")).status_code == 400

    asyncio.run(run())


def test_a_volume_above_the_gateways_message_size_is_refused_while_it_comes() -> None:
    async def run() -> None:
        limits = Limits(message_bytes=2**20 + 1000)
        async with visiting(volumes(limits=limits)) as (_, [client]):
            job = await begin(client, "segment", "organs")
            large = pack({"a.nii.gz": bytes(1001)})
            answer = await client.post(f"{job}/volume", content=large, headers=PACK)
            assert answer.json()["error"]["code"] == PayloadTooLargeError.code

    asyncio.run(run())


@visit()
async def test_pictures_come_line_by_line_while_they_form(client: Visitor) -> None:
    wish = {"model": "sampler", "n": 2, "seed": 5, "steps": 2, "class": "t1", "sampler": "ddim"}
    lines = []
    async with client.stream("POST", "/samples", json=wish) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            lines.append(json.loads(line))
    assert [line["event"] for line in lines] == ["progress", "progress", "image", "image"]
    assert [line["step"] for line in lines[:2]] == [1, 2]
    assert [line["seed"] for line in lines[2:]] == [5, 6]
    assert all(line["png"] for line in lines)


@pytest.mark.parametrize(
    ("wanted", "files"),
    [
        ("dicom", [("dcm", 0, b"dicom 0"), ("dcm", 1, b"dicom 1")]),
        ("npz", [("npz", None, b"npz")]),
        ("nifti", [("nii.gz", None, b"nifti")]),
        ("png", []),
    ],
)
def test_files_that_were_asked_for_come_as_lines_of_their_own(
    wanted: str, files: list[tuple[str, int | None, bytes]]
) -> None:
    async def run() -> None:
        async with visiting(gateway()) as (_, [client]):
            wish = {"model": "sampler", "n": 2, "format": wanted}
            answer = await client.post("/samples", json=wish)
            lines = [json.loads(line) for line in answer.text.splitlines()]
            found = [line for line in lines if line["event"] == "file"]
            assert [
                (line["suffix"], line["image"], base64.b64decode(line["content"])) for line in found
            ] == files
            assert not any("dicom" in line.get("details", {}) for line in lines)

    asyncio.run(run())


@pytest.mark.parametrize(
    "wish",
    [
        {"n": 0}, {"n": 65}, {"n": "4"}, {"n": True}, {"seed": -1}, {"steps": 10**9},
        {"class": 7}, {"class": "x" * 81}, {"output_path": "/etc"},
    ],
    ids=str,
)  # fmt: skip
def test_a_wish_that_makes_no_sense_is_refused(wish: dict[str, object]) -> None:
    async def run() -> None:
        async with visiting(gateway()) as (_, [client]):
            answer = await client.post("/samples", json={"model": "sampler", **wish})
            assert answer.status_code == 400
            assert (await client.post("/samples", json={"model": "kinds"})).status_code == 400

    asyncio.run(run())


def test_a_stream_that_breaks_ends_with_the_reason() -> None:
    def breaks(request: Request) -> list[bytes]:
        return [*drawn(request)[:1], b"no JSON"]

    def refuses(request: Request) -> bytes:
        raise ServerFailedError("a bug")

    async def run() -> None:
        async with visiting(gateway(FakeEngine(breaks))) as (_, [client]):
            answer = await client.post("/samples", json={"model": "sampler"})
            lines = [json.loads(line) for line in answer.text.splitlines()]
            assert [line["event"] for line in lines] == ["progress", "error"]
            assert lines[1]["error"]["code"] == "INTERNAL"
        async with visiting(gateway(FakeEngine(refuses))) as (_, [client]):
            assert (await client.post("/samples", json={"model": "sampler"})).status_code == 500

    asyncio.run(run())


@pytest.mark.parametrize(
    ("numbers", "status", "keys"),
    [
        ((0, 1), 200, {"data.t1": NIFTI, "data.flair": b"second"}),
        ((0,), 200, {"data": NIFTI}),
        ((1, 2), 400, None),
    ],
)
def test_files_of_several_images_are_channels_by_their_numbers(
    numbers: tuple[int, ...], status: int, keys: dict[str, bytes] | None
) -> None:
    engine = FakeEngine(paired)
    files = dict(zip(("a_0000.nii.gz", "a_0001.nii.gz"), (NIFTI, b"second"), strict=True))

    async def run() -> None:
        async with visiting(gateway(engine, models=[two_images()])) as (_, [client]):
            job = await begin(client, "segment", "tumour")
            some = dict(list(files.items())[: len(numbers)])
            sent = pack(some, numbers[0])
            await client.post(f"{job}/volume", content=sent, headers=PACK)
            answer = await client.post(f"{job}/segmentation", json={})
            assert answer.status_code == status, answer.text
            if status == 200:
                assert (await client.get(f"{job}/volume")).content == NIFTI
            else:
                assert "each of t1, flair" in answer.text

    asyncio.run(run())
    found = [{k: v for k, v in each.inputs.items() if k != "params"} for each in engine.requests]
    assert found == ([] if keys is None else [keys])
