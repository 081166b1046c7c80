"""De-identified copies of images (PS3.15 annex E, Basic Application Level Confidentiality Profile).

The profile lists what has to go. Here it is the other way round: an element stays only if the list
below names it, so that what no list knows - private elements, overlays, curves, new attributes,
free text - goes as well. What stays are numbers, coded values, geometry and pixels. Identifiers
become keyed ones, the same for the same original under one key; times and free text do not stay.

Pixels stay as they are. Images that may show text are refused unless a rule takes them.
"""

from __future__ import annotations

import hmac
import os
import secrets
import warnings
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import DataElement, Dataset, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID

from medserve.dicom.classes import NEVER_SHOWING_TEXT
from medserve.errors import ConfigError, InvalidImageError
from medserve.imaging.codecs.dicom_traits import B_VALUE

__all__ = ["Pseudonyms", "copy_without_identity", "without_times"]

_KEY_FILE, _KEY_BYTES = "deidentify.key", 32
_STANDARD_UIDS = "1.2.840.10008."
_METHOD = "PS3.15 Basic Profile, named elements alone"
_SCREEN = {"SCREEN SAVE", "SCREEN_SAVE", "SCREENSHOT"}
_IDENTIFIERS = {
    "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
    "DimensionOrganizationUID", "ConcatenationUID",
}  # fmt: skip
_NUMBERS = {
    # of the image and its pixels
    "SeriesNumber", "InstanceNumber", "AcquisitionNumber", "NumberOfFrames", "SamplesPerPixel",
    "Rows", "Columns", "PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "PixelAspectRatio",
    "SmallestImagePixelValue", "LargestImagePixelValue", "RescaleSlope", "RescaleIntercept",
    "WindowCenter", "WindowWidth", "LossyImageCompressionRatio", "LUTDescriptor", "LUTData",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData", "PixelData", "FloatPixelData",
    "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
    # of its place
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing",
    "NominalScannedPixelSpacing", "SliceThickness", "SpacingBetweenSlices", "SliceLocation",
    "TemporalPositionIdentifier", "NumberOfTemporalPositions", "TemporalPositionIndex",
    "InStackPositionNumber", "DimensionIndexValues", "DimensionIndexPointer",
    "FunctionalGroupPointer", "FrameAcquisitionNumber", "InConcatenationNumber",
    "InConcatenationTotalNumber", "ConcatenationFrameOffsetNumber",
    # of how it was taken
    "EchoTime", "EffectiveEchoTime", "RepetitionTime", "FlipAngle", "InversionTime",
    "InversionTimes", "EchoTrainLength", "EchoNumbers", "PixelBandwidth",
    "MagneticFieldStrength", "DiffusionBValue",
    "KVP", "TriggerTime", "NominalCardiacTriggerDelayTime", "FrameReferenceTime", "FrameTime",
    "FrameIncrementPointer", "RecommendedDisplayFrameRate", "CineRate",
    # of calibrated regions of ultrasound (PS3.3 C.8.5.5)
    "RegionSpatialFormat", "RegionDataType", "RegionFlags", "RegionLocationMinX0",
    "RegionLocationMinY0", "RegionLocationMaxX1", "RegionLocationMaxY1",
    "PhysicalUnitsXDirection", "PhysicalUnitsYDirection", "PhysicalDeltaX", "PhysicalDeltaY",
    "ReferencePixelX0", "ReferencePixelY0",
}  # fmt: skip
_CODES = {
    "Modality", "ImageType", "FrameType", "PhotometricInterpretation", "BodyPartExamined",
    "PatientPosition", "Laterality", "ImageLaterality", "ViewPosition", "LossyImageCompression",
    "LossyImageCompressionMethod", "BurnedInAnnotation", "PresentationLUTShape",
    "PresentationIntentType", "PixelIntensityRelationship", "VOILUTFunction", "RescaleType",
    "ModalityLUTType", "ScanningSequence", "SequenceVariant", "ScanOptions", "MRAcquisitionType",
    "ComplexImageComponent", "ContrastBolusAgentAdministered", "ConversionType", "ContentLabel",
    "VolumetricProperties", "PixelPresentation", "AcquisitionContrast", "DimensionOrganizationType",
}  # fmt: skip
# Text that tells acquisitions apart, and becomes a sign of its own.
_NAMES = {"ConvolutionKernel", "StackID", "ProtocolName", "SeriesDescription", "ReceiveCoilName"}
_SEQUENCES = {
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PixelMeasuresSequence",
    "PlanePositionSequence", "PlaneOrientationSequence", "FrameContentSequence",
    "PixelValueTransformationSequence", "FrameVOILUTSequence", "MREchoSequence",
    "MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "MRTimingAndRelatedParametersSequence",
    "MRModifierSequence", "MRImagingModifierSequence", "MRReceiveCoilSequence",
    "MRDiffusionSequence", "CTXRayDetailsSequence",
    "CTReconstructionSequence", "CardiacSynchronizationSequence", "ContrastBolusUsageSequence",
    "DimensionOrganizationSequence", "DimensionIndexSequence", "ModalityLUTSequence",
    "VOILUTSequence", "SequenceOfUltrasoundRegions",
}  # fmt: skip
# Type 2 of the modules of every image: there, and empty.
_EMPTY = (
    "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName",
    "StudyID", "AccessionNumber", "Manufacturer",
)  # fmt: skip
_NO_TIMES = {"DA": "19000101", "TM": "000000", "DT": "19000101000000"}
_CODE_LETTERS = set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _")  # of VR CS, PS3.5 6.2
_CODE_LENGTH = 16


class Pseudonyms:
    """Identifiers in place of others: the same for the same original, by nobody without the key.

    Args:
        key: Secret of at least 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def of_folder(cls, folder: Path) -> Pseudonyms:
        """Read the key of a state folder, or make one; ConfigError where that fails."""
        path = folder / _KEY_FILE
        try:
            if not path.exists():
                part = folder / f"{_KEY_FILE}.part"
                descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(descriptor, "w") as stream:
                    stream.write(secrets.token_hex(_KEY_BYTES))
                    stream.flush()
                    os.fsync(stream.fileno())
                part.rename(path)
            key = bytes.fromhex(path.read_text().strip())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be used as a key ({error})") from error
        if len(key) < _KEY_BYTES:
            raise ConfigError(f"{path}: expected {_KEY_BYTES} bytes as hexadecimal digits")
        return cls(key)

    def uid(self, original: str) -> str:
        """Return a UID below 2.25 (PS3.5 B.2); those of the standard itself stay."""
        if original.startswith(_STANDARD_UIDS):
            return original
        return f"2.25.{int.from_bytes(self._digest('uid', original)[:16], 'big')}"

    def code(self, kind: str, original: str) -> str:
        """Return 16 hexadecimal digits."""
        return self._digest(kind, original)[:8].hex().upper()

    def _digest(self, kind: str, original: str) -> bytes:
        return hmac.new(self._key, f"{kind}\0{original}".encode(), sha256).digest()


def copy_without_identity(
    source: Path, target: Path, pseudonyms: Pseudonyms, *, may_show_text: bool
) -> None:
    """Write the de-identified copy of an image.

    Args:
        source: The image.
        target: The file of the copy.
        pseudonyms: Identifiers in place of its own.
        may_show_text: Whether images are taken whose pixels may show text.

    Raises:
        InvalidImageError: the image may show text, or an element that has to stay is no number.
        OSError: a file cannot be read or written.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of foreign headers, whose values they quote
        try:
            dataset = dcmread(source)
            if not may_show_text:
                _refuse_text(dataset)
            copy = _copied(dataset, pseudonyms)
            _describe(copy, dataset, pseudonyms)
            copy.save_as(target, enforce_file_format=True)
        except (InvalidImageError, OSError):
            raise
        except Exception as error:  # a parser of foreign bytes may raise anything, and quote them
            raise InvalidImageError(
                f"expected an image that can be de-identified, got another ({type(error).__name__})"
                "; export it again"
            ) from None


def without_times(dataset: Dataset) -> None:
    """Replace every date and time of an object, which would tell when its images were taken."""

    def replace(_: Dataset, element: DataElement) -> None:
        if element.VR in _NO_TIMES and element.value:
            element.value = _NO_TIMES[element.VR]

    dataset.walk(replace)


def _refuse_text(dataset: Dataset) -> None:
    stated = str(dataset.get("BurnedInAnnotation") or "")
    is_plain = str(dataset.get("SOPClassUID")) in NEVER_SHOWING_TEXT
    is_screen = bool(_SCREEN & {each.upper() for each in _texts(dataset.get("ImageType"))})
    if stated == "NO" or (is_plain and not is_screen and stated != "YES"):
        return
    raise InvalidImageError(
        "expected images whose pixels show no text, got some that say they do, or do not say that "
        "they do not (BurnedInAnnotation); look at them, and set burned_in = true in the rule to "
        "send them nevertheless"
    )


def _copied(dataset: Dataset, pseudonyms: Pseudonyms) -> Dataset:
    """Return what of a data set, or of an item, may stay."""
    copy = Dataset()
    for tag in dataset.keys():  # noqa: SIM118 - elements are converted one by one, named ones alone
        if tag.is_private or tag.group & 0xFF00 in (0x5000, 0x6000):
            continue
        keyword = _keyword(tag)
        if keyword in _SEQUENCES:
            items = [_copied(item, pseudonyms) for item in dataset[tag].value or ()]
            copy.add(DataElement(tag, "SQ", Items(items)))
        elif keyword in _IDENTIFIERS:
            copy.add(DataElement(tag, "UI", pseudonyms.uid(str(dataset[tag].value))))
        elif keyword in _NUMBERS:
            copy.add(_number(dataset, tag, keyword))
        elif keyword in _CODES:
            kept = [each for each in _texts(dataset[tag].value) if _is_code(each)]
            copy.add(DataElement(tag, "CS", kept[0] if len(kept) == 1 else kept))
        elif keyword in _NAMES:
            texts = "\\".join(_texts(dataset[tag].value))
            sign = pseudonyms.code("name", texts) if texts else ""
            copy.add(DataElement(tag, dictionary_VR(tag), sign))
    return copy


def _number(dataset: Dataset, tag: Any, keyword: str) -> DataElement:
    try:
        element: DataElement = dataset[tag]
        if element.VR in ("DS", "IS"):
            [float(each) for each in _texts(element.value)]
    except Exception:
        raise InvalidImageError(
            f"expected a number in {keyword}, got something else; export the image again"
        ) from None
    if element.VR in ("DS", "IS", "US", "SS", "UL", "SL", "FD", "FL", "OB", "OW", "OF", "OD",
                      "OV", "AT"):  # fmt: skip
        return element
    raise InvalidImageError(f"expected a number in {keyword}, got another kind of value")


def _describe(copy: Dataset, dataset: Dataset, pseudonyms: Pseudonyms) -> None:
    """Say whose copy it is, by a pseudonym, and how it was made; clear what unused bits hold."""
    patient = [str(dataset.get(name) or "").strip() for name in ("PatientID", "IssuerOfPatientID")]
    original = "\0".join(patient) if patient[0] else str(dataset.StudyInstanceUID)
    copy.PatientID = copy.PatientName = pseudonyms.code("patient", original)
    copy.SOPClassUID = str(dataset.SOPClassUID)
    copy.PatientIdentityRemoved, copy.DeidentificationMethod = "YES", _METHOD
    copy.LongitudinalTemporalInformationModified = "REMOVED"
    method = Dataset()
    method.CodeValue, method.CodingSchemeDesignator = "113100", "DCM"
    method.CodeMeaning = "Basic Application Confidentiality Profile"
    copy.DeidentificationMethodCodeSequence = [method]
    for name in _EMPTY:
        setattr(copy, name, "")
    if "FrameOfReferenceUID" in copy:
        copy.PositionReferenceIndicator = ""
    if dataset.get("ContrastBolusAgent"):
        copy.ContrastBolusAgent = "UNSPECIFIED"
    if not dataset.get("SharedFunctionalGroupsSequence") and (value := B_VALUE.of(dataset, 0)):
        copy.DiffusionBValue = float(value)  # which may stand in a private element
    copy.file_meta = FileMetaDataset()
    copy.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    copy.file_meta.MediaStorageSOPClassUID = UID(copy.SOPClassUID)
    copy.file_meta.MediaStorageSOPInstanceUID = UID(copy.SOPInstanceUID)
    _clear_unused_bits(copy, dataset)


def _clear_unused_bits(copy: Dataset, dataset: Dataset) -> None:
    """Clear the bits beside the stored ones, where overlays may lie (PS3.5 8.1.2, retired)."""
    overlays = [tag for tag in dataset.keys()  # noqa: SIM118
                if tag.group & 0xFF00 == 0x6000 and tag.element == 0x0102]  # fmt: skip
    in_pixels = any(int(dataset[tag].value or 0) for tag in overlays)
    allocated = int(dataset.get("BitsAllocated") or 0)
    stored = int(dataset.get("BitsStored") or allocated)
    if "PixelData" not in copy or stored >= allocated:
        return
    if copy.file_meta.TransferSyntaxUID.is_encapsulated:
        if in_pixels:
            raise InvalidImageError(
                "expected overlays beside the pixels, got some within compressed ones, which may "
                "show a name; decompress the images first"
            )
        return
    if allocated not in (8, 16, 32):
        return
    high = int(dataset.get("HighBit") or stored - 1)
    signed = bool(int(dataset.get("PixelRepresentation") or 0))
    words = np.frombuffer(dataset.PixelData, f"<{'i' if signed else 'u'}{allocated // 8}")
    above, below = allocated - 1 - high, high + 1 - stored
    if not (above >= 0 and below >= 0):
        return
    kept = ((words << above) >> (above + below)) << below  # a sign stays in the bits above
    copy.PixelData = kept.tobytes()
    copy["PixelData"].VR = dataset["PixelData"].VR


def _keyword(tag: Any) -> str:
    from pydicom.datadict import keyword_for_tag

    return keyword_for_tag(tag)


def _is_code(text: str) -> bool:
    return 0 < len(text) <= _CODE_LENGTH and set(text) <= _CODE_LETTERS


def _texts(value: Any) -> Sequence[str]:
    if value is None or value == "":
        return []
    if isinstance(value, str | bytes | int | float):
        return [str(value)]
    return [str(each) for each in value]
