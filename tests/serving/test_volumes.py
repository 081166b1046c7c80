"""Volumes through the real TorchServe: every kind of file, and the same mask as without it."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydicom import dcmread

import models
from medserve.archive.read import golden_input
from medserve.client import AsyncClient, Client, Segmentation, VolumeFormat, VolumeOptions
from medserve.errors import DeadlineError
from medserve.imaging.codecs import nifti, npy, volume_file
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from medserve.inference.engines import load_engine
from medserve.inference.volume_pipeline import VolumePipeline
from medserve.spec import EngineName
from tests.backends import Backend
from tests.cli.conftest import medserve as medserve
from tests.pages import blocks
from tests.tiny_volume_room import known_mask, make_volume_checkout, phantom
from tests.volume_phantoms import as_bytes, dicom_slices, enhanced_dicom, oblique, zipped

_Image: Any = nibabel.Nifti1Image
_AGREEMENT = 0.9999  # share of voxels: engines round their sums differently


def upright() -> Volume:
    """A phantom whose axes turn as those of DICOM do."""
    affine = oblique(spacing_mm=(1.0, 1.0, 1.0)).affine.copy()
    affine[:3, 2] *= -1
    return phantom(Geometry((26, 22, 18), affine))


@pytest.fixture
def real(models: tuple[str, ...]) -> str:
    """The trained model, where the checkout has it."""
    if "segmentation_3d" not in models:
        pytest.skip("models/segmentation_3d/weights is not complete")
    return "segmentation_3d"


def test_a_nifti_file_is_answered_on_its_own_grid(client: Client) -> None:
    volume = phantom()
    source = _Image(volume.array, volume.geometry.affine)
    source.header.set_xyzt_units("mm")
    answer = client.segment("tiny_volume", source.to_bytes())
    written = _Image.from_bytes(gzip.decompress(answer.mask_nifti))
    np.testing.assert_array_equal(written.affine, _Image.from_bytes(source.to_bytes()).affine)
    np.testing.assert_array_equal(np.asarray(written.dataobj), known_mask(volume))
    np.testing.assert_array_equal(Segmentation.from_result(answer).mask, known_mask(volume))
    assert answer.provenance.archive_digest.startswith("sha256:")


def test_the_bare_answer_is_the_mask_as_a_file(client: Client) -> None:
    volume = phantom()
    answer = client.predict("tiny_volume", nifti.encode(volume))
    np.testing.assert_array_equal(nifti.decode(answer).array, known_mask(volume))


@pytest.mark.parametrize("kind", ["zip", "multi-frame", "folder"])
def test_a_dicom_series_is_answered_in_nifti_and_dicom(
    kind: str, client: Client, tmp_path: Path
) -> None:
    volume = upright()
    files = [as_bytes(each) for each in dicom_slices(volume)]
    payload: bytes | Path = zipped(files)
    if kind == "multi-frame":
        halved = Volume((volume.array // 2 + 5).astype(np.int16), volume.geometry)
        payload = as_bytes(enhanced_dicom(halved, range(volume.geometry.shape[2])))
    elif kind == "folder":
        payload = tmp_path
        for place, content in enumerate(files):
            (tmp_path / f"{99 - place}.dcm").write_bytes(content)
    answer = client.segment(
        "tiny_volume", payload, options=VolumeOptions(format=VolumeFormat.DICOM_SEG)
    )
    found = Segmentation.from_result(answer)
    np.testing.assert_array_equal(found.mask, known_mask(volume))
    assert found.geometry.matches(volume.geometry)
    assert answer.dicom_seg is not None
    file = highdicom.seg.Segmentation.from_dataset(dcmread(io.BytesIO(answer.dicom_seg)))
    assert file.segmented_property_types[0].value == "5366008"


def test_an_npy_array_is_answered_with_the_stated_spacing(client: Client) -> None:
    volume = phantom(Geometry.from_spacing((20, 18, 16), (1.0, 2.0, 1.5)))
    options = VolumeOptions(spacing_mm=(1.0, 2.0, 1.5))
    answer = client.segment("tiny_volume", npy.encode(volume.array), options=options)
    assert Segmentation.from_result(answer).geometry == volume.geometry


def test_picture_and_uncertainty_come_with_the_mask(client: Client) -> None:
    payload = nifti.encode(phantom())
    options = VolumeOptions(overlay=True, uncertainty=True, flips=True)
    answer = client.segment("tiny_volume", payload, options=options)
    assert answer.overlay_png is not None
    assert Image.open(io.BytesIO(answer.overlay_png)).format == "PNG"
    assert answer.entropy_nifti is not None
    assert nifti.decode(answer.entropy_nifti).array.max() <= 1.0


def test_the_asynchronous_client_gives_the_same(address: str) -> None:
    payload = nifti.encode(phantom())

    async def ask() -> list[npt.NDArray[np.uint8]]:
        async with AsyncClient(address, timeout_s=120) as client:
            stream = client.segment_each("tiny_volume", [payload] * 4)
            return [Segmentation.from_result(each.unwrap()).mask async for each in stream]

    for mask in asyncio.run(ask()):
        np.testing.assert_array_equal(mask, known_mask(phantom()))


def test_work_ends_when_the_caller_s_time_is_up(address: str) -> None:
    large = phantom(oblique((200, 200, 160), (1.0, 1.0, 1.0)))
    with (
        Client(address, timeout_s=0.02) as hasty,
        pytest.raises(DeadlineError),
    ):
        hasty.segment("tiny_volume", nifti.encode(large))
    # The worker noticed by itself: it is free for the next call.
    with Client(address, timeout_s=120) as patient:
        assert patient.segment("tiny_volume", nifti.encode(phantom())).volumes_ml["bright"] > 0


@pytest.mark.parametrize("name", list(EngineName))
def test_the_served_mask_is_that_of_every_engine_without_a_server(
    name: EngineName, client: Client, backend: Backend, real: str
) -> None:
    path = next(backend.store.glob(f"{real}-*.mar"))
    payload = golden_input(path)
    served = Segmentation.from_result(client.segment(real, payload)).mask
    pipeline = VolumePipeline(models.spec(real))
    engine = load_engine(name, models.room(real) / "weights", threads=2)
    volume = volume_file.decode(payload, pipeline.spec.input.kinds)
    own = pipeline.segment(
        pipeline.prepare(volume), lambda windows: engine.run(windows)["logits"]
    ).segmentation.mask
    assert np.mean(own == served) >= _AGREEMENT
    assert np.count_nonzero(served) > 0


def test_the_command_writes_masks_beside_each_other(
    address: str, tmp_path: Path, medserve: Any
) -> None:
    (tmp_path / "one.nii.gz").write_bytes(nifti.encode(phantom()))
    (tmp_path / "series").mkdir()
    for place, each in enumerate(dicom_slices(upright())):
        (tmp_path / "series" / f"{place}.dcm").write_bytes(as_bytes(each))
    out = tmp_path / "out"
    run = medserve(
        *("predict", "tiny_volume", tmp_path / "one.nii.gz", tmp_path / "series"),
        *("--out", out, "--address", address),
    )
    assert run.code == 0, run.err
    assert sorted(path.name for path in out.iterdir()) == [
        *("one_mask.nii.gz", "one_overlay.png"),
        *("series_mask.nii.gz", "series_overlay.png", "volumes.csv"),
    ]
    mask = nifti.decode((out / "one_mask.nii.gz").read_bytes())
    np.testing.assert_array_equal(mask.array, known_mask(phantom()))
    assert "bright ml" in run.out


def test_a_zip_within_a_folder_is_a_case_of_its_own(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "series.zip"
    path.write_bytes(zipped([as_bytes(each) for each in dicom_slices(upright())]))
    assert zipfile.is_zipfile(path)
    found = Segmentation.from_result(client.segment("tiny_volume", path))
    np.testing.assert_array_equal(found.mask, known_mask(upright()))


_PAGE = Path(__file__).parents[2] / "docs/use/volumes.md"


def _block(language: str) -> str:
    return blocks(_PAGE, language)[0]


def test_the_command_of_the_page_works(
    address: str, real: str, tmp_path: Path, medserve: Any
) -> None:
    _, *arguments = _block("bash").split()
    arguments[arguments.index("outputs/masks")] = str(tmp_path)
    arguments[arguments.index(f"models/{real}/examples")] = str(models.room(real) / "examples")
    run = medserve(*arguments, "--address", address)
    assert run.code == 0, run.err
    assert list(tmp_path.glob("*_mask.nii.gz"))
    assert "anterior ml" in run.out


def test_the_program_of_the_page_works(address: str, real: str, tmp_path: Path) -> None:
    program = _block("python").replace("Client(timeout_s", f"Client({address!r}, timeout_s")
    example = f"models/{real}/examples"
    run = subprocess.run(
        [sys.executable, "-c", program.replace(example, str(models.room(real) / "examples"))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("anterior") == 3
    assert nifti.recognises((tmp_path / "outputs" / "average_mask.nii.gz").read_bytes())


def test_the_demonstration_shows_a_mask(tmp_path: Path) -> None:
    checkout = make_volume_checkout(tmp_path / "checkout")
    run = subprocess.run(
        [sys.executable, "-m", "medserve.cli.main", "demo", "--out", "pictures"],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert run.returncode == 0, run.stderr
    assert "bright" in run.stdout
    assert "INVALID_IMAGE" in run.stdout  # the half file, as it should
    assert (checkout / "pictures" / "tiny_volume.png").read_bytes().startswith(b"\x89PNG")
    good, _ = json.loads((checkout / "pictures" / "demo.json").read_text())
    assert good["volumes_ml"]["dim"] > 0
