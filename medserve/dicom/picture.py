"""Ultrasound frames with the contour, as a picture that every viewer shows.

Frames of ultrasound have no position in the patient, and viewers do not show a segmentation
without one. The picture is a Multi-frame True Color Secondary Capture (PS3.3 A.8.5).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as pillow
from PIL import ImageDraw, ImageFont
from pydicom import Dataset
from pydicom.tag import Tag
from pydicom.uid import MultiFrameTrueColorSecondaryCaptureImageStorage

from medserve.dicom.evidence import new_object
from medserve.imaging.codecs import dicom_frames
from medserve.imaging.frames import FrameLimits
from medserve.results.files.frame_overlay import coloured
from medserve.results.frame_segmentation import FrameSegmentation
from medserve.spec import InputKind, InputSpec
from medserve.tasks.frames import FrameResult

__all__ = ["draw_picture"]

_FRAME_MS = 40.0  # between frames, where nobody says otherwise
_TEXT, _MARGIN = (255, 220, 0), 4
_LINE = 30  # pixels of a frame's height for each of the text's


def draw_picture(result: FrameResult, file: Path, evidence: Dataset) -> Dataset:
    """Return the frames of a file with the mask drawn on each; a line says what it is.

    Args:
        result: The masks.
        file: The object that they were made of.
        evidence: Patient and study to repeat.
    """
    # The model has taken the file within its own limits; these only have to be as wide.
    plane = InputSpec(
        kinds=(InputKind.DICOM,), size=(1, 1), max_payload_bytes=2**31, max_pixels=2**26
    )
    source = dicom_frames.decode(file.read_bytes(), FrameLimits(plane, max_frames=2**16))
    found = FrameSegmentation.from_result(result)
    caption = _caption(result)
    frames = [
        _with_caption(coloured(source.read(index), found.masks[index]), caption)
        for index in range(source.grid.count)
    ]
    return _capture(frames, evidence, result)


def _caption(result: FrameResult) -> str:
    of = result.provenance
    measured = "".join(f"{label} {ml:.1f} ml - " for label, ml in result.volumes_ml.items())
    return f"{measured}{of.model} {of.version} - research use"


def _with_caption(picture: npt.NDArray[np.uint8], caption: str) -> npt.NDArray[np.uint8]:
    image = pillow.fromarray(picture)
    size = max(10, picture.shape[0] // _LINE)
    font = ImageFont.load_default(size)
    place = (_MARGIN, picture.shape[0] - size - 2 * _MARGIN)
    ImageDraw.Draw(image).text(place, caption, fill=_TEXT, font=font)
    return np.asarray(image)


def _capture(
    frames: list[npt.NDArray[np.uint8]], evidence: Dataset, result: FrameResult
) -> Dataset:
    kind = MultiFrameTrueColorSecondaryCaptureImageStorage
    dataset = new_object(evidence, kind, result.provenance)
    dataset.Modality = str(evidence.get("Modality") or "OT")
    dataset.ConversionType = "WSD"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.PatientOrientation = dataset.Laterality = ""  # not known, and wanted nevertheless
    stated = str(evidence.get("BurnedInAnnotation") or "")
    # Frames of scanners often show a name; where nobody says that they do not, they may.
    dataset.BurnedInAnnotation = stated if stated in ("YES", "NO") else "YES"
    dataset.LossyImageCompression = "00"
    source = Dataset()
    source.ReferencedSOPClassUID = evidence.SOPClassUID
    source.ReferencedSOPInstanceUID = evidence.SOPInstanceUID
    dataset.SourceImageSequence = [source]
    pixels = np.stack(frames)  # (N, H, W, 3)
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = pixels.shape[:3]
    dataset.FrameTime = _FRAME_MS
    dataset.FrameIncrementPointer = Tag("FrameTime")
    dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
    dataset.PhotometricInterpretation = "RGB"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
    return dataset
