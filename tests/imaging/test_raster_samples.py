"""Rasters of every type of sample: the right numbers, or a refusal that names the reason."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as pillow

from medserve.errors import InvalidImageError
from medserve.imaging.codecs import raster
from medserve.imaging.intensity import percentile_window
from medserve.spec import InputKind, InputSpec
from tests.phantoms import raster_bytes, wedge

LIMITS = InputSpec(kinds=(InputKind.RASTER,), size=(64, 64))
TYPES = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")


def decoded(payload: bytes) -> npt.NDArray[np.float32]:
    return raster.decode(payload, LIMITS).array


def tiff(array: npt.NDArray[Any], **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def ramp_of(dtype: str, shape: tuple[int, ...] = (40, 32)) -> npt.NDArray[Any]:
    """Numbers that rise over the whole range of a type, or from -500 to 500."""
    share = np.linspace(0.0, 1.0, int(np.prod(shape))).reshape(shape)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return (1000.0 * share - 500.0).astype(kind)
    limits = np.iinfo(kind)
    half = 2.0 ** (8 * kind.itemsize - 1) * 0.99
    return (share * 2 * half + limits.min).astype(kind)


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(TYPES),
    byteorder=st.sampled_from("<>"),
    compression=st.sampled_from((None, "zlib")),
    predictor=st.booleans(),
    tile=st.sampled_from((None, (16, 16))),
    bigtiff=st.booleans(),
    white_is_zero=st.booleans(),
)
def test_one_channel_of_any_type_and_layout_has_its_own_values(
    dtype: str,
    byteorder: str,
    compression: str | None,
    predictor: bool,
    tile: tuple[int, int] | None,
    bigtiff: bool,
    white_is_zero: bool,
) -> None:
    array = ramp_of(dtype)
    options: dict[str, Any] = {"byteorder": byteorder, "tile": tile, "bigtiff": bigtiff}
    options["compression"] = compression
    if predictor and compression and dtype in ("u1", "u2", "u4", "i1", "i2", "i4"):
        options["predictor"] = True
    options["photometric"] = "miniswhite" if white_is_zero else "minisblack"
    expected = array / np.float32(255) if dtype == "u1" else percentile_window(array)
    expected = 1 - expected if white_is_zero else expected
    np.testing.assert_allclose(decoded(tiff(array, **options)), expected, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    dtype=st.sampled_from(("u1", "u2")),
    byteorder=st.sampled_from("<>"),
    separate=st.booleans(),
    compression=st.sampled_from((None, "zlib")),
    tile=st.sampled_from((None, (16, 16))),
    bigtiff=st.booleans(),
)
def test_colour_is_the_same_in_planes_and_together(
    dtype: str,
    byteorder: str,
    separate: bool,
    compression: str | None,
    tile: tuple[int, int] | None,
    bigtiff: bool,
) -> None:
    colour = ramp_of(dtype, (40, 32, 3))
    stored = np.moveaxis(colour, -1, 0).copy() if separate else colour
    payload = tiff(
        stored,
        byteorder=byteorder,
        compression=compression,
        tile=tile,
        bigtiff=bigtiff,
        photometric="rgb",
        planarconfig="separate" if separate else "contig",
    )
    eight = colour >> 8 if dtype == "u2" else colour
    np.testing.assert_array_equal(decoded(payload), eight / np.float32(255))


@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "f4"])
def test_transparent_measurements_are_black_and_do_not_set_the_contrast(dtype: str) -> None:
    grey = ramp_of(dtype)
    most = np.iinfo(grey.dtype).max if grey.dtype.kind in "ui" else 1
    layers = np.stack([grey, np.full_like(grey, most)], axis=-1)
    layers[:20, :, 0], layers[:20, :, 1] = grey.max(), 0
    image = decoded(tiff(layers, photometric="minisblack", extrasamples=["unassalpha"]))
    assert image[:20].max() == 0.0
    np.testing.assert_allclose(image[20:], percentile_window(grey[20:]), atol=1e-4)


def test_the_orientation_of_a_page_that_pillow_cannot_read_is_applied() -> None:
    array = ramp_of("u4")
    upright = decoded(tiff(array))
    turned = tiff(array, extratags=[(274, 3, 1, 6, True)])
    np.testing.assert_array_equal(decoded(turned), np.rot90(upright, k=-1))


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (tiff(np.zeros((3, 40, 32), "u1"), truncate=True, photometric="minisblack"), "planes"),
        (tiff(np.zeros((3, 40, 32), "u2"), imagej=True), "several"),
        (tiff(np.zeros((4, 40, 32), "u1"), volumetric=True, photometric="minisblack"), "4 planes"),
        (
            tiff(np.zeros((16, 48, 32), "u2"), volumetric=True, tile=(16, 16, 16)),
            "volume of 16 planes",
        ),
        (
            tiff(np.zeros((40, 32, 2), "u1"), photometric="minisblack", planarconfig="contig"),
            "2 ch",
        ),
        (
            tiff(np.zeros((40, 32, 5), "u2"), photometric="minisblack", planarconfig="contig"),
            "5 ch",
        ),
        (
            tiff(np.zeros((40, 32, 3), "u1"), photometric="minisblack", planarconfig="contig"),
            "3 ch",
        ),
        (tiff(np.zeros((40, 32, 3), "f4"), photometric="rgb"), "32-bit floats in colour"),
        (tiff(np.zeros((40, 32), "c8")), "numbers of another kind"),
        (tiff(np.zeros((40, 32, 3), "u1"), photometric="cielab"), "colour space"),
    ],
)
def test_what_is_no_single_image_of_known_samples_is_refused_by_name(
    payload: bytes, message: str
) -> None:
    with pytest.raises(InvalidImageError, match=message):
        decoded(payload)


def test_a_compression_that_cannot_be_read_exactly_is_refused() -> None:
    content = bytearray(tiff(ramp_of("u4")))
    at = content.index(struct.pack("<HHI", 259, 3, 1))  # the tag Compression
    content[at + 8 : at + 10] = struct.pack("<H", 5)  # LZW
    with pytest.raises(InvalidImageError, match="32-bit unsigned integers with a compression"):
        decoded(bytes(content))


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}])
def test_no_cut_of_wide_samples_is_taken_for_the_whole(options: dict[str, Any]) -> None:
    payload = tiff(ramp_of("i2"), metadata=None, **options)
    for end in range(0, len(payload) - 1, 37):
        with pytest.raises(InvalidImageError):
            decoded(payload[:end])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(array: npt.NDArray[np.uint16], *chunks: bytes, colour_type: int = 0) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">2I5B", array.shape[1], array.shape[0], 16, colour_type, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def test_the_transparent_value_of_a_16_bit_png_is_black_and_does_not_set_the_contrast() -> None:
    grey = ramp_of("u2") // 16
    marked = grey.copy()
    marked[:20] = 65535
    image = decoded(png(marked, chunk(b"tRNS", struct.pack(">H", 65535))))
    assert image[:20].max() == 0.0
    np.testing.assert_allclose(image[20:], percentile_window(grey[20:]), atol=1e-6)


def test_a_16_bit_png_with_an_alpha_channel_is_refused_where_bits_would_be_lost() -> None:
    layers = np.stack([ramp_of("u2"), ramp_of("u2")], axis=-1)
    with pytest.raises(InvalidImageError, match="16-bit grey with an alpha channel"):
        decoded(png(layers, colour_type=4))


def jpeg_of(identifiers: bytes, marks: bytes = b"") -> tuple[bytes, npt.NDArray[np.float32]]:
    """A JPEG whose components are red, green and blue, under other names and marks."""
    colour = np.stack([wedge(), wedge()[::-1], np.full_like(wedge(), 40)], axis=-1)
    content = raster_bytes(colour, "JPEG", quality=100, keep_rgb=True, subsampling=0)
    end = content.index(b"\xff\xdb")  # SOI and the mark of Adobe lie before the tables
    content = content[:2] + marks + content[end:]
    for name, other in zip(b"RGB", identifiers, strict=True):
        frame, scan = content.index(b"\xff\xc0"), content.rindex(b"\xff\xda")
        head, body = content[frame : frame + 19], content[scan : scan + 14]
        head = head.replace(bytes((name, 0x11)), bytes((other, 0x11)))
        body = body[:5] + body[5:].replace(bytes((name,)), bytes((other,)), 1)
        content = content[:frame] + head + content[frame + 19 : scan] + body + content[scan + 14 :]
    return content, np.asarray(colour / np.float32(255), np.float32)


JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"


@pytest.mark.parametrize("identifiers", [b"RGB", b"rgb"])
@pytest.mark.parametrize("marks", [b"", JFIF])
def test_components_called_red_green_and_blue_are_that(identifiers: bytes, marks: bytes) -> None:
    payload, colour = jpeg_of(identifiers, marks)
    np.testing.assert_allclose(decoded(payload), colour, atol=0.03)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [(4, 12, "12 bits a sample"), (1, 0xC3, "a lossless JPEG"), (1, 0xC5, "hierarchical")],
)
def test_a_jpeg_that_cannot_be_read_is_refused_by_name(at: int, value: int, message: str) -> None:
    content = bytearray(raster_bytes(wedge(), "JPEG"))
    content[content.index(b"\xff\xc0") + at] = value
    with pytest.raises(InvalidImageError, match=message):
        decoded(bytes(content))


def test_sixteen_bits_of_colour_are_the_same_in_png_and_tiff() -> None:
    colour = ramp_of("u2", (40, 32, 3))
    rows = colour.reshape(40, -1)
    payload = png(rows, colour_type=2)
    header = struct.pack(">2I5B", 32, 40, 16, 2, 0, 0, 0)
    payload = payload[:8] + chunk(b"IHDR", header) + payload[33:]
    np.testing.assert_array_equal(decoded(payload), decoded(tiff(colour, photometric="rgb")))


def test_a_picture_of_pillow_is_still_read() -> None:
    stream = io.BytesIO()
    pillow.fromarray(ramp_of("u2")).save(stream, "TIFF", compression="tiff_lzw")
    np.testing.assert_allclose(decoded(stream.getvalue()), percentile_window(ramp_of("u2")))


def _png(values: npt.NDArray[np.uint8], bits: int, colour: int, transparent: Any) -> bytes:
    """A PNG of rows that are packed already, with one transparent value (ISO 15948, 11.3.2.1)."""
    width = values.shape[1] * 8 // (bits * (3 if colour else 1))
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, len(values), bits, 2 if colour else 0, 0, 0, 0),
        b"tRNS": np.asarray(transparent, ">u2").tobytes(),
        b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in values)),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts.items()
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@given(clear=st.integers(0, 255))
@settings(max_examples=8, deadline=None)
def test_the_transparent_grey_of_a_png_of_any_depth_is_black(bits: int, clear: int) -> None:
    most = 2**bits - 1
    values = (np.arange(16 * 16) % (most + 1)).astype(np.uint8).reshape(16, 16)
    spread = np.unpackbits(values[..., np.newaxis], axis=2)[..., 8 - bits :]
    payload = _png(np.packbits(spread.reshape(16, -1), axis=1), bits, 0, clear % (most + 1))
    wanted = np.where(values == clear % (most + 1), 0.0, values / most)
    np.testing.assert_allclose(decoded(payload), wanted, atol=1e-6)


def test_a_transparent_colour_of_16_bits_is_refused() -> None:
    rows = np.zeros((16, 16 * 6), np.uint8)
    with pytest.raises(InvalidImageError, match="16-bit colour with a transparent one"):
        decoded(_png(rows, 16, 1, (0x1200, 0x5600, 0x9A00)))


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("tag", ["TileOffsets", "TileByteCounts"])
def test_a_tiff_of_which_tiles_are_missing_is_refused(
    dtype: str, photometric: str, tag: str
) -> None:
    payload = bytearray(
        tiff(ramp_of(dtype, (64, 64)), tile=(32, 32), photometric=photometric, compression="zlib")
    )
    with tifffile.TiffFile(io.BytesIO(payload)) as file:
        stated = file.pages.first.tags[tag]
        at, size = stated.valueoffset, {3: 2, 4: 4}[stated.dtype]
    payload[at + size : at + 3 * size] = bytes(2 * size)
    with pytest.raises(InvalidImageError, match="never written"):
        decoded(bytes(payload))


def _png_of(rows: bytes, width: int, height: int, interlaced: int = 0) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlaced)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def _filtered(plane: npt.NDArray[np.uint8]) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in plane)


@pytest.mark.parametrize("rows", [1, 20, 47, 49, 96])
def test_a_png_of_another_number_of_rows_than_it_states_is_refused(rows: int) -> None:
    plane = np.vstack([wedge(48, 64)] * 2)
    with pytest.raises(InvalidImageError, match="damaged or cut short"):
        decoded(_png_of(_filtered(plane[:rows]), 64, 48))
    whole = decoded(_png_of(_filtered(plane[:48]), 64, 48))
    np.testing.assert_allclose(whole, plane[:48] / 255.0, atol=1e-6)


@pytest.mark.parametrize("shape", [(48, 64), (35, 41), (37, 33)])
def test_an_interlaced_png_is_read_whole(shape: tuple[int, int]) -> None:
    plane = wedge(*shape)
    starts = [(0, 0), (0, 4), (4, 0), (0, 2), (2, 0), (0, 1), (1, 0)]
    steps = [(8, 8), (8, 8), (8, 4), (4, 4), (4, 2), (2, 2), (2, 1)]
    passes = [
        _filtered(plane[top::down, left::across])
        for (top, left), (down, across) in zip(starts, steps, strict=True)
    ]
    found = decoded(_png_of(b"".join(passes), shape[1], shape[0], interlaced=1))
    np.testing.assert_allclose(found, plane / 255.0, atol=1e-6)
    with pytest.raises(InvalidImageError, match="damaged or cut short"):
        decoded(_png_of(b"".join(passes[:-1]), shape[1], shape[0], interlaced=1))


def test_two_png_in_one_file_are_refused() -> None:
    with pytest.raises(InvalidImageError, match="several PNG"):
        decoded(raster_bytes(wedge()) + raster_bytes(wedge()[::-1].copy()))


@pytest.mark.parametrize("number", [33003, 34712, 34887, 50001, 50002])
def test_a_tiff_of_a_compression_that_is_not_read_is_refused_by_its_number(number: int) -> None:
    payload = tiff(wedge(), compression="deflate")
    plain = struct.pack("<HHIHH", 259, 3, 1, 32946, 0)
    assert plain in payload
    with pytest.raises(InvalidImageError, match=rf"whose compression \({number}\) is not read"):
        decoded(payload.replace(plain, struct.pack("<HHIHH", 259, 3, 1, number, 0)))


@pytest.mark.parametrize("place", [0, 17, 63])
def test_a_jpeg_with_a_step_of_zero_is_refused(place: int) -> None:
    payload = bytearray(raster_bytes(wedge(), "JPEG"))
    payload[payload.index(b"\xff\xdb") + 5 + place] = 0
    with pytest.raises(InvalidImageError, match="damaged or cut short"):
        decoded(bytes(payload))
