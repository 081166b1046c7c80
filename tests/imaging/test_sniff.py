from __future__ import annotations

import gzip
import io
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image as pillow

from medserve.errors import InvalidImageError, MedserveError, PayloadTooLargeError
from medserve.imaging.codecs import sniff
from medserve.spec import InputKind, InputSpec
from tests.phantoms import dicom_bytes, disc, encoded, raster_bytes, wedge

SPEC = InputSpec(kinds=(InputKind.RASTER, InputKind.DICOM), size=(64, 64), max_payload_bytes=10_000)
RASTER_ONLY = InputSpec(kinds=(InputKind.RASTER,), size=(64, 64))
NIFTI = b"\x5c\x01\0\0" + b"\0" * 340 + b"n+1\0" + b"\0" * 60


def picture(kind: str) -> bytes:
    return encoded(pillow.fromarray(disc()), kind)


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("slice.png", b"...")
    return stream.getvalue()


@pytest.mark.parametrize(
    "payload",
    [picture("PNG"), picture("JPEG"), picture("TIFF"), dicom_bytes(disc())],
    ids=["PNG", "JPEG", "TIFF", "DICOM"],
)
@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
def test_every_accepted_kind_is_known_by_its_content(payload: bytes, buffer: type) -> None:
    assert sniff.decode(buffer(payload), SPEC).array.shape == disc().shape


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "expected PNG, JPEG, TIFF or DICOM, got no bytes"),
        (b"\0" * 50, "got zero bytes only"),
        (b"hello, radiologist\n", "got text"),
        (b"<!DOCTYPE html><html>404</html>", "got an HTML"),
        (picture("GIF"), "got a GIF; send one frame as PNG"),
        (picture("BMP"), "got a BMP; convert it to PNG"),
        (picture("WEBP"), "got a WebP"),
        (picture("JPEG2000"), "got a JPEG 2000"),
        (NIFTI, "got a NIfTI volume; send it to a volume model"),
        (gzip.compress(NIFTI), "got a gzip-compressed NIfTI volume; send it to a volume model"),
        (gzip.compress(b"other"), "got a gzip-compressed file; unpack it"),
        (b"\x1f\x8b broken", "got a gzip-compressed file"),
        (zipped(), "got a zip archive; unpack it"),
        (b"%PDF-1.7", "got a PDF"),
        (b"\x93NUMPY\x01\0", "got an NPY array"),
        (dicom_bytes(disc())[132:], "got DICOM without its preamble"),
        (bytes(range(128, 256)), "got bytes of no known kind"),
    ],
)
def test_what_came_is_named_and_what_to_do_is_said(payload: bytes, message: str) -> None:
    with pytest.raises(InvalidImageError, match=message):
        sniff.decode(payload, SPEC)


def test_a_kind_that_this_model_does_not_take_is_refused() -> None:
    with pytest.raises(InvalidImageError, match="expected PNG, JPEG or TIFF, got a DICOM file"):
        sniff.decode(dicom_bytes(disc()), RASTER_ONLY)


def test_too_many_bytes_are_refused_before_they_are_looked_at() -> None:
    with pytest.raises(PayloadTooLargeError, match="at most 10000 bytes an image, got 10001"):
        sniff.decode(b"\0" * 10_001, SPEC)


SEEDS = [
    raster_bytes(wedge(), "PNG"),
    raster_bytes(disc(), "JPEG"),
    raster_bytes(disc(), "TIFF"),
    raster_bytes(np.arange(480, dtype=np.uint16).reshape(20, 24), "TIFF", compression="tiff_lzw"),
    dicom_bytes(wedge(), WindowCenter=100, WindowWidth=50),
    gzip.compress(NIFTI),
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=600))
@example(b"BM")
def test_random_bytes_are_only_ever_refused(payload: bytes) -> None:
    with pytest.raises(MedserveError):
        sniff.decode(payload, SPEC)


@pytest.mark.cpu
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=12),
    cut=st.integers(0, 300),
)
def test_damaged_files_give_an_image_or_an_error_of_ours(
    seed: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    payload = bytearray(seed)
    for position, value in changes:
        payload[position % len(payload)] = value
    try:
        image = sniff.decode(payload[: len(payload) - cut], SPEC)
    except MedserveError:
        return
    assert image.array.min() >= 0.0
    assert image.array.max() <= 1.0
