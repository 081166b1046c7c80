"""Compressed pictures with bytes lost or changed within their code: equal pixels, or refused.

As far as the format permits: where the code of a changed picture is a picture as well, nobody can
tell it from a whole one.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
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
from pydicom.uid import (
    UID,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medserve.errors import InvalidImageError
from medserve.imaging.codecs import dicom, raster
from medserve.spec import InputKind, InputSpec
from tests.phantoms import dicom_bytes, dicom_dataset, raster_bytes

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


SMOOTH = np.clip(
    200 * np.exp(-((np.mgrid[:96, :128] - 50) ** 2).sum(axis=0) / 900)
    + np.random.default_rng(1).normal(30, 6, (96, 128)),
    0,
    255,
).astype(np.uint8)
SYNTAXES = [
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    RLELossless,
]


@cache
def _encoded(syntax: UID) -> bytes:
    imagecodecs = pytest.importorskip("imagecodecs", reason="needs the extra jpeg12")
    pytest.importorskip("gdcm", reason="needs the serve extra")
    if syntax == RLELossless:
        dataset = dicom_dataset(SMOOTH)
        dataset.compress(RLELossless)
        return get_frame(dataset.PixelData, 0, number_of_frames=1)
    if syntax == JPEG2000Lossless:
        return raster_bytes(SMOOTH, "JPEG2000", no_jp2=True, irreversible=False)
    encode: dict[UID, Callable[[], bytes]] = {
        JPEGBaseline8Bit: lambda: raster_bytes(SMOOTH, "JPEG", quality=90),
        JPEGLosslessSV1: lambda: imagecodecs.ljpeg_encode(SMOOTH),
        JPEGLSLossless: lambda: imagecodecs.jpegls_encode(SMOOTH),
        HTJ2KLossless: lambda: imagecodecs.htj2k_encode(SMOOTH),
    }
    return bytes(encode[syntax]())


def _decoded(syntax: UID, frame: bytes) -> npt.NDArray[np.float32] | None:
    payload = dicom_bytes(SMOOTH, syntax, PixelData=encapsulate([frame]))
    try:
        return dicom.decode(payload, LIMITS).array
    except InvalidImageError:
        return None


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
@given(place=st.floats(0.2, 0.9), lost=st.integers(100, 700))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_a_frame_that_lost_bytes_within_is_refused(syntax: UID, place: float, lost: int) -> None:
    frame = _encoded(syntax)
    at = int(place * (len(frame) - lost - 4))
    found = _decoded(syntax, frame[:at] + frame[at + lost :])
    whole = _decoded(syntax, frame)
    assert whole is not None
    assert found is None or np.array_equal(found, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_with_data_left_over_is_refused(kind: str) -> None:
    end = _jpeg(kind).rfind(END)
    longer = _jpeg(kind)[:end] + _jpeg(kind)[end - 90 : end - 1].rstrip(b"\xff") + b"A" + END
    with pytest.raises(InvalidImageError, match="damaged or cut short"):
        raster.decode(longer, LIMITS)


@pytest.mark.parametrize("filling", [b"\xff", b"\xff\xff\xff", b"\0", b"\0\0\0"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_fills_a_jpeg_up_before_its_end_counts_for_nothing(kind: str, filling: bytes) -> None:
    end = _jpeg(kind).rfind(END)
    filled = _jpeg(kind)[:end] + filling + END
    alone = raster.decode(_jpeg(kind), LIMITS).array
    np.testing.assert_array_equal(raster.decode(filled, LIMITS).array, alone)
