from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as pillow
from PIL import ImageOps, PngImagePlugin

from medserve.errors import InvalidImageError, MedserveError, PayloadTooLargeError
from medserve.imaging.codecs import raster
from medserve.spec import InputKind, InputSpec
from tests.phantoms import disc, encoded, ramp, raster_bytes, wedge

LIMITS = InputSpec(kinds=(InputKind.RASTER,), size=(64, 64))


def decoded(payload: bytes) -> npt.NDArray[np.float32]:
    return raster.decode(payload, LIMITS).array


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_eight_bit_values_are_exactly_their_255th(kind: str) -> None:
    grey = wedge()
    np.testing.assert_array_equal(decoded(raster_bytes(grey, kind)), grey / np.float32(255))


def test_a_jpeg_keeps_its_shape_and_nearly_its_values() -> None:
    grey = disc()
    image = decoded(raster_bytes(grey, "JPEG", quality=95))
    assert image.shape == grey.shape
    assert np.abs(image - grey / 255).mean() < 0.02


def test_colour_keeps_three_channels_in_the_order_red_green_blue() -> None:
    colour = np.zeros((9, 13, 3), np.uint8)
    colour[..., 0], colour[..., 2] = 255, 51
    image = decoded(raster_bytes(colour))
    np.testing.assert_allclose(image[4, 6], [1.0, 0.0, 0.2])


def test_transparent_pixels_lie_on_black() -> None:
    layers = np.full((9, 13, 4), 255, np.uint8)
    layers[:, :6, 3] = 0
    layers[:, 6:, 3] = 51
    image = decoded(raster_bytes(layers))
    assert image[:, :6].max() == 0.0
    np.testing.assert_allclose(image[:, 6:], 0.2)


def test_a_transparent_grey_picture_stays_grey() -> None:
    picture = pillow.merge("LA", (pillow.fromarray(wedge()), pillow.new("L", (40, 24), 255)))
    np.testing.assert_array_equal(decoded(encoded(picture, "PNG")), wedge() / np.float32(255))


def test_a_palette_is_looked_up() -> None:
    picture = pillow.fromarray(wedge() // 128).convert("P")
    picture.putpalette([0, 0, 0, 255, 128, 0])
    image = decoded(encoded(picture, "PNG"))
    np.testing.assert_allclose(np.unique(image.reshape(-1, 3), axis=0)[-1], [1, 128 / 255, 0])


def test_one_bit_pictures_are_black_and_white() -> None:
    picture = pillow.fromarray(disc()).convert("1", dither=pillow.Dither.NONE)
    np.testing.assert_array_equal(decoded(encoded(picture, "TIFF")), disc() > 127)


def test_cmyk_white_is_white() -> None:
    picture = pillow.new("CMYK", (13, 9), (0, 0, 0, 0))
    assert decoded(encoded(picture, "JPEG", quality=95)).min() > 0.98


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_the_stated_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = pillow.Exif()
    exif[0x0112] = orientation
    payload = raster_bytes(wedge(), kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(pillow.open(io.BytesIO(payload))))
    np.testing.assert_array_equal(decoded(payload), expected / np.float32(255))


def test_orientation_6_turns_the_picture_clockwise() -> None:
    exif = pillow.Exif()
    exif[0x0112] = 6  # stored rows are the shown columns, right to left
    image = decoded(raster_bytes(wedge(), "PNG", exif=exif))
    np.testing.assert_array_equal(image, np.rot90(wedge(), k=-1) / np.float32(255))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_windowed_by_the_range_in_use(kind: str) -> None:
    image = decoded(raster_bytes(ramp(top=4000), kind))
    # The ramp is linear, so its percentiles are 0.5 % and 99.5 % of its top.
    expected = np.clip((ramp(top=4000) - 20.0) / 3960.0, 0, 1)
    np.testing.assert_allclose(image, expected, atol=2e-4)


def test_the_unit_of_sixteen_bits_does_not_matter() -> None:
    np.testing.assert_allclose(
        decoded(raster_bytes(ramp(top=1000) * 16)), decoded(raster_bytes(ramp(top=1000))), atol=1e-6
    )


def test_a_small_bright_object_on_sixteen_bits_is_not_lost() -> None:
    field = np.full((40, 60), 100, np.uint16)
    field[3, 5] = 900  # less than half a percent of the pixels
    image = decoded(raster_bytes(field))
    assert image[3, 5] == 1.0
    assert image.sum() == 1.0


def test_a_constant_sixteen_bit_image_is_black() -> None:
    assert decoded(raster_bytes(np.full((9, 13), 777, np.uint16))).max() == 0.0


def test_a_float_tiff_is_windowed_like_sixteen_bits() -> None:
    image = decoded(raster_bytes(ramp().astype(np.float32) - 1000, "TIFF"))
    np.testing.assert_allclose(image, decoded(raster_bytes(ramp(), "TIFF")), atol=1e-6)


def test_a_sixteen_bit_tiff_where_white_is_zero_is_inverted() -> None:
    normal = raster_bytes(ramp(), "TIFF")
    inverted = raster_bytes(ramp(), "TIFF", tiffinfo={262: 0})
    np.testing.assert_allclose(decoded(inverted), 1 - decoded(normal))


def test_a_damaged_orientation_leaves_the_picture_as_stored() -> None:
    payload = raster_bytes(wedge(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decoded(payload).shape == wedge().shape


def gif_like_png() -> bytes:
    frames = [pillow.fromarray(disc()), pillow.fromarray(wedge())]
    return encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])


def two_pages() -> bytes:
    frames = [pillow.fromarray(disc()), pillow.fromarray(wedge())]
    return encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])


def bomb() -> bytes:
    """A PNG header that states 20000 x 20000 pixels over a few bytes of data."""
    stream = io.BytesIO(raster_bytes(disc()))
    whole = stream.getvalue()
    header = b"IHDR" + (20_000).to_bytes(4, "big") * 2 + whole[24:29]
    checksum = PngImagePlugin._crc32(header).to_bytes(4, "big")
    return whole[:12] + header + checksum + whole[33:]


NAN_TIFF = raster_bytes(np.where(disc() > 100, np.nan, 1.0).astype(np.float32), "TIFF")


@pytest.mark.parametrize(
    ("payload", "error", "message"),
    [
        (b"", InvalidImageError, "cannot be read"),
        (b"\x89PNG\r\n\x1a\n", InvalidImageError, "cannot be read|damaged"),
        (raster_bytes(wedge(200, 300), "JPEG")[:-900], InvalidImageError, "cut short"),
        (raster_bytes(wedge(200, 300), "PNG")[:-900], InvalidImageError, "cut short"),
        (
            raster_bytes(wedge(200, 300), "TIFF")[:-900],
            InvalidImageError,
            "cut short|cannot be read",
        ),
        (raster_bytes(np.zeros((1, 1), np.uint8)), InvalidImageError, "at least 8 x 8"),
        (raster_bytes(np.zeros((9, 3), np.uint8)), InvalidImageError, "got 3 x 9"),
        (raster_bytes(np.zeros((5001, 8001), np.uint8)), PayloadTooLargeError, "at most 40000000"),
        (bomb(), PayloadTooLargeError, "at most 40000000"),
        (gif_like_png(), InvalidImageError, "an animated PNG; send one frame"),
        (two_pages(), InvalidImageError, "a TIFF of several pages; send one frame"),
        (NAN_TIFF, InvalidImageError, "NaN"),
    ],
)
def test_what_is_no_single_whole_picture_is_refused(
    payload: bytes, error: type[MedserveError], message: str
) -> None:
    with pytest.raises(error, match=message):
        decoded(payload)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_no_cut_of_a_picture_is_taken_for_the_whole(kind: str) -> None:
    payload = raster_bytes(disc(16, 20), kind)
    for end in range(len(payload)):
        with pytest.raises(InvalidImageError):
            decoded(payload[:end])


def jpeg_of_scans(scans: int, side: int = 64) -> bytes:
    """A progressive JPEG whose last scan is repeated until there are so many."""
    stream = io.BytesIO()
    pillow.new("L", (side, side), 99).save(stream, format="JPEG", progressive=True)
    content = stream.getvalue()
    last = content.rindex(b"\xff\xda")
    repeated = content[last:-2]  # without the end of the image
    return content[:-2] + repeated * (scans - content.count(b"\xff\xda")) + content[-2:]


def test_a_progressive_jpeg_of_the_usual_scans_is_read() -> None:
    assert raster.decode(jpeg_of_scans(10), LIMITS).array.shape == (64, 64)


@pytest.mark.parametrize(("scans", "side", "max_pixels"), [(2000, 64, 10**6), (33, 64, 64 * 64)])
def test_a_jpeg_of_many_scans_is_refused_by_the_work_that_it_asks_for(
    scans: int, side: int, max_pixels: int
) -> None:
    limits = InputSpec(kinds=(InputKind.RASTER,), size=(64, 64), max_pixels=max_pixels)
    with pytest.raises(PayloadTooLargeError, match=f"{scans} scans"):
        raster.decode(jpeg_of_scans(scans, side), limits)
