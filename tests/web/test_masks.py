"""Masks that a person corrected: on the volume's grid or refused, and pairs for training."""

from __future__ import annotations

import asyncio
import base64
import csv
import io
import json
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from msgspec import structs
from PIL import Image

from medserve.gateway.faces.page.jobs import PageLimits
from medserve.imaging.codecs import nifti
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from tests.client.framing import GRID as FRAMES
from tests.client.framing import LOOP
from tests.frame_phantoms import as_nifti
from tests.gateway.faces import SEGMENTATION
from tests.gateway.fake_engine import FakeEngine
from tests.phantoms import raster_bytes
from tests.volume_phantoms import as_bytes, dicom_slices
from tests.web.test_frames import frame_model, frames, loops, segmented
from tests.web.test_segmenting import organs, segmented_job, volumes
from tests.web.test_sessions import Tokens, log_in
from tests.web.visiting import Visitor, answers, begin, gateway, send, visit, visiting
from training.frames.data import find_frames, read_frame
from training.frames.data import read_mask as frame_mask
from training.volumes.data import find_cases, read_mask

pytestmark = pytest.mark.cpu  # volumes are decoded and encoded several times

GRID = SEGMENTATION.geometry
GREY = Volume(SEGMENTATION.mask.astype(np.float32) * 7 + 1, GRID)
IMAGE = nifti.encode(GREY)
SMALLER = (GRID.shape[0] - 1, *GRID.shape[1:])


def corrected(label: int = 0) -> npt.NDArray[np.float32]:
    """The model's mask with three voxels of another label, as a program of floats saves it."""
    mask = SEGMENTATION.mask.astype(np.float32)
    mask[tuple(axis[:3] for axis in np.nonzero(mask))] = label
    return mask


def moved(by_mm: float) -> Geometry:
    affine = GRID.affine.copy()
    affine[0, 3] += by_mm
    return Geometry(GRID.shape, affine)


async def post(client: Visitor, job: str, mask: bytes) -> tuple[int, str]:
    response = await client.post(f"{job}/corrected-mask", content=mask)
    return response.status_code, response.text


@pytest.mark.parametrize(
    "files",
    [
        {"Smith_John.nii.gz": IMAGE},
        {"Smith_John.nii": nifti.encode(GREY, compress=False)},
        {f"Smith/{n}.dcm": as_bytes(each) for n, each in enumerate(dicom_slices(GREY))},
    ],
    ids=["nii.gz", "nii", "dicom"],
)
def test_a_corrected_mask_and_its_volume_are_a_pair_that_training_reads(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    async def run() -> None:
        to = gateway(models=[organs()], tokens=Tokens())
        async with visiting(to) as (_, [client]):
            await log_in(client, target="/segment")
            job = await segmented_job(client, files)
            mask = nifti.encode(Volume(corrected(), moved(0.001)))
            status, text = await post(client, job, mask)
            assert (status, json.loads(text)["voxels_changed"]) == (200, 3)
            assert (await client.get(job)).json()["answer"]["correction"] == json.loads(text)
            content = (await client.get("/training-pairs.zip")).content
        assert b"Smith" not in content
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert archive.testzip() is None
            archive.extractall(tmp_path)

    asyncio.run(run())
    [case] = find_cases(tmp_path / "medserve-pairs/organs")
    image = nifti.decode(case.images[0].read_bytes())
    assert image.geometry.matches(GRID)
    np.testing.assert_allclose(image.array, GREY.array, atol=0.01)
    np.testing.assert_array_equal(read_mask(case, image, 2), corrected())
    table = (tmp_path / "medserve-pairs/organs/corrections.csv").read_text()
    [row] = csv.DictReader(io.StringIO(table))
    assert (row["voxels_changed"], row["corrected_by"], row["model"]) == ("3", "lab", "organs")
    described = json.loads((tmp_path / "medserve-pairs/organs/dataset.json").read_text())
    assert described["labels"] == {label: n for n, label in enumerate(SEGMENTATION.labels)}


def test_corrected_masks_of_several_models_are_a_data_set_for_each() -> None:
    other = replace(organs(), spec=structs.replace(organs().spec, name="vessels"))

    async def run() -> None:
        engine = FakeEngine(lambda request: answers(replace(request, model="organs")))
        async with visiting(gateway(engine, models=[organs(), other])) as (_, [client]):
            for model in ("organs", "vessels"):  # the same image, so the same name in both
                job = await segmented_job(client, {"a.nii.gz": IMAGE}, model=model)
                assert (await post(client, job, nifti.encode(Volume(corrected(), GRID))))[0] == 200
            content = (await client.get("/training-pairs.zip")).content
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
        for model in ("organs", "vessels"):
            own = [name for name in names if name.startswith(f"medserve-pairs/{model}/")]
            assert sorted(Path(name).name for name in own)[-2:] == [
                "corrections.csv",
                "dataset.json",
            ]
            assert len(own) == 4

    asyncio.run(run())


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (nifti.encode(Volume(corrected()[:-1], GRID.with_shape(SMALLER))), "has the shape"),
        (nifti.encode(Volume(corrected(), moved(2.5))), "corners are up to 2.50 mm apart"),
        (nifti.encode(Volume(corrected(label=7), GRID)), "this one has 0, 1, 7. Save label ids"),
        (b"no mask", "NIfTI"),
        (b"", "NIfTI"),
    ],
    ids=["shape", "affine", "labels", "text", "nothing"],
)  # fmt: skip
def test_a_mask_that_is_not_of_this_volume_is_refused_in_a_sentence(mask: bytes, said: str) -> None:
    async def run() -> None:
        async with visiting(volumes()) as (_, [client]):
            job = await segmented_job(client, {"a.nii.gz": IMAGE})
            status, text = await post(client, job, mask)
            assert (status, said in text) == (400, True), text
            assert "correction" not in (await client.get(job)).json()["answer"]
            assert (await client.get("/training-pairs.zip")).status_code == 400

    asyncio.run(run())


@visit(volumes)
async def test_another_answer_ends_the_correction_of_the_earlier_one(client: Visitor) -> None:
    job = await segmented_job(client, {"a.nii.gz": IMAGE})
    await post(client, job, nifti.encode(Volume(corrected(), GRID)))
    assert (await client.get(f"{job}/corrected.nii.gz")).status_code == 200
    assert (await client.post(f"{job}/segmentation", json={})).status_code == 200
    assert (await client.get(f"{job}/corrected.nii.gz")).status_code == 400
    assert (await client.get("/training-pairs.zip")).status_code == 400


FRAME = np.random.default_rng(7).integers(0, 255, FRAMES.size, dtype=np.uint8)


def drawn(value: int = 255) -> npt.NDArray[np.uint8]:
    """The fake model's mask of a frame with three pixels less."""
    mask = np.zeros(FRAMES.size, dtype=np.uint8)
    mask.flat[3:40] = value
    return mask


def on_the_grid(mask: npt.NDArray[np.uint8]) -> bytes:
    """As a NIfTI file that repeats the header of the model's mask."""
    count, *size = mask.shape
    grid = replace(FRAMES if count == 1 else LOOP, size=tuple(size), count=count)
    geometry = grid.space().geometry(grid.shape)
    return nifti.encode(nifti.NiftiVolume(mask.transpose(2, 1, 0), geometry, grid.space()))


@pytest.mark.parametrize(
    "mask",
    [
        raster_bytes(drawn()),
        raster_bytes(np.repeat(drawn()[..., np.newaxis], 3, axis=2)),
        raster_bytes(drawn(1)),
        on_the_grid(drawn(1)[np.newaxis]),
    ],
    ids=["black and white", "rgb", "label ids", "nifti"],
)
def test_a_corrected_mask_of_a_frame_is_a_pair_that_training_reads(
    tmp_path: Path, mask: bytes
) -> None:
    async def run() -> None:
        async with visiting(frames()) as (_, [client]):
            job, _ = await segmented(client, "Smith.png", raster_bytes(FRAME))
            status, text = await post(client, job, mask)
            assert (status, json.loads(text)["voxels_changed"]) == (200, 3)
            layers = (await client.get(f"{job}/layers")).json()
            shown = Image.open(io.BytesIO(base64.b64decode(layers["labels_png"])))
            np.testing.assert_array_equal(np.asarray(shown), drawn(1))
            content = (await client.get("/training-pairs.zip")).content
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            assert not [name for name in archive.namelist() if "Smith" in name]
            archive.extractall(tmp_path)

    asyncio.run(run())
    folder = tmp_path / "medserve-pairs" / frame_model().name
    assert not (folder / "dataset.json").exists()
    [case] = find_frames(folder)
    image = read_frame(case.image, frame_model().spec.input)
    np.testing.assert_array_equal(np.rint(255 * image.array), FRAME)
    np.testing.assert_array_equal(frame_mask(case, FRAMES.size), drawn(1))
    [row] = csv.DictReader(io.StringIO((folder / "corrections.csv").read_text()))
    assert case.patient == row["name"]


def test_frames_of_one_stack_are_of_one_patient_and_damaged_ones_are_left_out(
    tmp_path: Path,
) -> None:
    masks = np.stack([drawn(1), drawn(1), drawn(0)])

    async def run() -> None:
        async with visiting(loops()) as (_, [client]):
            stack = as_nifti(np.stack([FRAME] * 3).transpose(2, 1, 0))
            job, _ = await segmented(client, "stack.nii", stack)
            status, text = await post(client, job, raster_bytes(drawn()))
            assert (status, "the mask of one frame, this file has 3" in text) == (400, True)
            assert (await post(client, job, on_the_grid(masks)))[0] == 200
            content = (await client.get("/training-pairs.zip")).content
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            archive.extractall(tmp_path)

    asyncio.run(run())
    cases = find_frames(tmp_path / "medserve-pairs" / frame_model().name)
    assert len(cases) == 2
    assert len({case.patient for case in cases}) == 1
    for case in cases:
        np.testing.assert_array_equal(frame_mask(case, FRAMES.size), drawn(1))


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (raster_bytes(drawn()[:-1]), "This mask has 30 x 19 pixels, its frame 30 x 20."),
        (raster_bytes(drawn().T), "This mask has 20 x 30 pixels, its frame 30 x 20."),
        (raster_bytes(drawn() // 2), "this one has 0, 127. Save label ids"),
        (raster_bytes(drawn(7)), "this one has 0, 7. Save label ids"),
        (raster_bytes(drawn())[:60], "damaged or cut short"),
        (on_the_grid(drawn(1)[np.newaxis, :-1]), "has the shape"),
        (b"no mask", "NIfTI"),
    ],
    ids=["size", "turned", "soft edge", "labels", "cut", "nifti of another size", "text"],
)
def test_a_mask_that_is_not_of_this_frame_is_refused_in_a_sentence(mask: bytes, said: str) -> None:
    async def run() -> None:
        async with visiting(frames()) as (_, [client]):
            job, _ = await segmented(client, "a.png", raster_bytes(FRAME))
            status, text = await post(client, job, mask)
            assert (status, said in text) == (400, True), text
            assert (await client.get("/training-pairs.zip")).status_code == 400

    asyncio.run(run())


@visit()
async def test_only_a_segmented_volume_takes_a_mask(client: Visitor) -> None:
    job = await begin(client)
    await send(client, job, {"a.png": b"ok dark"})
    assert (await post(client, job, IMAGE))[0] == 404
    empty = await begin(client, "segment", "organs")
    status, text = await post(client, empty, IMAGE)
    assert (status, "segment a volume first" in text) == (400, True)


def test_a_pair_is_its_visitors_alone() -> None:
    async def run() -> None:
        async with visiting(volumes(), visitors=2) as (_, [one, other]):
            job = await segmented_job(one, {"a.nii.gz": IMAGE})
            mask = nifti.encode(Volume(corrected(), GRID))
            assert (await post(other, job, mask))[0] == 404
            assert (await post(one, job, mask))[0] == 200
            assert (await other.get("/training-pairs.zip")).status_code == 400

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["nifti", "dicom"])
def test_what_is_made_of_a_visitors_files_counts_among_their_bytes(kind: str) -> None:
    slices = {f"{n}.dcm": as_bytes(each) for n, each in enumerate(dicom_slices(GREY))}
    files = slices if kind == "dicom" else {"a.nii.gz": IMAGE}

    async def run() -> None:
        async with visiting(volumes()) as (site, [client]):
            path = await segmented_job(client, files)
            [job] = site.jobs._jobs.values()
            for step in (
                client.get(f"{path}/volume"),
                client.get(f"{path}/mask.dcm"),
                post(client, path, nifti.encode(Volume(corrected(), GRID))),
                client.post(f"{path}/segmentation", json={"flips": True}),
                client.get(f"{path}/mask.dcm"),
            ):
                await step
                assert job.size_bytes == sum(each.stat().st_size for each in job.folder.iterdir())

    asyncio.run(run())


def test_a_visitor_whose_results_have_passed_the_bound_makes_no_more_of_them() -> None:
    async def run() -> None:
        limits = PageLimits(job_bytes=len(IMAGE))
        async with visiting(volumes(), limits=limits) as (_, [client]):
            job = await segmented_job(client, {"a.nii.gz": IMAGE})
            refused = await client.post(f"{job}/segmentation", json={"flips": True})
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "QUOTA")
            assert (await client.get(f"{job}/mask.nii.gz")).status_code == 200

    asyncio.run(run())


def test_few_corrected_masks_are_decoded_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()

    def keep(*_: object) -> int:
        begun.release()
        assert go_on.wait(30)
        return 0

    monkeypatch.setattr("medserve.gateway.faces.page.masks._keep", keep)

    async def run() -> None:
        async with visiting(volumes()) as (site, [client]):
            job = await segmented_job(client, {"a.nii.gz": IMAGE})
            posts = [asyncio.create_task(post(client, job, IMAGE)) for _ in range(3)]
            for _ in range(2):
                assert await asyncio.to_thread(begun.acquire, timeout=30)
            while not site.slots.decoding._waiters:
                await asyncio.sleep(0.01)  # the third one waits
            assert not begun.acquire(blocking=False)
            go_on.set()
            assert {status for status, _ in await asyncio.gather(*posts)} == {200}

    asyncio.run(run())
