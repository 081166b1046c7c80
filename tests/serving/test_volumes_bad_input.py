"""Volumes that are none, through real gRPC: one typed error each, and the same worker lives on."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Iterator
from typing import Any

import nibabel
import numpy as np
import pytest

from medserve.client import Client, Segmentation
from medserve.errors import (
    InvalidImageError,
    InvalidRequestError,
    MedserveError,
    PayloadTooLargeError,
)
from medserve.imaging.codecs import nifti, npy
from medserve.imaging.volume import Volume
from tests.backends import Backend
from tests.phantoms import raster_bytes, wedge
from tests.tiny_volume_room import known_mask, phantom
from tests.volume_phantoms import as_bytes, dicom_slices, oblique, zipped

MODEL = "tiny_volume"
_Image: Any = nibabel.Nifti1Image


@pytest.fixture(scope="module")
def workers(backend: Backend) -> set[int]:
    return set(backend.worker_pids())


@pytest.fixture(autouse=True)
def _the_same_worker_answers_the_next_good_request(
    client: Client, backend: Backend, workers: set[int]
) -> Iterator[None]:
    yield
    answer = client.segment(MODEL, nifti.encode(phantom()))
    np.testing.assert_array_equal(Segmentation.from_result(answer).mask, known_mask(phantom()))
    assert set(backend.worker_pids()) == workers


def written(array: Any, **fields: object) -> bytes:
    """A .nii of an array, some header fields replaced by what no writer writes."""
    image = _Image(array, phantom().geometry.affine)
    payload = bytearray(image.to_bytes())
    header = nibabel.Nifti1Header(bytes(payload[:348]), check=False)  # type: ignore[no-untyped-call]
    for name, value in fields.items():
        header[name] = value
    payload[:348] = header.binaryblock
    return bytes(payload)


def spoiled(value: float) -> bytes:
    array = phantom(dtype=np.float32).array
    array[3, 4, 5] = value
    return written(array)


def bomb() -> bytes:
    """Gzip of gigabytes of zeros behind a small header's first bytes."""
    start = nifti.encode(phantom(), compress=False)[:352]
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=9) as packed:
        packed.write(_claiming(1024, start))
        for _ in range(256):
            packed.write(bytes(2**20))
    return stream.getvalue()


def _claiming(side: int, start: bytes) -> bytes:
    header: Any = nibabel.Nifti1Header(start[:348], check=False)  # type: ignore[no-untyped-call]
    header["dim"][1:4] = side
    written: bytes = header.binaryblock + bytes(4)
    return written


def empty_giant() -> bytes:
    """A header of 2000 x 2000 x 2000 voxels, and no voxel."""
    return _claiming(2000, nifti.encode(phantom(), compress=False))


def tar_bomb() -> bytes:
    """A tar.gz whose only member is a gigabyte of zeros."""
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=9) as packed:
        entry = tarfile.TarInfo("IM0001")
        entry.size = 2**30
        packed.write(entry.tobuf())
        for _ in range(512):
            packed.write(bytes(2**20))
    return stream.getvalue()


def series(modality: str = "MR") -> list[bytes]:
    return [as_bytes(each) for each in dicom_slices(phantom(), Modality=modality)]


def mixed() -> bytes:
    return zipped([*series(), *(as_bytes(each) for each in dicom_slices(phantom(), "2"))])


def colour() -> bytes:
    image = np.zeros((20, 20, 20), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    return bytes(_Image(image, np.eye(4)).to_bytes())


def zip_of(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def whole() -> bytes:
    return nifti.encode(phantom())


def of_shape(*shape: int) -> bytes:
    return bytes(_Image(np.zeros(shape, np.int16), np.eye(4)).to_bytes())


BAD_VOLUMES: dict[str, tuple[Any, type[MedserveError], str]] = {
    "no bytes": (lambda: b"", InvalidImageError, "got no bytes"),
    "text": (lambda: b"name,age\nDoe,44\n", InvalidImageError, "expected NIfTI"),
    "a PNG": (lambda: raster_bytes(wedge(64, 64)), InvalidImageError, "got a PNG"),
    "a plane": (lambda: of_shape(64, 64), InvalidImageError, "along each of 3 axes"),
    "a plane of NPY": (
        lambda: npy.encode(np.zeros((64, 64))),
        InvalidImageError,
        "along each of 3 axes",
    ),
    "four axes": (lambda: of_shape(20, 20, 20, 2), InvalidImageError, "name one of the 2 channels"),
    "seven axes": (lambda: of_shape(8, 8, 8, 2, 1, 1, 2), InvalidImageError, "3 spatial axes"),
    "colours": (colour, InvalidImageError, "convert the volume to grey"),
    "infinite scale": (
        lambda: written(phantom().array, scl_slope=1.0, scl_inter=np.inf),
        InvalidImageError,
        "scl_inter",
    ),
    "no spacing": (
        lambda: written(
            phantom().array, sform_code=0, qform_code=0, pixdim=[1, 1, 0, 1, 0, 0, 0, 0]
        ),
        InvalidImageError,
        "spacings between",
    ),
    "spacing of NaN": (
        lambda: written(
            phantom().array, sform_code=0, qform_code=0, pixdim=[1, 1, np.nan, 1, 0, 0, 0, 0]
        ),
        InvalidImageError,
        "finite affine",
    ),
    "singular affine": (
        lambda: written(
            phantom().array,
            sform_code=1,
            srow_x=[1, 1, 0, 0],
            srow_y=[1, 1, 0, 0],
            srow_z=[0, 0, 1, 0],
        ),
        InvalidImageError,
        "span space",
    ),
    "spacing of metres": (
        lambda: written(
            phantom().array, sform_code=0, qform_code=0, pixdim=[1, 2000, 2000, 2000, 0, 0, 0, 0]
        ),
        PayloadTooLargeError,
        "memory",
    ),
    "spacing of micrometres": (
        lambda: written(
            phantom().array, sform_code=0, qform_code=0, pixdim=[1, 1e-3, 1e-3, 1e-3, 0, 0, 0, 0]
        ),
        InvalidImageError,
        "check its spacing",
    ),
    "half a .nii.gz": (lambda: whole()[: len(whole()) // 2], InvalidImageError, "cut short"),
    "half a .nii": (
        lambda: nifti.encode(phantom(), compress=False)[:9000],
        InvalidImageError,
        "cut short|cannot hold",
    ),
    "a flipped bit in gzip": (
        lambda: whole()[:-6] + bytes([whole()[-6] ^ 1]) + whole()[-5:],
        InvalidImageError,
        "checksum|damaged",
    ),
    "a header's pair": (
        lambda: written(phantom().array, magic=b"ni1"),
        InvalidImageError,
        "hdr/.img pair",
    ),
    "a gzip bomb": (bomb, PayloadTooLargeError, "voxels"),
    "2000 cubed of nothing": (empty_giant, PayloadTooLargeError, "2000 x 2000 x 2000"),
    "a tar bomb": (tar_bomb, PayloadTooLargeError, "when expanded"),
    "more bytes than allowed": (lambda: bytes(9 * 2**20), PayloadTooLargeError, "bytes a volume"),
    "a zip of paths that climb": (
        lambda: zip_of(**{"../../etc/passwd": b"x", "/abs/IM1": b"y"}),
        InvalidImageError,
        "2 of 2 files that are no readable image",
    ),
    "half a zip": (
        lambda: zipped(series())[:-900],
        InvalidImageError,
        "damaged or cut short",
    ),
    "a zip of nothing": (lambda: zip_of(), InvalidImageError, "expected NIfTI"),
    "two series": (mixed, InvalidImageError, "expected one series, got 2"),
    "a missing slice": (
        lambda: zipped([each for n, each in enumerate(series()) if n != 7]),
        InvalidImageError,
        "missing",
    ),
    "a slice twice": (
        lambda: zipped([*series(), series()[3]]),
        InvalidImageError,
        "one slice at each position",
    ),
    "one slice": (lambda: zipped(series()[:1]), InvalidImageError, "along each of 3 axes"),
    "another modality": (
        lambda: zipped(series("CT")),
        InvalidImageError,
        "expected a series of modality MR",
    ),
    "a damaged slice": (
        lambda: zipped([series()[0][:700], *series()[1:]]),
        InvalidImageError,
        "an image without its pixels",
    ),
    "objects in NPY": (lambda: _object_array(), InvalidImageError, "integers or floats"),
}


def _object_array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([[[{"a": 1}]]], dtype=object), allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize("case", BAD_VOLUMES)
def test_a_volume_that_is_none_gets_its_error(case: str, client: Client) -> None:
    make, error, message = BAD_VOLUMES[case]
    with pytest.raises(error, match=message) as refusal:
        client.segment(MODEL, make())
    assert type(refusal.value) is error
    assert "\n" not in refusal.value.message  # nothing of TorchServe's
    for secret in ("Secret", "Doe", "passwd", "S1"):
        assert secret not in refusal.value.message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_voxel_that_is_no_number_is_background(value: float, client: Client) -> None:
    answer = client.segment(MODEL, spoiled(value))
    known = known_mask(phantom())
    known[3, 4, 5] = 0
    np.testing.assert_array_equal(Segmentation.from_result(answer).mask, known)


@pytest.mark.parametrize(
    "params",
    [
        {"colour": "red"},
        {"output": "meshes"},
        {"channel": 0.5},
        {"spacing_mm": [1, 2]},
        {"format": "dicom-seg"},
        {"spacing_mm": [1, 1, 1]},
    ],
)
def test_params_that_cannot_be_followed_are_refused(
    params: dict[str, object], client: Client
) -> None:
    with pytest.raises(InvalidRequestError):
        client.predict(MODEL, whole(), params)


def test_volumes_packed_into_one_call_are_refused(client: Client) -> None:
    with pytest.raises(InvalidRequestError, match="one file a call"):
        client.classify(MODEL, [whole(), whole()])


def test_a_volume_that_would_not_fit_is_told_what_would(client: Client) -> None:
    fine = phantom(oblique((180, 170, 160), (2.0, 2.0, 2.0)))
    with pytest.raises(PayloadTooLargeError, match=r"\d+ x \d+ x \d+ voxels would fit"):
        client.segment(MODEL, nifti.encode(Volume(fine.array, fine.geometry)))
