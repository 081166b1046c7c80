"""NRRD, MetaImage and MGH -> Volume: what Slicer, ITK and FreeSurfer write in one file.

- NRRD (teem.sourceforge.net/nrrd/format.html): axes, origin and the space that they are given in;
  one that states no anatomical space is refused, for left and right would be a guess.
- MetaImage (.mha, itk.org/Wiki/ITK/MetaIO/Documentation): row n of TransformMatrix is the
  direction of axis n in LPS, as ITK reads it; AnatomicalOrientation is a comment.
- MGH and MGZ (surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat): by nibabel.

Headers are text of a few lines and read here: pynrrd and ITK expand compressed data without a
bound, and open files that a header names. Headers without voxels (.nhdr, .mhd) are refused.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from medserve.errors import InvalidImageError, MedserveError, PayloadTooLargeError
from medserve.imaging.codecs.payload import Payload, quietly
from medserve.imaging.codecs.samples import (
    Samples,
    check_channels,
    finite,
    spatial_shape,
)
from medserve.imaging.codecs.sniff import is_mgh
from medserve.imaging.codecs.unpack import is_gzip, peek
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume, VolumeLimits

__all__ = ["decode", "recognises"]

_Affine = npt.NDArray[np.float64]
_Decoder = Callable[[bytes], "_Stored"]
_MAX_HEADER_BYTES = 2**20
_MGH_FOOTER = 2**20  # scan parameters and the commands that made the file
_TO_RAS = {  # signs of the axes of a space
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
}  # fmt: skip
_LPS = np.array((-1.0, -1.0, 1.0))
_NRRD_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int",
           "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}  # fmt: skip
_META_TYPES = {
    "met_char": "i1", "met_uchar": "u1", "met_short": "i2", "met_ushort": "u2", "met_int": "i4",
    "met_uint": "u4", "met_long_long": "i8", "met_ulong_long": "u8", "met_float": "f4",
    "met_double": "f8",
}  # fmt: skip
_VECTOR = re.compile(r"none|\(([^()]*)\)")
_MILLIMETRES = ("mm", "millimeter", "millimeters", "millimetre", "millimetres")


@dataclass(frozen=True)
class _Stored:
    """What a file holds.

    Attributes:
        sizes: Lengths of its axes, the fastest first.
        order: Those axes, the spatial ones first.
        affine: Index along the spatial axes -> RAS+ mm.
        samples: The voxels.
    """

    sizes: Sequence[int]
    order: Sequence[int]
    affine: _Affine
    samples: Samples


def recognises(payload: Payload) -> bool:
    """Tell whether the bytes begin as one of these formats does; nothing else is checked."""
    return _decoder(payload) is not None


def decode(
    payload: Payload, limits: VolumeLimits | None = None, channel: int | None = None
) -> Volume:
    """One volume, on its own grid, in its own unit.

    Args:
        payload: The file's bytes.
        limits: What is refused for its size.
        channel: Which of several volumes in the file; without it such files are refused.

    Raises:
        InvalidImageError: none of these formats, damaged, cut short, voxels in another file, a
            grid that is not stated or cannot be used.
        PayloadTooLargeError: above `limits`; known from the header, before memory is taken.
    """
    reader = _decoder(payload)
    if reader is None:
        raise InvalidImageError("expected NRRD, MetaImage or MGH, got another kind of file")
    try:
        with quietly():
            return _volume(reader(bytes(payload)), limits or VolumeLimits(), channel)
    except MedserveError:
        raise
    except MemoryError:
        raise PayloadTooLargeError(
            "expected a volume that fits into memory, got a larger one; crop or resample it"
        ) from None
    except Exception:  # headers hold anything
        raise InvalidImageError(
            "expected a whole NRRD, MetaImage or MGH file, got one whose header is damaged or "
            "lacks what it needs; export it again"
        ) from None


def _decoder(payload: Payload) -> _Decoder | None:
    start = bytes(payload[:1024])
    if re.match(rb"NRRD000\d\r?\n", start):
        return _nrrd
    if re.match(rb"(?:\w+ *=[^\n]*\n)*? *ObjectType *= *Image\b", start):
        return _metaimage
    return _mgh if is_mgh(peek(payload)) else None


def _nrrd(content: bytes) -> _Stored:
    end = re.search(rb"\r?\n\r?\n", content[:_MAX_HEADER_BYTES])
    head = content[: end.start()] if end else content[:_MAX_HEADER_BYTES]
    fields = _fields(head, re.compile(r"([^:=]+): (.*)"))
    if end is None or "data file" in fields or "datafile" in fields:
        raise _detached("NRRD", "an .nrrd file")
    if any(int(fields.get(name, 0)) for name in ("line skip", "lineskip", "byte skip", "byteskip")):
        raise InvalidImageError("expected NRRD voxels right behind the header, got a stated skip")
    encoding = fields["encoding"].lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise InvalidImageError(
            "expected NRRD voxels in the encoding raw or gzip, got another; save it in one of them"
        )
    sizes = [int(n) for n in fields["sizes"].split()]
    directions = [_vector(found) for found in _VECTOR.finditer(fields.get("space directions", ""))]
    signs = _TO_RAS.get(fields.get("space", "").lower())
    if signs is None or len(directions) != len(sizes):
        raise InvalidImageError(
            "expected an NRRD that states its axes in the space LPS, RAS or LAS, got another one; "
            "save it from a program that knows where the patient lies, or as NIfTI"
        )
    units = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    if any(unit.lower() not in ("", *_MILLIMETRES) for unit in units):
        raise InvalidImageError("expected an NRRD in millimetres, got another unit; convert it")
    spatial = [axis for axis, direction in enumerate(directions) if direction is not None]
    order = [*spatial, *(axis for axis in range(len(sizes)) if axis not in spatial)]
    if len(spatial) != 3:
        raise InvalidImageError(f"expected 3 spatial axes, got {len(spatial)}; send one volume")
    affine = _affine(
        np.array([directions[axis] for axis in spatial]).T,
        _vector(_VECTOR.search(fields.get("space origin", "(0,0,0)"))) or (),
        signs,
    )
    kind = next(kind for kind, names in _NRRD_TYPES.items() if fields["type"].lower() in names)
    endian = {"little": "<", "big": ">"}[fields["endian"].lower()] if kind[1] != "1" else "<"
    data, dtype = memoryview(content)[end.end() :], np.dtype(endian + kind)
    return _Stored(sizes, order, affine, Samples(data, dtype, encoding != "raw"))


def _metaimage(content: bytes) -> _Stored:
    start = content[:_MAX_HEADER_BYTES]
    end = re.search(rb"^ *ElementDataFile *= *([^\r\n]*?) *\r?(?:\n|\Z)", start, re.MULTILINE)
    if end is None or end[1] != b"LOCAL":
        raise _detached("MetaImage", "an .mha file")
    fields = _fields(content[: end.start()], re.compile(r"([^=]+)= *(.*)"))

    def numbers(default: str, *names: str) -> list[float]:
        return [float(n) for n in _first(fields, names, default).split()]

    def is_true(*names: str) -> bool:
        return _first(fields, names, "False").lower() in ("true", "1")

    if not is_true("binarydata") or int(fields.get("headersize", 0)) > 0:
        raise InvalidImageError("expected binary MetaImage voxels behind the header, got others")
    if fields.get("distanceunits", "mm").lower() not in (*_MILLIMETRES, "?"):
        raise InvalidImageError("expected a MetaImage in millimetres, got another unit; convert it")
    if numbers("1", "elementtointensityfunctionslope") != [1.0] or any(
        numbers("0", "elementtointensityfunctionoffset")
    ):
        raise InvalidImageError(
            "expected MetaImage voxels without rescale, got one; apply it first"
        )
    sides = [int(n) for n in fields["dimsize"].split()]
    axes, channels = int(fields["ndims"]), int(fields.get("elementnumberofchannels", 1))
    if not 3 <= axes == len(sides):
        raise InvalidImageError(f"expected 3 axes, got {axes}; send one volume")
    unit = " ".join(map(str, np.eye(axes).ravel()))
    rows = np.reshape(numbers(unit, "transformmatrix", "rotation", "orientation"), (axes, axes))
    spacing = numbers(" ".join("1" * axes), "elementspacing", "elementsize")
    origin = numbers(" ".join("0" * axes), "offset", "position", "origin")
    affine = _affine(rows[:3, :3].T * spacing[:3], origin[:3], _LPS)
    kind = _META_TYPES[fields["elementtype"].lower().removesuffix("_array")]
    endian = ">" if is_true("binarydatabyteordermsb", "elementbyteordermsb") else "<"
    is_several = channels > 1  # which lie beside each other, voxel by voxel
    sizes = [channels, *sides] if is_several else sides
    order = [*range(1, axes + 1), 0] if is_several else list(range(axes))
    data, dtype = memoryview(content)[end.end() :], np.dtype(endian + kind)
    return _Stored(sizes, order, affine, Samples(data, dtype, is_true("compresseddata")))


def _mgh(content: bytes) -> _Stored:
    read_header: Any = nibabel.freesurfer.mghformat.MGHHeader.from_fileobj
    header = read_header(io.BytesIO(peek(content)), check=False)
    sizes = [int(n) for n in header.get_data_shape()]
    affine = np.asarray(header.get_affine(), dtype=np.float64)
    dtype, skip = header.get_data_dtype(), int(header.get_data_offset())
    return _Stored(
        sizes,
        range(len(sizes)),
        affine,
        Samples(content, dtype, is_gzip(content), skip, _MGH_FOOTER),
    )


def _volume(stored: _Stored, limits: VolumeLimits, channel: int | None) -> Volume:
    shape, channels = spatial_shape([stored.sizes[axis] for axis in stored.order], channel)
    check_channels(shape, channels, limits)
    geometry = Geometry(shape, stored.affine)
    values = stored.samples.read(math.prod(stored.sizes)).reshape(stored.sizes, order="F")
    stack = values.transpose(stored.order).reshape((*shape, channels), order="F")
    return Volume(finite(stack[..., channel or 0]), geometry)


def _affine(columns: npt.ArrayLike, origin: npt.ArrayLike, signs: npt.ArrayLike) -> _Affine:
    """Voxel index -> RAS+ mm, of axes and origin in a space whose axes have these signs."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = columns, origin
    affine[:3] *= np.reshape(signs, (3, 1))
    return affine


def _fields(head: bytes, line: re.Pattern[str]) -> Mapping[str, str]:
    """The fields of a header, their names in lower case; comments and other lines do not count.

    Raises:
        ValueError: a header that is too long, or one that states a field twice.
    """
    if len(head) > _MAX_HEADER_BYTES:
        raise ValueError("expected a short header")
    fields: dict[str, str] = {}
    for text in head.decode("latin-1").splitlines():
        found = None if text.startswith("#") else line.fullmatch(text)
        if found is not None:
            name = found[1].strip().lower()
            if name in fields:
                raise ValueError("expected each field once")
            fields[name] = found[2].strip()
    return fields


def _vector(found: re.Match[str] | None) -> list[float] | None:
    """The numbers of `(1,0,0)`; None of `none`, which stands for an axis that is not spatial."""
    return None if found is None or found[1] is None else [float(n) for n in found[1].split(",")]


def _first(fields: Mapping[str, str], names: tuple[str, ...], default: str) -> str:
    return next((fields[name] for name in names if name in fields), default)


def _detached(kind: str, wanted: str) -> InvalidImageError:
    return InvalidImageError(
        f"expected one file with header and voxels, got a {kind} header whose voxels lie in "
        f"another file; save both as {wanted}, or as NIfTI"
    )
