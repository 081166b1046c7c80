"""Frames through the real TorchServe: every kind of file, many files, errors, the command line."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pytest
from PIL import Image

import models
from medserve.client import (
    AsyncClient,
    Client,
    FrameFormat,
    FrameOptions,
    FrameResult,
    FrameSegmentation,
)
from medserve.errors import DeadlineError, InvalidImageError, InvalidRequestError
from medserve.wire import inference_pb2, inference_pb2_grpc
from tests.cli.conftest import medserve as medserve
from tests.frame_phantoms import as_nifti, cine, ellipse, region, saved, scan, ultrasound
from tests.pages import blocks
from tests.phantoms import raster_bytes

_Image: Any = nibabel.Nifti1Image


@pytest.fixture
def real(models: tuple[str, ...]) -> str:
    """The trained model, where the checkout has it."""
    if "trus_prostate" not in models:
        pytest.skip("models/trus_prostate is not complete")
    return "trus_prostate"


def test_the_bare_answer_is_the_mask_as_png(client: Client) -> None:
    answer = client.predict("tiny_frame", raster_bytes(scan()))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer))), 255 * ellipse())


def test_a_loop_is_answered_in_json_nifti_and_dicom(client: Client) -> None:
    frames = cine(8)
    source = ultrasound(frames, SequenceOfUltrasoundRegions=[region((0.02, 0.02))])
    options = FrameOptions(step_mm=5.0, overlay=True, format=FrameFormat.DICOM_SEG)
    answer = client.segment_frame("tiny_frame", saved(source), options=options)
    known = frames > 127
    np.testing.assert_array_equal(FrameSegmentation.from_result(answer).mask, known)
    assert answer.stack.volume_ml == pytest.approx(known.sum() * 0.2 * 0.2 * 5.0 / 1000)
    written = _Image.from_bytes(gzip.decompress(answer.mask_nifti))
    np.testing.assert_array_equal(np.asarray(written.dataobj).transpose(2, 1, 0), known)
    found = highdicom.seg.segread(io.BytesIO(answer.dicom_seg or b""))
    np.testing.assert_array_equal(found.pixel_array, known)
    assert Image.open(io.BytesIO(answer.overlay_png or b"")).format == "PNG"
    assert answer.provenance.archive_digest.startswith("sha256:")


def test_a_nifti_stack_is_answered_on_its_own_grid(client: Client) -> None:
    affine = np.array([[0, 0.3, 0, 5], [-0.2, 0, 0, -7], [0, 0, 2, 1], [0, 0, 0, 1.0]])
    payload = as_nifti(cine(7).transpose(2, 1, 0), affine)
    answer = _Image.from_bytes(gzip.decompress(client.predict("tiny_frame", payload)))
    np.testing.assert_array_equal(answer.affine, _Image.from_bytes(payload).affine)
    np.testing.assert_array_equal(np.asarray(answer.dataobj), cine(7).transpose(2, 1, 0) > 127)


def test_many_frames_travel_in_one_call_and_a_bad_one_costs_no_other(
    address: str,
) -> None:
    import grpc

    files = [raster_bytes(scan()), b"%PDF", raster_bytes(np.zeros((48, 64), np.uint8))] * 10
    inputs = {f"data.{place}": file for place, file in enumerate(files)}
    request = inference_pb2.PredictionsRequest(
        model_name="tiny_frame", input={**inputs, "transport": b"grpc"}
    )
    with grpc.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)
        items = json.loads(stub.Predictions(request, timeout=120).prediction)["items"]
    assert [item["status"] for item in items] == ["ok", "error", "error"] * 10
    assert {item["frames"][0]["pixels"] for item in items[::3]} == {int(ellipse().sum())}
    assert "same grey" in items[2]["error"]["message"]


def test_the_client_gives_one_result_a_file(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "sweep.dcm"
    path.write_bytes(saved(ultrasound(cine(4))))
    results = list(client.segment_frames("tiny_frame", [raster_bytes(scan()), b"no", path]))
    assert [each.error is None for each in results] == [True, False, True]
    assert results[2].unwrap().grid.frames == 4


@pytest.mark.parametrize(
    ("payload", "options", "error"),
    [
        (b"", None, InvalidImageError),
        (saved(ultrasound(cine(3)))[:5000], None, InvalidImageError),
        (saved(ultrasound(cine(3), Modality="MR")), None, InvalidImageError),
        (raster_bytes(scan()), FrameOptions(step_mm=1.0), InvalidRequestError),
        (raster_bytes(scan()), FrameOptions(format=FrameFormat.DICOM_SEG), InvalidRequestError),
    ],
    ids=["empty", "cut", "modality", "step", "dicom-seg"],
)
def test_what_cannot_be_answered_is_the_caller_s_error(
    payload: bytes,
    options: FrameOptions | None,
    error: type[Exception],
    client: Client,
) -> None:
    with pytest.raises(error):
        client.segment_frame("tiny_frame", payload, options=options)
    assert client.segment_frame("tiny_frame", raster_bytes(scan())).stack.frames_found == 1


def test_a_deadline_that_is_over_ends_the_work(address: str) -> None:
    with (
        Client(address, timeout_s=0.002) as hasty,
        pytest.raises(DeadlineError),
    ):
        hasty.segment_frame("tiny_frame", saved(ultrasound(cine(40))))


def test_both_clients_agree(address: str, client: Client) -> None:
    async def ask() -> FrameResult:
        async with AsyncClient(address, timeout_s=120) as other:
            return await other.segment_frame("tiny_frame", raster_bytes(scan()))

    mine, other = (
        client.segment_frame("tiny_frame", raster_bytes(scan())),
        asyncio.run(ask()),
    )
    assert mine.stack == other.stack
    assert mine.mask_png == other.mask_png


def test_the_command_line_writes_masks_and_tables(
    address: str, medserve: Any, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "frame.png").write_bytes(raster_bytes(scan(96, 128)))
    (folder / "sweep.dcm").write_bytes(saved(ultrasound(cine(5))))
    reached = ("--address", address)
    run = medserve("predict", "tiny_frame", folder, "--out", out, *reached)
    assert (run.code, run.err) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == [
        *("files.csv", "frame_mask.png", "frame_overlay.png", "frames.csv"),
        *("sweep_mask.nii.gz", "sweep_overlay.png"),
    ]
    mask = np.asarray(Image.open(io.BytesIO((out / "frame_mask.png").read_bytes())))
    np.testing.assert_array_equal(mask.shape, (96, 128))


def test_the_trained_model_finds_its_golden_gland(client: Client, real: str) -> None:
    [golden] = models.room(real).glob("weights/golden_input.*")
    assert client.segment_frame(real, golden).stack.frames_found >= 1


_PAGE = Path(__file__).parents[2] / "docs/use/frames.md"


def _block(language: str) -> str:
    return blocks(_PAGE, language)[0].replace("trus_prostate", "tiny_frame")


@pytest.fixture
def lying_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the page speaks of, in the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FRAME.png").write_bytes(raster_bytes(scan()))
    (tmp_path / "SWEEP.dcm").write_bytes(saved(ultrasound(cine(5), PixelSpacing=[0.5, 0.5])))
    (tmp_path / "STACK.nii.gz").write_bytes(gzip.compress(as_nifti(cine(5).transpose(2, 1, 0))))
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "a.png").write_bytes(raster_bytes(scan()))
    return tmp_path


def test_the_command_of_the_page_works(address: str, medserve: Any, lying_around: Path) -> None:
    _, *arguments = _block("bash").split()
    run = medserve(*arguments, "--address", address)
    assert run.code == 0, run.err
    written = {path.name for path in (lying_around / "outputs" / "masks").iterdir()}
    assert written >= {"FRAME_mask.png", "SWEEP_mask.nii.gz", "STACK_mask.nii.gz", "frames.csv"}


def test_the_program_of_the_page_works(
    address: str, lying_around: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = repr(address)
    exec(_block("python").replace("Client(timeout_s", f"Client({address}, timeout_s"), {})
    first, *_, last = capsys.readouterr().out.splitlines()
    assert [float(volume) > 0 for volume in first.split()] == [True, True]
    assert last == "None"  # a PNG states no lengths
