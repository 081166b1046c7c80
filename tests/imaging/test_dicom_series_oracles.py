"""Grids and values of synthetic series as dcm2niix (Debian) and SimpleITK (GDCM) read them."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset

from medserve.imaging.codecs import dicom_series
from medserve.imaging.geometry import Geometry
from tests.volume_phantoms import as_bytes, dicom_slices, geometries, oblique, ramp, zipped

# What dcm2niix asks of a header before it stacks slices.
_HEADER = {"Manufacturer": "SIEMENS", "StudyDate": "20260101", "StudyTime": "101010",
           "ProtocolName": "p"}  # fmt: skip


def _written(datasets: list[Dataset], folder: Path) -> dicom_series.DicomVolume:
    """The series as files of names without order, and as it is read here."""
    folder.mkdir()
    names = random.Random(len(datasets)).sample(range(900), len(datasets))
    for name, dataset in zip(names, datasets, strict=True):
        (folder / f"{name}.dcm").write_bytes(as_bytes(dataset))
    return dicom_series.decode(zipped([path.read_bytes() for path in folder.iterdir()]))


def _same_values_at_same_places(
    volume: dicom_series.DicomVolume, array: npt.NDArray[Any], affine: npt.NDArray[np.float64]
) -> None:
    """Compare by where each voxel lies: axes may run the other way."""
    to_theirs = np.linalg.inv(affine) @ volume.geometry.affine
    index = np.moveaxis(np.indices(volume.geometry.shape), 0, -1).reshape(-1, 3)
    theirs = index @ to_theirs[:3, :3].T + to_theirs[:3, 3]
    assert np.abs(theirs - theirs.round()).max() < 1e-2
    found = array[tuple(theirs.round().astype(int).T)].reshape(volume.geometry.shape)
    np.testing.assert_allclose(found, volume.array, rtol=1e-5, atol=1e-3)


@settings(deadline=None, max_examples=8)
@given(
    geometries(smallest=2, largest=6),
    st.sampled_from([None, (1.0, -1024.0), (0.25, 3.5), (2.0, 0.0)]),
)
def test_simpleitk_reads_the_same_series(
    tmp_path_factory: pytest.TempPathFactory,
    geometry: Geometry,
    rescale: tuple[float, float] | None,
) -> None:
    itk = pytest.importorskip("SimpleITK", reason="pip install SimpleITK, the oracle of this test")
    elements = {} if rescale is None else dict(
        zip(("RescaleSlope", "RescaleIntercept"), map(str, rescale), strict=True)
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("itk") / "series"
    volume = _written(dicom_slices(ramp(geometry), **elements), folder)
    reader = itk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    _same_values_at_same_places(
        volume, itk.GetArrayFromImage(image).T, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    )


@pytest.mark.process
@pytest.mark.parametrize("rescale", [None, ("1", "-1024"), ("0.25", "3.5")])
@pytest.mark.parametrize(
    "geometry",
    [
        oblique((12, 11, 6)),
        Geometry.from_spacing((9, 14, 5), (0.7, 1.3, 4.0)),
        Geometry((10, 12, 7), np.diag([-0.9, -0.6, 2.5, 1.0])),
    ],
    ids=["oblique", "axial", "turned"],
)
def test_dcm2niix_converts_the_same_series(
    geometry: Geometry, rescale: tuple[str, str] | None, tmp_path: Path
) -> None:
    if shutil.which("dcm2niix") is None:
        pytest.skip("dcm2niix (Debian) is not installed")
    elements = dict(_HEADER)
    if rescale is not None:
        elements["RescaleSlope"], elements["RescaleIntercept"] = rescale
    volume = _written(dicom_slices(ramp(geometry), **elements), tmp_path / "series")
    command = ["dcm2niix", "-b", "n", "-z", "n", "-o", str(tmp_path), str(tmp_path / "series")]
    subprocess.run(command, check=True, capture_output=True)
    [path] = tmp_path.glob("*.nii")
    image: Any = nibabel.nifti1.Nifti1Image
    found = image.from_filename(path)
    _same_values_at_same_places(volume, np.asarray(found.dataobj), found.affine)


@pytest.mark.process
def test_dcm2niix_tells_the_echoes_apart_that_can_be_chosen(tmp_path: Path) -> None:
    if shutil.which("dcm2niix") is None:
        pytest.skip("dcm2niix (Debian) is not installed")
    folder, first = tmp_path / "series", ramp(oblique((12, 11, 6)))
    folder.mkdir()
    for echo in (30, 60):
        elements: dict[str, Any] = {**_HEADER, "EchoTime": str(echo), "EchoNumbers": echo // 30}
        for n, dataset in enumerate(dicom_slices(first, **elements)):
            dataset.PixelData = (np.frombuffer(dataset.PixelData, "<i2") + echo).tobytes()
            (folder / f"{echo}-{n}.dcm").write_bytes(as_bytes(dataset))
    payload = zipped([path.read_bytes() for path in folder.iterdir()])
    command = ["dcm2niix", "-b", "n", "-z", "n", "-f", "%e", "-o", str(tmp_path), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    image: Any = nibabel.nifti1.Nifti1Image
    for echo in (30, 60):
        [path] = tmp_path.glob(f"{echo // 30}*.nii")
        found = image.from_filename(path)
        chosen = dicom_series.decode(payload, select=f"echo_time={echo}")
        _same_values_at_same_places(chosen, np.asarray(found.dataobj), found.affine)
