"""What tells acquisitions in one DICOM series apart, read from the header of each frame.

A series may hold several acquisitions of one place: echoes, image types, b-values, moments, phases
of contrast. What counts follows dcm2niix (`isSameSet` in its nii_dicom_batch.cpp), which stacks
slices of one echo, protocol, flip angle, component and orientation; here b-value, inversion time,
temporal position, contrast agent, tube voltage and kernel count as well. Private b-values are read
where dcm2niix reads them.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydicom import Dataset

from medserve.imaging.codecs.dicom_pixels import group

__all__ = [
    "B_VALUE",
    "MOMENTS",
    "TRAITS",
    "Trait",
    "moments_of",
    "traits_of",
    "written",
]

# Elements that say when an image was taken: of the functional groups, else of the header. Times of
# day follow the date beside them.
MOMENTS: tuple[tuple[str, str, str, str], ...] = (
    ("TriggerTime", "", "CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("FrameReferenceTime", "", "", ""),
    ("AcquisitionDateTime", "", "FrameContentSequence", "FrameAcquisitionDateTime"),
    ("AcquisitionTime", "AcquisitionDate", "", ""),
    ("ContentTime", "ContentDate", "", ""),
)
# Private elements with the b-value: creator of the block, group, element in the block, and how the
# manufacturer's name begins where a file lacks the creators.
_PRIVATE_B_VALUES = (
    ("SIEMENS MR HEADER", 0x0019, 0x0C, "SIEMENS"),
    ("GEMS_PARM_01", 0x0043, 0x39, "GE"),
    ("Philips Imaging DD 001", 0x2001, 0x03, "PHILIPS"),
    ("Image Private Header", 0x0065, 0x09, "UIH"),
)
_GE_BIAS = 10**9  # which GE adds to a b-value (rordenlab/dcm2niix#602)
_FIRST_BLOCK = 0x1000  # of private elements, PS3.5 section 7.8.1
_NO_AGENT = ("", "none", "no")


@dataclass(frozen=True)
class Trait:
    """One trait of an acquisition.

    Attributes:
        key: Its name in the option `select`.
        spoken: Its name for people.
        outer: The element of a classic header.
        inner: The same in functional groups (sequence and element, PS3.3 C.8.13 and C.8.15).
        in_turn: Whether it counts only where slices of several values lie between each other, as
            those of one acquisition may differ in it from place to place.
        read: How it is read; by default as these elements have it.
    """

    key: str
    spoken: str
    outer: str = ""
    inner: tuple[tuple[str, str], ...] = ()
    in_turn: bool = False
    read: Callable[[Dataset, int], str] | None = field(default=None)

    def of(self, dataset: Dataset, frame: int) -> str:
        """Return the value of a frame as text, empty where its header does not say."""
        if self.read is not None:
            return self.read(dataset, frame)
        return written(_stated(dataset, frame, self.outer, self.inner))


def _stated(dataset: Dataset, frame: int, outer: str, inner: tuple[tuple[str, str], ...]) -> Any:
    for sequence, name in inner:
        value = group(dataset, frame, sequence, name).get(name)
        if value not in (None, ""):
            return value
    return dataset.get(outer)


def _b_value(dataset: Dataset, frame: int) -> str:
    inner = (("MRDiffusionSequence", "DiffusionBValue"),)
    stated = _stated(dataset, frame, "DiffusionBValue", inner)
    if stated in (None, ""):
        stated = _private_b_value(dataset)
    return written(stated)


def _private_b_value(dataset: Dataset) -> float | None:
    manufacturer = str(dataset.get("Manufacturer") or "").upper()
    for creator, group_number, element, maker in _PRIVATE_B_VALUES:
        try:
            found = dataset.private_block(group_number, creator)[element]
        except KeyError:
            tag = (group_number, _FIRST_BLOCK + element)
            if tag not in dataset or not manufacturer.startswith(maker):
                continue
            found = dataset[tag]
        value = _first_number(found.value)
        if value is not None:
            return value % _GE_BIAS if maker == "GE" else value
    return None


def _first_number(value: Any) -> float | None:
    """Return the first number of an element whose VR may not be known (UN)."""
    if isinstance(value, bytes):
        layout = {4: "<f", 8: "<d"}.get(len(value))
        text = value.split(b"\\")[0].strip(b" \0")
        if layout and not text.isdigit():
            return float(struct.unpack(layout, value)[0])
        value = text.decode("ascii", "ignore")
    elif not isinstance(value, str | int | float) and value is not None and len(value):
        value = value[0]
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _contrast(dataset: Dataset, frame: int) -> str:
    """Tell whether a contrast agent was given; the header names which, in free text."""
    inner = ("ContrastBolusUsageSequence", "ContrastBolusAgentAdministered")
    stated = group(dataset, frame, *inner).get(inner[1])
    if stated:
        return str(stated).lower()
    agent = str(dataset.get("ContrastBolusAgent") or "").strip().lower()
    return "no" if agent in _NO_AGENT and not dataset.get("ContrastBolusAgentSequence") else "yes"


def _unit(dataset: Dataset, frame: int) -> str:
    """Return the unit of the pixels: of PET, or after a rescale."""
    stated = dataset.get("Units") or _stated(
        dataset, frame, "RescaleType", (("PixelValueTransformationSequence", "RescaleType"),)
    )
    return written(stated)


def _text(value: Any) -> str:
    """Return a sign for free text, which may name a person: alike for texts that are alike."""
    text = " ".join(str(value or "").split()).casefold()
    return f"text-{zlib.crc32(text.encode()):08x}" if text else ""


def _coil(dataset: Dataset, frame: int) -> str:
    """Return a sign for the receive coil, which Siemens keeps in an element of its own."""
    try:
        stated = dataset.private_block(0x0051, "SIEMENS MR HEADER")[0x0F].value
    except KeyError:
        inner = (("MRReceiveCoilSequence", "ReceiveCoilName"),)
        stated = _stated(dataset, frame, "ReceiveCoilName", inner)
    return _text(stated.decode("latin-1") if isinstance(stated, bytes) else stated)


B_VALUE = Trait("b_value", "b-value", read=_b_value)
_MR, _CT = "MRImageFrameTypeSequence", "CTImageFrameTypeSequence"
TRAITS: tuple[Trait, ...] = (
    Trait("echo_time", "echo time", "EchoTime", (("MREchoSequence", "EffectiveEchoTime"),)),
    Trait("image_type", "image type", "ImageType", ((_MR, "FrameType"), (_CT, "FrameType"))),
    Trait("component", "component", "ComplexImageComponent", ((_MR, "ComplexImageComponent"),)),
    B_VALUE,
    Trait("temporal_position", "temporal position", "TemporalPositionIdentifier",
          (("FrameContentSequence", "TemporalPositionIndex"),)),
    Trait("contrast", "contrast agent", read=_contrast),
    Trait("flip_angle", "flip angle", "FlipAngle",
          (("MRTimingAndRelatedParametersSequence", "FlipAngle"),)),
    Trait("inversion_time", "inversion time", "InversionTime",
          (("MRModifierSequence", "InversionTimes"),)),
    Trait("voltage", "tube voltage", "KVP", (("CTXRayDetailsSequence", "KVP"),)),
    Trait("kernel", "kernel", "ConvolutionKernel",
          (("CTReconstructionSequence", "ConvolutionKernel"),)),
    Trait("stack", "stack", "StackID", (("FrameContentSequence", "StackID"),)),
    Trait("echo_number", "echo number", "EchoNumbers"),
    Trait("protocol", "protocol", read=lambda dataset, _: _text(dataset.get("ProtocolName"))),
    Trait("coil", "coil", read=_coil, in_turn=True),
    Trait("description", "series description", in_turn=True,
          read=lambda dataset, _: _text(dataset.get("SeriesDescription"))),
    Trait("bandwidth", "pixel bandwidth", "PixelBandwidth",
          (("MRImagingModifierSequence", "PixelBandwidth"),), in_turn=True),
    Trait("acquisition", "acquisition number", "AcquisitionNumber",
          (("FrameContentSequence", "FrameAcquisitionNumber"),), in_turn=True),
    Trait("thickness", "slice thickness", "SliceThickness",
          (("PixelMeasuresSequence", "SliceThickness"),), in_turn=True),
    Trait("sequence", "scanning sequence", "ScanningSequence", in_turn=True),
    Trait("sequence_name", "sequence name", "SequenceName", in_turn=True),
    Trait("options", "scan options", "ScanOptions", in_turn=True),
    Trait("class", "SOP class", "SOPClassUID", in_turn=True),
    Trait("number", "series number", "SeriesNumber", in_turn=True),
    Trait("diameter", "reconstruction diameter", "ReconstructionDiameter", in_turn=True),
    Trait("unit", "unit", in_turn=True, read=_unit),
)  # fmt: skip


def traits_of(dataset: Dataset, frame: int) -> tuple[str, ...]:
    """Return every trait of a frame as text, in the order of `TRAITS`."""
    return tuple(trait.of(dataset, frame) for trait in TRAITS)


def moments_of(dataset: Dataset, frame: int) -> tuple[float, ...]:
    """Return when a frame was taken, in the order of `MOMENTS`; NaN where it is not stated."""
    return tuple(_moment(dataset, frame, *elements) for elements in MOMENTS)


def _moment(dataset: Dataset, frame: int, time: str, date: str, sequence: str, name: str) -> float:
    inner = ((sequence, name),) if sequence else ()
    value = _stated(dataset, frame, time, inner)
    text = "" if value is None else str(value)
    day = str(dataset.get(date) or "") if date and text else ""
    try:  # HHMMSS.FFFFFF behind YYYYMMDD is a number that rises with time; milliseconds are one
        number = float(day or 0) * 1e6 + float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def written(value: Any) -> str:
    """Return one or several values as text; numbers without digits that scanners make up."""
    if value is None or value == "":
        return ""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, str | int):
        return str(value)
    return "/".join(written(each) for each in value)
