"""A file or archive that holds more than its header speaks of is refused, whatever the format."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

from medserve.errors import InvalidImageError
from medserve.imaging.codecs import dicom, dicom_frames, dicom_series, nifti, npy, research_volumes
from medserve.imaging.frames import FrameLimits
from medserve.imaging.volume import Volume
from medserve.spec import InputKind, InputSpec
from tests import frame_phantoms
from tests.phantoms import dicom_bytes, raster_bytes
from tests.volume_phantoms import as_bytes, dicom_slices, oblique, ramp, zipped

PLANE = InputSpec(kinds=(InputKind.DICOM,), size=(64, 64))
VOLUME = ramp(oblique((5, 4, 6)))
VALUES = VOLUME.array.tobytes(order="F")


def _nrrd(data: bytes, encoding: str = "raw") -> bytes:
    sizes = " ".join(map(str, VOLUME.geometry.shape))
    return (
        f"NRRD0004\ntype: short\ndimension: 3\nspace: LPS\nsizes: {sizes}\nendian: little\n"
        f"space directions: (1,0,0) (0,1,0) (0,0,1)\nencoding: {encoding}\n\n"
    ).encode() + data


def _metaimage(data: bytes, compressed: bool = False) -> bytes:
    sizes = " ".join(map(str, VOLUME.geometry.shape))
    return (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = {compressed}\n"
        f"DimSize = {sizes}\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    ).encode() + data


def _nifti(behind: bytes) -> bytes:
    return nifti.encode(VOLUME, compress=False) + behind


FORMATS: dict[str, tuple[Callable[[bytes], Volume], Callable[[bytes], bytes]]] = {
    "nifti": (nifti.decode, _nifti),
    "nifti.gz": (nifti.decode, lambda behind: gzip.compress(_nifti(behind), 1)),
    "npy": (npy.decode, lambda behind: npy.encode(VOLUME.array) + behind),
    "nrrd": (research_volumes.decode, lambda behind: _nrrd(VALUES + behind)),
    "nrrd gzip": (
        research_volumes.decode,
        lambda behind: _nrrd(gzip.compress(VALUES + behind, 1), "gzip"),
    ),
    "metaimage": (research_volumes.decode, lambda behind: _metaimage(VALUES + behind)),
    "metaimage zlib": (
        research_volumes.decode,
        lambda behind: _metaimage(zlib.compress(VALUES + behind), compressed=True),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
@given(times=st.integers(1, 3), rest=st.integers(0, 50))
@settings(max_examples=5, deadline=None)
def test_a_volume_file_that_holds_a_second_volume_is_refused(
    name: str, times: int, rest: int
) -> None:
    decode, written = FORMATS[name]
    with pytest.raises(InvalidImageError, match="as many again behind them"):
        decode(written(VALUES * times + VALUES[:rest]))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("behind", [b"", b"\0", bytes(3 * len(VALUES)), VALUES[:-1]])
def test_what_fills_a_file_up_is_no_second_volume(name: str, behind: bytes) -> None:
    decode, written = FORMATS[name]
    np.testing.assert_array_equal(decode(written(behind)).array, VOLUME.array)


def _loop(stored: int, *, compressed: bool, offsets: bool) -> npt.NDArray[np.uint8] | bytes:
    frames = frame_phantoms.cine(stored)
    if not compressed:
        return frames
    return encapsulate([raster_bytes(each, "JPEG") for each in frames], has_bot=offsets)


@given(
    stated=st.integers(0, 4),
    surplus=st.integers(1, 3),
    compressed=st.booleans(),
    offsets=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_a_dicom_file_of_more_frames_than_it_states_is_refused(
    stated: int, surplus: int, compressed: bool, offsets: bool
) -> None:
    frames = _loop(max(stated, 1) + surplus, compressed=compressed, offsets=offsets)
    dataset = frame_phantoms.ultrasound(frame_phantoms.cine(1))
    dataset.PixelData = frames if isinstance(frames, bytes) else frames.tobytes()
    if compressed:
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        dataset["PixelData"].is_undefined_length = True
    if stated:
        dataset.NumberOfFrames = stated
    words = f"pixel data of {max(stated, 1)} frames, .* got {max(stated, 1) + surplus};"
    with pytest.raises(InvalidImageError, match=words):
        dicom_frames.decode(frame_phantoms.saved(dataset), FrameLimits(PLANE))
    if stated <= 1:
        with pytest.raises(InvalidImageError, match=words):
            dicom.decode(frame_phantoms.saved(dataset), PLANE)


def test_bytes_of_zero_behind_a_frame_are_no_second_one() -> None:
    pixels = frame_phantoms.scan()
    filled = dicom_bytes(pixels, PixelData=pixels.tobytes() + bytes(pixels.nbytes + 2))
    assert dicom.decode(filled, PLANE).array.shape == pixels.shape


def test_a_slice_of_more_frames_than_it_states_is_counted() -> None:
    slices = dicom_slices(VOLUME)
    slices[2].PixelData = slices[2].PixelData * 2
    with pytest.raises(InvalidImageError, match=r"1 of 6 files .*1 with more frames than stated"):
        dicom_series.decode(zipped([as_bytes(each) for each in slices]))


def _tarred(files: list[bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for n, content in enumerate(files):
            member = tarfile.TarInfo(f"{n}.dcm")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.parametrize("pack", [zipped, _tarred, lambda files: gzip.compress(_tarred(files), 1)])
@given(first=st.integers(1, 5))
@settings(max_examples=5, deadline=None)
def test_joined_archives_are_refused(pack: Callable[[list[bytes]], bytes], first: int) -> None:
    files = [as_bytes(each) for each in dicom_slices(VOLUME)]
    with pytest.raises(InvalidImageError, match="other data before or behind it"):
        dicom_series.decode(pack(files[:first]) + pack(files[first:]))
