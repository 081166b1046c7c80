from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from medserve.errors import InvalidImageError, MedserveError, PayloadTooLargeError
from medserve.imaging.codecs import dicom, dicom_frames
from medserve.imaging.frames import FrameLimits
from medserve.spec import InputKind, InputSpec
from tests.frame_phantoms import region
from tests.phantoms import (
    PATIENT,
    dicom_bytes,
    dicom_dataset,
    disc,
    encoded,
    ramp,
    raster_bytes,
    saved,
    wedge,
)

LIMITS = InputSpec(kinds=(InputKind.DICOM,), size=(64, 64))


def decoded(payload: bytes) -> npt.NDArray[np.float32]:
    return dicom.decode(payload, LIMITS).array


def test_eight_bits_without_a_window_are_display_values() -> None:
    np.testing.assert_array_equal(decoded(dicom_bytes(wedge())), wedge() / np.float32(255))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_every_byte_order_reads_alike(syntax: Any) -> None:
    pixels = ramp() if syntax is ImplicitVRLittleEndian else ramp().byteswap()
    dataset = dicom_dataset(pixels, syntax, WindowCenter=2000, WindowWidth=4000)
    expected = decoded(dicom_bytes(ramp(), WindowCenter=2000, WindowWidth=4000))
    np.testing.assert_array_equal(decoded(saved(dataset)), expected)


def test_rle_reads_like_uncompressed() -> None:
    dataset = dicom_dataset(ramp(), WindowCenter=2000, WindowWidth=4000)
    expected = decoded(saved(dataset))
    dataset.compress(RLELossless)
    np.testing.assert_array_equal(decoded(saved(dataset)), expected)


@pytest.mark.parametrize(
    ("syntax", "kind"), [(JPEGBaseline8Bit, "JPEG"), (JPEG2000Lossless, "JPEG2000")]
)
def test_jpeg_and_jpeg_2000_are_decoded(syntax: Any, kind: str) -> None:
    from pydicom.encaps import encapsulate

    options = {"quality": 95} if kind == "JPEG" else {"no_jp2": True}
    dataset = dicom_dataset(disc(), syntax)
    dataset.PixelData = encapsulate([raster_bytes(disc(), kind, **options)])
    dataset["PixelData"].VR = "OB"
    image = decoded(saved(dataset))
    assert np.abs(image - disc() / 255).mean() < 0.02


def test_hounsfield_units_go_through_the_first_window() -> None:
    # PS3.3 C.11.2.1.2.1: y = (x - (c - 0.5)) / (w - 1) + 0.5, clipped.
    stored = np.array([[0, 1024 - 60, 1024 + 40, 1024 + 140, 4000]] * 9, np.uint16).repeat(
        2, axis=1
    )
    image = decoded(
        dicom_bytes(
            stored,
            RescaleSlope=1,
            RescaleIntercept=-1024,
            WindowCenter=[40, 600],
            WindowWidth=[400, 2000],
        )
    )
    expected = [0.0, (-60 - 39.5) / 399 + 0.5, (40 - 39.5) / 399 + 0.5, (140 - 39.5) / 399 + 0.5, 1]
    np.testing.assert_allclose(image[4, ::2], expected, atol=1e-6)


def test_the_function_that_the_file_states_shapes_the_window() -> None:
    window: dict[str, Any] = {"WindowCenter": 2000, "WindowWidth": 1000}
    exact = decoded(dicom_bytes(ramp(), VOILUTFunction="LINEAR_EXACT", **window))
    np.testing.assert_allclose(exact, np.clip((ramp() - 2000.0) / 1000 + 0.5, 0, 1), atol=1e-6)
    sigmoid = decoded(dicom_bytes(ramp(), VOILUTFunction="SIGMOID", **window))
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-4 * (ramp() - 2000.0) / 1000)), atol=1e-6)


def test_a_window_of_width_one_is_a_threshold() -> None:
    image = decoded(dicom_bytes(ramp(), WindowCenter=2000, WindowWidth=1))
    np.testing.assert_array_equal(image, ramp() > 1999.5)


def test_a_window_without_a_width_counts_as_none() -> None:
    broken = decoded(dicom_bytes(ramp(), WindowCenter=2000, WindowWidth=0))
    np.testing.assert_array_equal(broken, decoded(dicom_bytes(ramp())))


def test_monochrome1_is_inverted() -> None:
    normal = decoded(dicom_bytes(wedge()))
    inverted = decoded(dicom_bytes(wedge(), PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_allclose(inverted, 1 - normal, atol=1e-7)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_set_the_contrast(photometric: str) -> None:
    stored = ramp(top=1000).astype(np.int16)
    stored[:, :4] = -2000
    image = decoded(
        dicom_bytes(stored, PixelPaddingValue=-2000, PhotometricInterpretation=photometric)
    )
    assert image[:, :4].max() == 0.0
    assert 0.45 < np.median(image[:, 4:]) < 0.55


def test_twelve_bits_without_a_window_are_mapped_by_their_range() -> None:
    image = decoded(dicom_bytes(ramp(top=4000), BitsStored=12, HighBit=11))
    np.testing.assert_allclose(image, np.clip((ramp(top=4000) - 20.0) / 3960, 0, 1), atol=2e-4)


def test_a_voi_table_is_looked_up_where_there_is_no_window() -> None:
    table = Dataset()
    table.LUTDescriptor = [256, 0, 16]
    table.LUTData = (np.arange(256, dtype=np.uint16)[::-1] * 257).tobytes()
    table["LUTData"].VR = "OW"
    image = decoded(dicom_bytes(wedge(), VOILUTSequence=Sequence([table])))
    np.testing.assert_allclose(image, 1 - wedge() / 255, atol=1e-6)


def test_an_enhanced_object_states_its_window_in_its_functional_groups() -> None:
    values, voi, shared = Dataset(), Dataset(), Dataset()
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, -1024, "HU"
    voi.WindowCenter, voi.WindowWidth = 40, 400
    shared.PixelValueTransformationSequence = Sequence([values])
    shared.FrameVOILUTSequence = Sequence([voi])
    enhanced = dicom_bytes(
        ramp(), NumberOfFrames=1, SharedFunctionalGroupsSequence=Sequence([shared])
    )
    plain = dicom_bytes(
        ramp(), RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400
    )
    np.testing.assert_array_equal(decoded(enhanced), decoded(plain))


def test_rgb_keeps_its_colours() -> None:
    colour = np.stack([wedge(), disc(), 255 - wedge()], axis=-1)
    np.testing.assert_array_equal(decoded(dicom_bytes(colour)), colour / np.float32(255))


def test_colours_stored_plane_by_plane_read_alike() -> None:
    colour = np.stack([wedge(), disc(), 255 - wedge()], axis=-1)
    dataset = dicom_dataset(colour, PlanarConfiguration=1)
    dataset.PixelData = np.ascontiguousarray(colour.transpose(2, 0, 1)).tobytes()
    np.testing.assert_array_equal(decoded(saved(dataset)), colour / np.float32(255))


def test_ybr_becomes_rgb() -> None:
    red = np.zeros((9, 13, 3), np.uint8)
    red[:] = (76, 85, 255)  # PS3.3 C.7.6.3.1.2: Y, Cb, Cr of full red
    image = decoded(dicom_bytes(red, PhotometricInterpretation="YBR_FULL"))
    np.testing.assert_allclose(image[4, 4], [1, 0, 0], atol=0.01)


def test_palette_colour_is_looked_up() -> None:
    dataset = dicom_dataset(disc(), PhotometricInterpretation="PALETTE COLOR")
    for name, top in (("Red", 1.0), ("Green", 0.5), ("Blue", 0.0)):
        table = (np.arange(256) * 257 * top).astype(np.uint16)
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(dataset, f"{name}PaletteColorLookupTableData", table.tobytes())
    image = decoded(saved(dataset))
    np.testing.assert_allclose(image[..., 1], disc() / 255 * 0.5, atol=1e-3)
    assert image[..., 2].max() == 0.0


def without(name: str, sop_class: UID | None = None) -> bytes:
    dataset = dicom_dataset(disc())
    delattr(dataset, name)
    if sop_class is not None:
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    return saved(dataset)


def rle_bomb() -> bytes:
    """Run lengths that would unpack to 64 times their size, for 24 x 40 pixels."""
    from pydicom.encaps import encapsulate

    header = (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + b"\0" * 56
    dataset = dicom_dataset(disc(), RLELossless)
    dataset.PixelData = encapsulate([header + b"\x81\0" * 50_000])
    dataset["PixelData"].VR = "OB"
    return saved(dataset)


def compressed_as(syntax: UID) -> bytes:
    from pydicom.encaps import encapsulate

    dataset = dicom_dataset(disc(), syntax)
    dataset.PixelData = encapsulate([b"\xff\xd8\xff\xf7"])
    dataset["PixelData"].VR = "OB"
    return saved(dataset)


NAN_PIXELS = dicom_dataset(disc().astype(np.float32))
del NAN_PIXELS.PixelData
NAN_PIXELS.FloatPixelData = np.full((24, 40), np.nan, np.float32).tobytes()

REFUSED: list[tuple[bytes, type[MedserveError], str]] = [
    (without("PixelData"), InvalidImageError, "without pixel data"),
    (without("Rows"), InvalidImageError, "without pixel data"),
    (
        without("PixelData", GrayscaleSoftcopyPresentationStateStorage),
        InvalidImageError,
        "no image: Grayscale Softcopy Presentation State, without pixel data",
    ),
    (without("BitsStored"), InvalidImageError, "damaged"),
    (dicom_bytes(disc(), NumberOfFrames=30), InvalidImageError, "got 30 frames; send one frame"),
    (dicom_bytes(disc(), Rows=48), InvalidImageError, "damaged or cut short"),
    (dicom_bytes(disc())[:-300], InvalidImageError, "damaged or cut short"),
    (dicom_bytes(disc())[:300], InvalidImageError, "without pixel data|damaged"),
    (dicom_bytes(disc(), Rows=20000, Columns=20000), PayloadTooLargeError, "at most 40000000"),
    (dicom_bytes(disc(4, 4)), InvalidImageError, "at least 8 x 8"),
    (compressed_as(MPEG2MPML), InvalidImageError, "got transfer syntax MPEG2 Main.*decompress it"),
    (compressed_as(MPEG2MPML).replace(b"1.2.4.100", b"1.2.4.999"), InvalidImageError, "not known"),
    (rle_bomb(), InvalidImageError, "pixel data is damaged"),
    (
        saved(dicom_dataset(disc(), DeflatedExplicitVRLittleEndian))[:-9],
        InvalidImageError,
        "deflated data set is damaged",
    ),
    (dicom_bytes(disc(), PhotometricInterpretation="DOE"), InvalidImageError, "photometric"),
    (
        dicom_bytes(disc(), RescaleSlope=1e38, RescaleIntercept=0),
        InvalidImageError,
        "infinity",
    ),
    (saved(NAN_PIXELS), InvalidImageError, "NaN"),
    (b"\0" * 128 + b"DICM", InvalidImageError, "without pixel data|damaged"),
]


@pytest.mark.parametrize(("payload", "error", "message"), REFUSED)
def test_what_cannot_be_shown_is_refused_without_quoting_the_header(
    payload: bytes, error: type[MedserveError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        decoded(payload)
    assert PATIENT not in str(caught.value)
    assert "DOE" not in str(caught.value)
    assert caught.value.__cause__ is None  # pydicom's own errors quote values


def test_a_picture_that_is_no_dicom_is_refused() -> None:
    from PIL import Image as pillow

    with pytest.raises(InvalidImageError):
        decoded(encoded(pillow.fromarray(disc()), "PNG"))


@pytest.mark.parametrize(
    ("elements", "aspect"),
    [
        ({"PixelSpacing": [0.4, 0.2]}, 2.0),
        ({"ImagerPixelSpacing": [0.1, 0.4]}, 0.25),
        ({"NominalScannedPixelSpacing": [0.3, 0.2]}, 1.5),
        ({"PixelAspectRatio": [3, 2]}, 1.5),
        ({"PixelSpacing": [0.2, 0.2], "PixelAspectRatio": [2, 1]}, 1.0),
        ({"PixelSpacing": [0.20001, 0.2]}, 1.0),
        ({"PixelSpacing": [0.0, 0.2]}, 1.0),
        ({"SequenceOfUltrasoundRegions": [region((0.02, 0.04))]}, 0.5),
        ({}, 1.0),
    ],
)
def test_an_image_says_how_oblong_its_pixels_are(elements: dict[str, Any], aspect: float) -> None:
    payload = dicom_bytes(wedge(48, 64), **elements)
    assert dicom.decode(payload, LIMITS).aspect == pytest.approx(aspect)
    assert dicom_frames.decode(payload, FrameLimits(LIMITS)).grid.aspect == pytest.approx(aspect)


def test_pixels_that_no_device_has_are_refused() -> None:
    with pytest.raises(InvalidImageError, match="correct the pixel spacing"):
        decoded(dicom_bytes(wedge(), PixelSpacing=[10.0, 0.1]))


@pytest.mark.parametrize(
    ("photometric", "shape"), [("MONOCHROME1", "IDENTITY"), ("MONOCHROME2", "INVERSE")]
)
def test_a_header_that_says_both_that_white_is_more_and_less_is_refused(
    photometric: str, shape: str
) -> None:
    elements: dict[str, Any] = {
        "PhotometricInterpretation": photometric,
        "PresentationLUTShape": shape,
    }
    with pytest.raises(InvalidImageError, match="presentation LUT shape that fits"):
        decoded(dicom_bytes(wedge(), **elements))
    other = "INVERSE" if shape == "IDENTITY" else "IDENTITY"
    fitting = dicom_bytes(
        wedge(), PhotometricInterpretation=photometric, PresentationLUTShape=other
    )
    alone = dicom_bytes(wedge(), PhotometricInterpretation=photometric)
    np.testing.assert_array_equal(decoded(fitting), decoded(alone))
