"""DICOM images of one or many frames -> FrameStack; each frame is decoded when it is read."""

from __future__ import annotations

from pydicom import Dataset

from medserve.errors import InvalidImageError, MedserveError
from medserve.imaging.codecs import dicom, dicom_file, dicom_regions
from medserve.imaging.codecs.dicom_file import DAMAGED, check_stored_frames, frame_count
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
        count = frame_count(dataset)
        self.is_stack = count > 1
        self.grid = FrameGrid(
            (int(dataset.Rows), int(dataset.Columns)),
            count,
            dicom_regions.pixel_spacing_mm(dataset),
            dicom_regions.step_mm(dataset) if count > 1 else None,
            dicom_regions.calibrated_boxes(dataset),
            dicom_regions.pixel_aspect(dataset),
        )

    def read(self, index: int) -> Image:
        """Decode one frame; its neighbours stay as they are."""
        with quietly():
            return dicom.frame_image(self._dataset, index)

    def header(self) -> Dataset:
        """All of the header, without pixels, for an answer in DICOM; it identifies the patient."""
        return dicom_file.without_pixels(dicom_file.read(self._payload))


def decode(payload: Payload, limits: FrameLimits) -> DicomFrames:
    """Check the header; no pixel is decoded yet.

    Raises:
        InvalidImageError: no DICOM image, another modality, damaged, or frames other than stated.
        PayloadTooLargeError: more frames or pixels than `limits` allow.
    """
    with quietly():
        try:
            dataset = dicom.read(payload, dicom_regions.ELEMENTS)
            _refuse_modality(dataset, limits.modalities)
            dicom.check(dataset, limits.plane)
            limits.check_count(frame_count(dataset))
            check_stored_frames(dataset)
            return DicomFrames(dataset, payload)
        except MedserveError:
            raise
        except Exception:  # pydicom quotes values in what it raises
            raise InvalidImageError(DAMAGED.format(part="header")) from None


def _refuse_modality(dataset: Dataset, accepted: tuple[str, ...]) -> None:
    if accepted and str(dataset.get("Modality", "")) not in accepted:
        raise InvalidImageError(
            f"expected an image of modality {' or '.join(sorted(accepted))}, got another one; "
            "send it to a model for its kind"
        )
