"""A mask as DICOM Segmentation (PS3.3 A.51), beside the series that it was made of.

highdicom writes the object: it refers to each source image, copies patient and study from it, and
keeps the empty frames, so that viewers find a frame for every slice.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from hashlib import sha256

import highdicom
import numpy as np
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medserve.errors import InvalidImageError, InvalidRequestError
from medserve.imaging.codecs.dicom_series import DicomVolume
from medserve.imaging.codecs.payload import quietly
from medserve.imaging.volume import Volume
from medserve.results.segmentation import Segmentation
from medserve.spec.volumes import CodedTerm, SegmentCoding
from medserve.tasks.result import Provenance

__all__ = ["MANUFACTURER", "describe_segment", "encode", "incomplete"]

MANUFACTURER = "medserve"


def encode(
    segmentation: Segmentation,
    source: Volume,
    codes: Mapping[str, SegmentCoding],
    provenance: Provenance,
) -> bytes:
    """One DICOM file with a binary segment for each label but the background.

    The identifiers are computed from mask, source and archive: the same answer, made twice, is the
    same object.

    Args:
        segmentation: The mask, on the grid of `source`.
        source: What the request held, as decoded.
        codes: For each label but the background, its meaning.
        provenance: The model and version to name as the algorithm.

    Raises:
        InvalidRequestError: the source was no DICOM series.
        InvalidImageError: the source's headers lack what a derived object must repeat.
        ValueError: a label without a code, or another grid: mistakes of the code.
    """
    if not isinstance(source, DicomVolume):
        raise InvalidRequestError(
            "expected a DICOM series to answer with DICOM-SEG, got another kind of file; "
            "ask for NIfTI"
        )
    if segmentation.geometry != source.geometry:
        raise ValueError("the mask lies on another grid than its source")
    if missing := set(segmentation.labels[1:]) - set(codes):
        raise ValueError(f"labels without a code: {sorted(missing)}")
    with quietly():
        try:
            dataset = _build(segmentation, source, codes, provenance)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise incomplete() from None  # not chained: highdicom quotes the header
        stream = io.BytesIO()
        dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def incomplete() -> InvalidImageError:
    """The error of a source whose headers lack what a derived object must repeat."""
    return InvalidImageError(
        "expected DICOM headers complete enough to derive an object from, got some that are not; "
        "send the original series, or ask for NIfTI"
    )


def _build(
    segmentation: Segmentation,
    source: DicomVolume,
    codes: Mapping[str, SegmentCoding],
    provenance: Provenance,
) -> highdicom.seg.Segmentation:
    series = str(source.sources[0].get("SeriesInstanceUID"))
    seed = [series, provenance.model, provenance.version, provenance.archive_digest]
    return highdicom.seg.Segmentation(
        source_images=source.sources,
        pixel_array=_frames(segmentation, source),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            describe_segment(number, label, codes[label], provenance)
            for number, label in enumerate(segmentation.labels)
            if number > 0
        ],
        series_instance_uid=generate_uid(entropy_srcs=seed),
        series_number=100,
        sop_instance_uid=generate_uid(
            entropy_srcs=[*seed, sha256(segmentation.mask.tobytes()).hexdigest()]
        ),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=provenance.model,
        software_versions=provenance.version,
        device_serial_number="0",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=False,
    )


def _frames(segmentation: Segmentation, source: DicomVolume) -> np.ndarray:
    """The mask (I, J, K) -> frames (N, rows, columns) in the order of the source's frames."""
    frames = np.empty(segmentation.mask.T.shape, dtype=np.uint8)
    order = source.frames if len(source.sources) == 1 else range(len(frames))
    frames[list(order)] = segmentation.mask.transpose(2, 1, 0)
    return frames


def describe_segment(
    number: int, label: str, coding: SegmentCoding, provenance: Provenance
) -> highdicom.seg.SegmentDescription:
    """A segment of that number: its meaning, and the model as the algorithm that found it."""
    description = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=_code(coding.category),
        segmented_property_type=_code(coding.kind),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=provenance.model,
            family=Code("123109", "DCM", "Artificial Intelligence"),
            version=provenance.version,
        ),
    )
    if coding.modifier is not None:  # PS3.3 C.8.20-4, within the type; highdicom has no argument
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [_code(coding.modifier)]
    return description


def _code(term: CodedTerm) -> highdicom.sr.CodedConcept:
    return highdicom.sr.CodedConcept(term.value, term.scheme, term.meaning)
