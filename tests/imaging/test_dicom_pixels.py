"""What stored numbers mean, as properties over the kinds of file that say it."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Sequence as Several
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as pillow
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
)

from medserve.errors import InvalidImageError, PayloadTooLargeError
from medserve.imaging.codecs import dicom, dicom_file, dicom_pixels
from medserve.imaging.codecs.dicom_pixels import Values, values_of
from medserve.spec import InputKind, InputSpec
from tests.phantoms import PATIENT, dicom_bytes, dicom_dataset, disc, raster_bytes, saved, wedge

LIMITS = InputSpec(kinds=(InputKind.DICOM,), size=(64, 64))
_SIDES = (8, 9)  # rows and columns
_BOTH_ORDERS = pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])


def read(dataset: Dataset) -> Values:
    return values_of(dicom.read(saved(dataset)), 0)


def shown(dataset: Dataset) -> npt.NDArray[np.float32]:
    return dicom.decode(saved(dataset), LIMITS).array


def numbers(draw: st.DrawFn, low: int, high: int) -> npt.NDArray[np.int64]:
    size = _SIDES[0] * _SIDES[1]
    drawn = draw(st.lists(st.integers(low, high), min_size=size, max_size=size))
    return np.array(drawn, np.int64).reshape(_SIDES)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_bits_outside_of_the_stored_ones_mean_nothing(data: st.DataObject) -> None:
    allocated = data.draw(st.sampled_from([8, 16, 32]))
    bits = data.draw(st.integers(2, allocated))
    high = data.draw(st.integers(bits - 1, allocated - 1))
    signed = data.draw(st.booleans())
    low, top = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    expected = data.draw(st.composite(numbers)(low, top))
    garbage = np.random.default_rng(data.draw(st.integers(0, 99))).integers(
        0, 2**allocated, _SIDES, np.uint64
    )
    mask, shift = 2**bits - 1, high - bits + 1
    word = (garbage & ~np.uint64(mask << shift)) | (
        (expected & mask).astype(np.uint64) << np.uint64(shift)
    )
    dataset = dicom_dataset(word.astype(f"u{allocated // 8}"))
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, high, int(signed)
    np.testing.assert_array_equal(read(dataset).array, expected)


def test_overlays_in_the_upper_bits_do_not_survive_jpeg_2000() -> None:
    image = np.linspace(0, 4095, 24 * 40).astype(np.uint16).reshape(24, 40)
    dataset = dicom_dataset(image, BitsStored=12, HighBit=11)
    expected = read(dataset).array
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    stream = io.BytesIO()
    overlay = np.where(disc() > 100, 0x8000, 0).astype(np.uint16)
    pillow.fromarray(image | overlay).save(stream, "JPEG2000", no_jp2=True, irreversible=False)
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].VR = "OB"
    np.testing.assert_array_equal(read(dataset).array, expected)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 0xFFFF), st.sampled_from(["US", "SS"]), st.booleans(), st.integers(0, 30))
def test_padding_is_found_by_its_bits_whatever_sign_its_header_claims(
    word: int, vr: str, signed: bool, width: int
) -> None:
    start = word - 0x10000 if signed and word >= 0x8000 else word
    least, most = (-0x8000, 0x7FFF) if signed else (0, 0xFFFF)
    stored = np.clip(np.arange(72).reshape(_SIDES) - 36 + start, least, most)
    last = min(start + width, most)
    dataset = dicom_dataset(stored.astype(np.int16 if signed else np.uint16))
    for tag, value in ((0x00280120, start), (0x00280121, last)):
        bits = value & 0xFFFF
        dataset.add_new(tag, vr, bits - 0x10000 if vr == "SS" and bits >= 0x8000 else bits)
    background = read(dataset).background
    expected = (stored >= start) & (stored <= last)
    assert background is not None
    np.testing.assert_array_equal(background, expected)


def test_not_a_number_is_background_and_nothing_else_is_refused() -> None:
    image = wedge().astype(np.float32)
    image[3:5, 2:9] = np.nan
    image[9, 9] = np.inf
    dataset = dicom_dataset(image.astype(np.float32))
    del dataset.PixelData, dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit
    dataset.FloatPixelData = image.tobytes()
    array = shown(dataset)
    assert not array[3:5, 2:9].any()
    assert array[9, 9] == 0.0
    assert array.max() == 1.0


def voi(bits: int, syntax: UID, packed: bool) -> Dataset:
    """A radiograph of 12 bits whose table of values of interest is darker than a straight line."""
    word = "<u2" if syntax == ExplicitVRLittleEndian else ">u2"
    image = np.linspace(0, 4095, 24 * 40).round().reshape(24, 40)
    curve = (np.arange(4096) / 4095.0) ** 2 * (2**bits - 1)
    entries = curve.round().astype(np.uint16)
    table = Dataset()
    table.LUTDescriptor = [4096, 0, bits]
    if packed:  # two entries a word, the first in the lower byte
        entries = entries[0::2] | (entries[1::2] << 8)
    table.LUTData = entries.astype(word).tobytes()
    table["LUTData"].VR = "OW"
    dataset = dicom_dataset(image.astype(word), syntax, BitsStored=12, HighBit=11)
    dataset.PixelRepresentation = 0
    dataset.VOILUTSequence = [table]
    return dataset


@_BOTH_ORDERS
@pytest.mark.parametrize(("bits", "packed"), [(16, False), (10, False), (8, False), (8, True)])
def test_a_voi_table_reads_alike_however_its_entries_are_stored(
    bits: int, packed: bool, syntax: UID
) -> None:
    image = np.linspace(0, 1, 24 * 40).reshape(24, 40)
    found = shown(voi(bits, syntax, packed))
    np.testing.assert_allclose(found, image**2, atol=1.2 / (2**bits - 1) + 5e-4)


@_BOTH_ORDERS
@pytest.mark.parametrize("form", ["words", "bytes in words", "packed bytes", "segments"])
@pytest.mark.parametrize("first", [0, 3])
def test_a_palette_reads_alike_in_every_form(form: str, first: int, syntax: UID) -> None:
    word = "<u2" if syntax == ExplicitVRLittleEndian else ">u2"
    indices = np.arange(24 * 40, dtype=np.uint8).reshape(24, 40)  # beyond both ends of the table
    levels = np.arange(200)
    dataset = dicom_dataset(indices, syntax, PhotometricInterpretation="PALETTE COLOR")
    for name, top in (("Red", 255), ("Green", 128), ("Blue", 51)):
        exact = levels * top // 199
        bits = 16 if form == "words" else 8
        entries = exact * 257 if form == "words" else exact
        if form == "packed bytes":
            entries = entries[0::2] | entries[1::2] << 8
        if form == "segments":  # discrete to the end, in two parts
            parts = [0, 150, *exact[:150], 0, 50, *exact[150:]]
            entries = np.array(parts)[0::2] | np.array(parts)[1::2] << 8
        segmented = "Segmented" if form == "segments" else ""
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [200, first, bits])
        key = f"{segmented}{name}PaletteColorLookupTableData"
        setattr(dataset, key, np.asarray(entries).astype(word).tobytes())
        dataset[key].VR = "OW"
    found = shown(dataset)
    places = np.clip(indices.astype(int) - first, 0, 199)
    for channel, top in enumerate((255, 128, 51)):
        np.testing.assert_allclose(found[..., channel], places * top // 199 / 255, atol=1e-6)


def test_each_frame_of_an_enhanced_object_has_its_own_window_and_rescale() -> None:
    frames, groups = [], []
    for scale in (1, 3, 10):
        frames.append((wedge().astype(np.uint16) * scale).tobytes())
        value, window, item = Dataset(), Dataset(), Dataset()
        value.RescaleSlope, value.RescaleIntercept, value.RescaleType = 2, 7 * scale, "US"
        window.WindowCenter, window.WindowWidth = (255 + 7) * scale, 510 * scale
        window.VOILUTFunction = "LINEAR_EXACT"
        item.PixelValueTransformationSequence, item.FrameVOILUTSequence = [value], [window]
        groups.append(item)
    dataset = dicom_dataset(wedge().astype(np.uint16), NumberOfFrames=3)
    dataset.PixelData = b"".join(frames)
    dataset.PerFrameFunctionalGroupsSequence = groups
    header = dicom.read(saved(dataset))
    for index in range(3):
        array = dicom.frame_image(header, index).array
        np.testing.assert_allclose(array, wedge() / 255, atol=1e-5)


def test_a_rescale_slope_of_zero_is_refused() -> None:
    payload = dicom_bytes(wedge(), RescaleSlope=0, RescaleIntercept=-1024)
    with pytest.raises(InvalidImageError, match="slope other than 0"):
        dicom.decode(payload, LIMITS)


def test_a_deflated_file_reads_like_any_other_and_only_its_own_header_says_that_it_is_one() -> None:
    dataset = dicom_dataset(wedge(), DeflatedExplicitVRLittleEndian)
    expected = wedge() / np.float32(255)
    np.testing.assert_array_equal(shown(dataset), expected)
    mentioned = dicom_bytes(wedge(), ImageComments=str(DeflatedExplicitVRLittleEndian))
    np.testing.assert_array_equal(dicom.decode(mentioned, LIMITS).array, expected)


def test_a_deflated_file_is_expanded_no_further_than_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dicom_file, "_MAX_INFLATED_BYTES", 500)
    with pytest.raises(PayloadTooLargeError, match="at most 500 bytes"):
        shown(dicom_dataset(wedge(), DeflatedExplicitVRLittleEndian))
    cut = saved(dicom_dataset(disc(), DeflatedExplicitVRLittleEndian))[:-40]
    monkeypatch.undo()
    with pytest.raises(InvalidImageError, match="damaged or cut short"):
        dicom.decode(cut, LIMITS)


def jpeg(frame: bytes, syntax: UID, **elements: Any) -> Dataset:
    dataset = dicom_dataset(disc(), syntax, **elements)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    return dataset


def test_a_jpeg_of_bytes_is_read_whatever_the_header_allocates() -> None:
    frame = raster_bytes(disc(), "JPEG", quality=95)
    found = shown(jpeg(frame, JPEGBaseline8Bit, BitsAllocated=16, BitsStored=8, HighBit=7))
    np.testing.assert_allclose(found, disc() / 255, atol=0.1)


def test_a_jpeg_of_12_bits_is_read_where_its_decoder_is_installed() -> None:
    imagecodecs = pytest.importorskip("imagecodecs", reason="needs the jpeg12 extra")
    plane = (np.add.outer(np.arange(48), np.arange(56)) * 39).astype(np.uint16)
    frame = imagecodecs.jpeg8_encode(plane, level=98, bitspersample=12)
    header = {"Rows": 48, "Columns": 56, "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11}
    dataset = jpeg(frame, JPEGExtended12Bit, **header)
    np.testing.assert_allclose(dicom_pixels.decoded(dataset, 0).astype(int), plane, atol=8)
    dataset.PixelData = encapsulate([frame[: len(frame) // 3]])
    with pytest.raises(InvalidImageError, match="damaged or cut short"):
        dicom_pixels.decoded(dataset, 0)


def test_a_jpeg_of_12_bits_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    frame = bytearray(raster_bytes(disc(), "JPEG"))
    at = frame.index(b"\xff\xc0")
    frame[at : at + 2], frame[at + 4] = b"\xff\xc1", 12
    header = {"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11}
    with pytest.raises(
        InvalidImageError, match=r"JPEG Extended .* with 12 bits.*imagecodecs.*dcmdjpeg"
    ):
        shown(jpeg(bytes(frame), JPEGExtended12Bit, **header))


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame + b"\xff\xda" * 300,  # scans without end
        lambda frame: frame.replace(b"\x01\x01\x11\0", b"\x04\x01\x11\0", 1),  # four components
    ],
    ids=["scans", "components"],
)
def test_a_frame_that_asks_for_more_work_than_its_image_needs_is_refused(change: Any) -> None:
    frame = change(raster_bytes(disc(), "JPEG", progressive=True))
    with pytest.raises(InvalidImageError, match="damaged"):
        shown(jpeg(frame, JPEGBaseline8Bit))


def dcmtk(tool: str, dataset: Dataset, folder: Path, options: Several[str]) -> bytes:
    """The data set as a tool of dcmtk writes it."""
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} (Debian dcmtk) is not installed")
    (folder / "in.dcm").write_bytes(saved(dataset))
    names = [str(folder / name) for name in ("in.dcm", "out.dcm")]
    subprocess.run([tool, *options, *names], check=True, capture_output=True)
    return (folder / "out.dcm").read_bytes()


@pytest.mark.process
@pytest.mark.parametrize(
    ("tool", "options"),
    [
        ("dcmcjpeg", ["+e1"]),  # lossless, first-order prediction
        ("dcmcjpeg", ["+el"]),  # lossless, any prediction
        ("dcmcjpls", ["+el"]),
        ("dcmcrle", []),
        ("dcmconv", ["+tb"]),  # big endian
        ("dcmconv", ["+td"]),  # deflated
    ],
    ids=["JPEG SV1", "JPEG 14", "JPEG-LS", "RLE", "big endian", "deflated"],
)
@pytest.mark.parametrize("signed", [False, True])
def test_what_dcmtk_compressed_without_loss_reads_like_the_original(
    tool: str, options: list[str], signed: bool, tmp_path: Path
) -> None:
    offset = 2048 if signed else 0
    image = (np.linspace(0, 4095, 24 * 40).reshape(24, 40) - offset).round()
    dataset = dicom_dataset(image.astype(np.int16 if signed else np.uint16))
    dataset.BitsStored, dataset.HighBit = 12, 11
    payload = dcmtk(tool, dataset, tmp_path, options)
    np.testing.assert_array_equal(values_of(dicom.read(payload), 0).array, image)


def test_nothing_of_the_header_is_quoted_where_a_table_is_damaged() -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 16], PATIENT.encode()
    table["LUTData"].VR = "OW"
    with pytest.raises(InvalidImageError, match="damaged") as caught:
        shown(dicom_dataset(wedge(), VOILUTSequence=[table]))
    assert PATIENT not in str(caught.value)


@pytest.mark.parametrize(
    ("meaning", "samples"),
    [("MONOCHROME2", 3), ("MONOCHROME1", 3), ("PALETTE COLOR", 3), ("RGB", 1), ("YBR_FULL", 1)],
)
def test_samples_that_the_photometric_interpretation_does_not_have_are_refused(
    meaning: str, samples: int
) -> None:
    pixels = np.zeros((24, 40) if samples == 1 else (24, 40, 3), np.uint8)
    payload = dicom_bytes(pixels, PhotometricInterpretation=meaning)
    with pytest.raises(InvalidImageError, match=f"samples a pixel .* got {samples};"):
        dicom.decode(payload, LIMITS)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_uncompressed_pixels_in_the_items_of_compressed_ones_are_refused(syntax: UID) -> None:
    pixels = np.arange(24 * 40, dtype=np.uint16).reshape(24, 40)
    payload = dicom_bytes(pixels, syntax, PixelData=encapsulate([pixels.tobytes()]))
    with pytest.raises(InvalidImageError, match="in the items of compressed ones"):
        dicom.decode(payload, LIMITS)
