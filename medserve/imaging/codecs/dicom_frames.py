"""DICOM images of one or many frames -> FrameStack; each frame is decoded when it is read."""

from __future__ import annotations

from pydicom import Dataset
from pydicom.encaps import generate_fragments, parse_basic_offsets

from medserve.errors import InvalidImageError, MedserveError
from medserve.imaging.codecs import dicom, dicom_planes, dicom_regions
from medserve.imaging.codecs.payload import Payload, quietly
from medserve.imaging.frames import FrameGrid, FrameLimits, FrameStack
from medserve.imaging.image import Image
from medserve.spec import InputKind

__all__ = ["DicomFrames", "decode"]


class DicomFrames(FrameStack):
    """The frames of a DICOM file, as a viewer would show them first."""

    kind = InputKind.DICOM

    def __init__(self, dataset: Dataset, payload: Payload) -> None:
        self._dataset = dataset
        self._payload = payload
        count = dicom.frame_count(dataset)
        self.is_stack = count > 1
        self.grid = FrameGrid(
            (int(dataset.Rows), int(dataset.Columns)),
            count,
            dicom_regions.pixel_spacing_mm(dataset),
            dicom_regions.step_mm(dataset) if count > 1 else None,
        )

    def read(self, index: int) -> Image:
        """Decode one frame; its neighbours stay as they are."""
        with quietly():
            return dicom.frame_image(self._dataset, index)

    def header(self) -> Dataset:
        """All of the header, without pixels, for an answer in DICOM; it identifies the patient."""
        dataset = dicom_planes.read(bytes(self._payload))
        assert dataset is not None  # `decode` has seen that it is DICOM with pixels
        return dicom_planes.without_pixels(dataset)


def decode(payload: Payload, limits: FrameLimits) -> DicomFrames:
    """Check the header; no pixel is decoded yet.

    Raises:
        InvalidImageError: no DICOM image, another modality, damaged, or fewer frames than stated.
        PayloadTooLargeError: more frames or pixels than `limits` allow.
    """
    with quietly():
        try:
            dataset = dicom.read(bytes(payload), dicom_regions.ELEMENTS)
            _refuse_modality(dataset, limits.modalities)
            dicom.check(dataset, limits.plane)
            limits.check_count(dicom.frame_count(dataset))
            _refuse_missing(dataset)
            return DicomFrames(dataset, payload)
        except MedserveError:
            raise
        except Exception:  # pydicom quotes values in what it raises
            raise InvalidImageError(dicom.DAMAGED.format(part="header")) from None


def _refuse_modality(dataset: Dataset, accepted: tuple[str, ...]) -> None:
    if accepted and str(dataset.get("Modality", "")) not in accepted:
        raise InvalidImageError(
            f"expected an image of modality {' or '.join(sorted(accepted))}, got another one; "
            "send it to a model for its kind"
        )


def _refuse_missing(dataset: Dataset) -> None:
    """Frames that the header promises and the pixel data lack: a cut file, or a wrong number."""
    stated, syntax = dicom.frame_count(dataset), dicom.syntax_of(dataset)
    if syntax is None or "PixelData" not in dataset:
        return  # the codec says what is wrong
    found = _encapsulated(dataset) if syntax.is_encapsulated else _native(dataset)
    if found < stated:
        raise InvalidImageError(
            f"expected {stated} frames, as the header states, got pixel data of {found}; the "
            "file is cut short: export it again"
        )


def _native(dataset: Dataset) -> int:
    """Whole frames in uncompressed pixel data."""
    samples = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel") or 1)
    if str(dataset.get("PhotometricInterpretation")) == "YBR_FULL_422":
        samples = samples * 2 // 3  # two pixels share their colour (PS3.3 C.7.6.3.1.2)
    bits = samples * int(dataset.get("BitsAllocated") or 8)
    return len(dataset.PixelData) * 8 // max(bits, 1)


def _encapsulated(dataset: Dataset) -> int:
    """An upper bound of the frames in compressed pixel data: a frame has a fragment at least."""
    offsets = parse_basic_offsets(dataset.PixelData)
    fragments = sum(1 for fragment in generate_fragments(dataset.PixelData) if fragment)
    return min(len(offsets), fragments) if offsets else fragments
