"""What kind of file some bytes are, told by their content; and the one door to the 2D codecs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from medserve.errors import InvalidImageError, PayloadTooLargeError
from medserve.imaging.codecs import dicom, raster
from medserve.imaging.codecs.payload import Payload
from medserve.imaging.image import Image
from medserve.spec import InputKind, InputSpec

__all__ = ["FileKind", "decode", "is_mgh", "kind", "prepare"]

_CODECS: dict[InputKind, Callable[[Payload, InputSpec], Image]] = {
    InputKind.RASTER: raster.decode,
    InputKind.DICOM: dicom.decode,
}
_SPOKEN = {
    InputKind.RASTER: "PNG, JPEG, TIFF",
    InputKind.DICOM: "DICOM",
    InputKind.NIFTI: "NIfTI",
    InputKind.NPY: "NPY",
}
_TO_PNG = "convert it to PNG"
_ONE_FRAME = "send one frame as PNG"
_TO_VOLUME = "send it to a volume model"
_ONE_BY_ONE = "unpack it and send the images in it"


@dataclass(frozen=True)
class FileKind:
    """What the bytes are, for a person to read, and what to do where a model cannot take it."""

    name: str  # with its article: "a JPEG"
    advice: str = "send an image"
    input_kind: InputKind | None = None  # the family a model may accept; None: no model does


_RASTER_ADVICE = "send it to a model that reads images"
_DICOM = FileKind("a DICOM file", "export the image from it as PNG", InputKind.DICOM)
_NIFTI = FileKind("a NIfTI volume", _TO_VOLUME, InputKind.NIFTI)
_GZIP_NIFTI = FileKind("a gzip-compressed NIfTI volume", _TO_VOLUME, InputKind.NIFTI)
_BARE_DICOM = FileKind("DICOM without its preamble", "save it as a DICOM Part 10 file")

# (offset, bytes there, kind); the first that matches counts.
_MAGIC: tuple[tuple[int, bytes, FileKind], ...] = (
    # Before TIFF: scanners write a TIFF header into the free 128 bytes that precede DICM.
    (128, b"DICM", _DICOM),
    (0, b"\x89PNG\r\n\x1a\n", FileKind("a PNG", _RASTER_ADVICE, InputKind.RASTER)),
    (0, b"\xff\xd8\xff", FileKind("a JPEG", _RASTER_ADVICE, InputKind.RASTER)),
    *(
        (0, magic, FileKind("a TIFF", _RASTER_ADVICE, InputKind.RASTER))
        for magic in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    ),
    (344, b"n+1\0", _NIFTI),
    (344, b"ni1\0", _NIFTI),
    (4, b"n+2\0", _NIFTI),
    (0, b"\x93NUMPY", FileKind("an NPY array", _TO_VOLUME, InputKind.NPY)),
    (0, b"GIF8", FileKind("a GIF", _ONE_FRAME)),
    (0, b"BM", FileKind("a BMP", _TO_PNG)),
    (8, b"WEBP", FileKind("a WebP", _TO_PNG)),
    (4, b"ftyp", FileKind("a HEIC or AVIF picture or a video", _ONE_FRAME)),
    (0, b"\x1a\x45\xdf\xa3", FileKind("a video", _ONE_FRAME)),
    (4, b"jP  ", FileKind("a JPEG 2000", _TO_PNG)),
    (0, b"\xff\x4f\xff\x51", FileKind("a JPEG 2000", _TO_PNG)),
    (0, b"NRRD", FileKind("an NRRD volume", _TO_VOLUME)),
    (0, b"ObjectType", FileKind("a MetaImage volume", _TO_VOLUME)),
    (0, b"%PDF", FileKind("a PDF", "export the image in it as PNG")),
    (0, b"PK\x03\x04", FileKind("a zip archive", _ONE_BY_ONE)),
    (0, b"PK\x05\x06", FileKind("an empty zip archive", _ONE_BY_ONE)),
    (0, b"7z\xbc\xaf\x27\x1c", FileKind("a 7z archive", _ONE_BY_ONE)),
    (0, b"Rar!", FileKind("a RAR archive", _ONE_BY_ONE)),
    (257, b"ustar", FileKind("a tar archive", _ONE_BY_ONE)),
    (0, b"\x89HDF", FileKind("an HDF5 or MATLAB file", "export the image in it as PNG")),
    (0, b"\x08\x00\x05\x00", _BARE_DICOM),
    (0, b"\x08\x00\x00\x00", _BARE_DICOM),
    (0, b"\x08\x00\x08\x00", _BARE_DICOM),
    (0, b"\x02\x00\x00\x00", _BARE_DICOM),
)
_HEAD = 512  # bytes that decide
_GZIP = b"\x1f\x8b"
_MGH = FileKind("a FreeSurfer MGH volume", _TO_VOLUME)
_MGZ = FileKind("a FreeSurfer MGZ volume", _MGH.advice)
_ANALYZE = FileKind("the header of an Analyze .hdr/.img pair", "convert the pair to .nii.gz")
_UNKNOWN = FileKind(
    "bytes of no known kind",
    "check that the file is an image and is whole; the voxels of a .hdr/.img pair have no header: "
    "convert the pair to .nii.gz",
)


def kind(payload: Payload) -> FileKind:
    """Tell what the bytes are; never fails, unknown content is named as such."""
    head = bytes(payload[:_HEAD])
    if not head:
        return FileKind("no bytes", "send the content of a file")
    if not any(head) and not any(bytes(payload).strip(b"\0")):
        return FileKind("zero bytes only", "check that the file was copied whole")
    for offset, magic, found in _MAGIC:
        if head.startswith(magic, offset):
            return found
    if head.startswith(_GZIP):
        return _inside_gzip(payload)
    if is_mgh(head):
        return _MGH
    if head[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c"):  # 348, the size of the header
        return _ANALYZE
    return _text_or_unknown(head)


def decode(payload: Payload, spec: InputSpec) -> Image:
    """The image in the bytes, if the model takes that kind of file.

    Raises:
        PayloadTooLargeError: more bytes or pixels than `spec` allows.
        InvalidImageError: another kind of file, or one that its codec refuses.
    """
    if len(payload) > spec.max_payload_bytes:
        raise PayloadTooLargeError(
            f"expected at most {spec.max_payload_bytes} bytes an image, got {len(payload)}; "
            "send a smaller copy"
        )
    found = kind(payload)
    if found.input_kind in spec.kinds and found.input_kind in _CODECS:
        return _CODECS[found.input_kind](payload, spec)
    raise InvalidImageError(f"expected {_expected(spec)}, got {found.name}; {found.advice}")


def prepare(spec: InputSpec) -> None:
    """Import what the codecs load at their first use, so that no caller waits for it."""
    for each, codec in ((InputKind.RASTER, raster), (InputKind.DICOM, dicom)):
        if each in spec.kinds:
            codec.prepare()


def _expected(spec: InputSpec) -> str:
    names = ", ".join(_SPOKEN[each] for each in spec.kinds if each in _CODECS).split(", ")
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _inside_gzip(payload: Payload) -> FileKind:
    from medserve.imaging.codecs.unpack import peek

    head = peek(payload, _HEAD)
    for offset, magic, found in _MAGIC:
        if found is _NIFTI and head.startswith(magic, offset):
            return _GZIP_NIFTI
    if is_mgh(head):
        return _MGZ
    return FileKind("a gzip-compressed file", "unpack it first")


def is_mgh(head: bytes) -> bool:
    """Tell whether FreeSurfer's header begins: version 1, four axes, one of its types."""
    if len(head) < 24 or head[:4] != b"\0\0\0\1":
        return False
    *axes, kind = (int.from_bytes(head[at : at + 4], "big") for at in range(4, 24, 4))
    return all(0 < length < 2**16 for length in axes) and kind in (0, 1, 3, 4)


def _text_or_unknown(head: bytes) -> FileKind:
    if b"\0" not in head and head.lstrip().startswith((b"<", b"\xef\xbb\xbf<")):
        return FileKind("an HTML, XML or SVG document", "send the image itself, not a page")
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < _HEAD else "ignore")
    except UnicodeDecodeError:
        text = "\0"
    if all(letter.isprintable() or letter.isspace() for letter in text):
        return FileKind("text", "send the content of an image file, not its name")
    return _UNKNOWN
