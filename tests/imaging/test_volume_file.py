from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image as pillow

from medserve.errors import InvalidImageError, InvalidRequestError
from medserve.imaging.codecs import nifti, npy
from medserve.imaging.codecs.dicom_series import DicomVolume
from medserve.imaging.codecs.nifti import NiftiVolume
from medserve.imaging.codecs.volume_file import ReadOptions, decode
from medserve.spec import InputKind
from tests.volume_phantoms import SHAPE, as_bytes, dicom_slices, oblique, ramp, zipped

VOLUME = ramp(oblique())
ALL = (InputKind.NIFTI, InputKind.DICOM, InputKind.NPY)
SERIES = zipped([as_bytes(each) for each in dicom_slices(VOLUME)])


def _png() -> bytes:
    stream = io.BytesIO()
    pillow.new("L", (40, 30)).save(stream, format="PNG")
    return stream.getvalue()


def test_each_kind_is_known_by_its_content() -> None:
    assert isinstance(decode(nifti.encode(VOLUME), ALL), NiftiVolume)
    assert isinstance(decode(SERIES, ALL), DicomVolume)
    assert decode(npy.encode(VOLUME.array), ALL).array.shape == SHAPE


def test_a_kind_that_the_model_does_not_take_is_refused_with_those_it_does() -> None:
    with pytest.raises(InvalidImageError, match=r"expected NIfTI, got a zip archive"):
        decode(SERIES, (InputKind.NIFTI,))
    with pytest.raises(InvalidImageError, match=r"expected NIfTI or NPY, got a PNG"):
        decode(_png(), (InputKind.NIFTI, InputKind.NPY))


def test_options_reach_the_codec_that_knows_them() -> None:
    options = ReadOptions(spacing_mm=(1.0, 2.0, 3.0))
    volume = decode(npy.encode(VOLUME.array), ALL, options=options)
    assert volume.geometry.spacing_mm == (1.0, 2.0, 3.0)
    with pytest.raises(InvalidImageError, match="modality CT"):
        decode(SERIES, ALL, options=ReadOptions(modalities=("CT",)))
    with pytest.raises(InvalidImageError, match="channel from 0 to 0"):
        decode(nifti.encode(VOLUME), ALL, options=ReadOptions(channel=1))


def test_options_that_the_file_has_no_use_for_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="no channel"):
        decode(SERIES, ALL, options=ReadOptions(channel=0))
    with pytest.raises(InvalidRequestError, match="no spacing_mm"):
        decode(nifti.encode(VOLUME), ALL, options=ReadOptions(spacing_mm=(1.0, 1.0, 1.0)))


@pytest.mark.parametrize("payload", [b"", b"text", bytes(100), bytearray(b"\x1f\x8b")])
def test_bytes_of_no_kind_are_refused(payload: bytes) -> None:
    with pytest.raises(InvalidImageError, match="expected NIfTI or a DICOM series"):
        decode(payload, ALL)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_every_form_that_bytes_come_in_is_read(wrap: type) -> None:
    for payload in (
        nifti.encode(VOLUME),
        nifti.encode(VOLUME, compress=False),
        npy.encode(VOLUME.array),
        SERIES,
    ):
        values = np.sort(decode(wrap(payload), ALL).array.ravel())
        np.testing.assert_array_equal(values, np.arange(VOLUME.array.size))
