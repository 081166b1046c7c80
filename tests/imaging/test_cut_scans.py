"""A JPEG that was cut, and has an end or zeros behind the cut, is refused; libjpeg fills it up."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import UID, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLosslessSV1

from medserve.errors import InvalidImageError
from medserve.imaging.codecs import dicom, raster
from medserve.spec import InputKind, InputSpec
from tests.phantoms import dicom_bytes, raster_bytes

LIMITS = InputSpec(kinds=(InputKind.RASTER, InputKind.DICOM), size=(64, 64))
GREY = np.random.default_rng(7).integers(0, 255, (72, 104), dtype=np.uint8)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)
END = b"\xff\xd9"
KINDS: dict[str, tuple[npt.NDArray[np.uint8], dict[str, Any]]] = {
    "grey": (GREY, {}),
    "colour": (COLOUR, {"subsampling": 2}),
    "rgb": (COLOUR, {"keep_rgb": True}),
    "optimised": (GREY, {"optimize": True}),
    "restarts": (GREY, {"restart_marker_rows": 1}),
    "progressive": (COLOUR, {"progressive": True}),
}


@cache
def _jpeg(kind: str) -> bytes:
    array, options = KINDS[kind]
    return raster_bytes(array, "JPEG", quality=90, **options)


def _cut(codestream: bytes, share: float, tail: bytes) -> bytes:
    """Keep a share of the last scan's data."""
    start = codestream.rfind(b"\xff\xda") + 16
    kept = codestream[: start + int(share * (len(codestream) - start - 16))]
    return kept.rstrip(b"\xff") + tail


@pytest.mark.parametrize("kind", KINDS)
@given(share=st.floats(0, 0.8), tail=st.sampled_from([END, bytes(300), b""]))
@settings(max_examples=10, deadline=None)
def test_a_jpeg_that_was_cut_is_refused(kind: str, share: float, tail: bytes) -> None:
    with pytest.raises(InvalidImageError, match="damaged or cut short"):
        raster.decode(_cut(_jpeg(kind), share, tail), LIMITS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_jpeg_is_read_with_what_lies_behind_its_end(kind: str) -> None:
    alone = raster.decode(_jpeg(kind), LIMITS).array
    np.testing.assert_array_equal(raster.decode(_jpeg(kind) + bytes(99), LIMITS).array, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_picture_in_a_segment_is_not_taken_for_the_scan(kind: str) -> None:
    whole = _jpeg(kind)
    held = b"Exif\0\0" + bytes(14) + raster_bytes(GREY[:16, :16], "JPEG")
    segment = b"\xff\xe1" + (len(held) + 2).to_bytes(2, "big") + held
    found = raster.decode(whole[:2] + segment + whole[2:], LIMITS).array
    np.testing.assert_array_equal(found, raster.decode(whole, LIMITS).array)
    cut = _cut(whole, 0.5, END)
    with pytest.raises(InvalidImageError, match="damaged or cut short"):
        raster.decode(cut[:2] + segment + cut[2:], LIMITS)


@pytest.mark.parametrize("shape", [(72, 104), (33, 47, 3)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 2}])
def test_a_picture_that_is_mid_grey_is_not_taken_for_a_cut_one(
    shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    payload = raster_bytes(np.full(shape, 128, np.uint8), "JPEG", **options)
    assert raster.decode(payload, LIMITS).array.shape == shape


def _frame(syntax: UID, folder: Path) -> bytes:
    if syntax == JPEGBaseline8Bit:
        return _jpeg("grey")
    if syntax == JPEG2000Lossless:
        return raster_bytes(GREY, "JPEG2000", no_jp2=True, irreversible=False)
    if which("dcmcjpeg") is None:
        pytest.skip("dcmcjpeg (Debian dcmtk) is not installed")
    (folder / "raw.dcm").write_bytes(dicom_bytes(GREY))
    command = ["dcmcjpeg", "+e1", str(folder / "raw.dcm"), str(folder / "packed.dcm")]
    subprocess.run(command, check=True, capture_output=True)
    return get_frame(dcmread(folder / "packed.dcm").PixelData, 0, number_of_frames=1)


@pytest.mark.process
@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLosslessSV1, JPEG2000Lossless])
@pytest.mark.parametrize("tail", [END, bytes(300), b""], ids=["end", "zeros", "nothing"])
def test_a_dicom_frame_that_was_cut_is_refused(syntax: UID, tail: bytes, tmp_path: Path) -> None:
    pytest.importorskip("gdcm", reason="needs the serve extra")
    frame = _frame(syntax, tmp_path)
    whole = dicom_bytes(GREY, syntax, PixelData=encapsulate([frame]))
    assert dicom.decode(whole, LIMITS).array.shape == GREY.shape
    for share in (0.2, 0.5, 0.8):
        cut = encapsulate([_cut(frame, share, tail)])
        with pytest.raises(InvalidImageError, match="damaged or cut short"):
            dicom.decode(dicom_bytes(GREY, syntax, PixelData=cut), LIMITS)


def test_a_dicom_frame_of_mid_grey_is_not_taken_for_a_cut_one() -> None:
    grey = np.full((72, 104), 128, np.uint8)
    frame = raster_bytes(grey, "JPEG")
    payload = dicom_bytes(grey, JPEGBaseline8Bit, PixelData=encapsulate([frame]))
    np.testing.assert_allclose(dicom.decode(payload, LIMITS).array, 128 / 255, atol=1e-6)
