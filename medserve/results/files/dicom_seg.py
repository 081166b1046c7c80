"""A mask as DICOM Segmentation (PS3.3 A.51), beside the series that it was made of.

highdicom writes the object: it refers to each source image, copies patient and study from it, and
keeps the empty frames, so that viewers find a frame for every slice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import highdicom
import numpy as np
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from medserve.errors import InvalidRequestError
from medserve.imaging.codecs.dicom_series import DicomVolume
from medserve.imaging.codecs.payload import quietly
from medserve.imaging.volume import Volume
from medserve.results.files import dicom_derived
from medserve.results.files.overlay import COLOURS
from medserve.results.segmentation import Segmentation
from medserve.spec.volumes import CodedTerm, SegmentCoding
from medserve.tasks.result import Provenance
from medserve.tasks.volumes import LabelMeasure

__all__ = ["CONTENT_LABEL", "describe_segment", "encode"]

CONTENT_LABEL = "SEGMENTATION"  # VR CS, at most 16 characters


def encode(
    segmentation: Segmentation,
    source: Volume,
    codes: Mapping[str, SegmentCoding],
    provenance: Provenance,
    *,
    is_labelmap: bool = False,
) -> bytes:
    """Return one DICOM file with a segment for each label but the background.

    The same answer, made twice, is the same file, byte for byte.

    Args:
        segmentation: The mask, on the grid of `source`.
        source: What the request held, as decoded.
        codes: For each label but the background, its meaning.
        provenance: The model and version to name as the algorithm.
        is_labelmap: Write one number for each voxel (Label Map Segmentation, PS3.3 A.51) instead
            of one bit for each segment and voxel.

    Raises:
        InvalidRequestError: the source was no DICOM series.
        InvalidImageError: the source's headers lack an identifier that a derived object must
            repeat.
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
        headers = _headers(source)
        try:
            dataset = _build(
                segmentation, source, headers, codes, provenance, is_labelmap=is_labelmap
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            raise dicom_derived.incomplete() from None  # not chained: highdicom quotes the header
        return dicom_derived.finished(dataset)


def _headers(source: DicomVolume) -> Sequence[Dataset]:
    """Return the sources' headers as highdicom wants them: one orientation, and a thickness."""
    headers = [dicom_derived.repeatable(each) for each in source.sources]
    if "FrameOfReferenceUID" not in headers[0]:
        raise dicom_derived.incomplete("FrameOfReferenceUID") from None
    step_mm = float(source.geometry.spacing_mm[2])
    if "PerFrameFunctionalGroupsSequence" in headers[0]:
        _simplify_groups(headers[0], sorted(source.frames), step_mm)
        return headers
    for each in headers:  # which differ by rounding, or the series were no volume
        each.ImageOrientationPatient = headers[0].ImageOrientationPatient
        each.SliceThickness = _thickness(each, step_mm)
    return headers


def _simplify_groups(header: Dataset, kept: Sequence[int], step_mm: float) -> None:
    """Reduce functional groups to orientation, spacing and positions, and frames to `kept`."""
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    groups = [header.PerFrameFunctionalGroupsSequence[frame] for frame in kept]
    header.NumberOfFrames = len(groups)

    def item(group: Dataset, name: str) -> Dataset:
        found: Dataset = group[name][0] if name in group else shared[name][0]
        return found

    orientation, measures, common = Dataset(), Dataset(), Dataset()
    first = item(groups[0], "PixelMeasuresSequence")
    orientation.ImageOrientationPatient = item(
        groups[0], "PlaneOrientationSequence"
    ).ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, _thickness(first, step_mm)
    common.PlaneOrientationSequence, common.PixelMeasuresSequence = [orientation], [measures]
    frames = []
    for group in groups:
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = item(group, "PlanePositionSequence").ImagePositionPatient
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    header.SharedFunctionalGroupsSequence, header.PerFrameFunctionalGroupsSequence = (
        [common],
        frames,
    )


def _thickness(item: Dataset, step_mm: float) -> float:
    """Return the stated thickness of a slice in mm, or where it is empty the way to the next."""
    return float(item.get("SliceThickness") or 0) or round(step_mm, 6)


def _build(
    segmentation: Segmentation,
    source: DicomVolume,
    headers: Sequence[Dataset],
    codes: Mapping[str, SegmentCoding],
    provenance: Provenance,
    *,
    is_labelmap: bool,
) -> highdicom.seg.Segmentation:
    kinds = highdicom.seg.SegmentationTypeValues
    dataset = highdicom.seg.Segmentation(
        source_images=headers,
        pixel_array=_frames(segmentation, source),
        segmentation_type=kinds.LABELMAP if is_labelmap else kinds.BINARY,
        segment_descriptions=[
            describe_segment(number, label, codes[label], headers[0], provenance)
            for number, label in enumerate(segmentation.labels)
            if number > 0
        ],
        content_label=CONTENT_LABEL,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=False,
        **dicom_derived.identity(headers[0], provenance),
    )
    if len(headers) == 1:
        _refer_to(dataset, sorted(source.frames))
    segments = [each for each in dataset.SegmentSequence if each.SegmentNumber > 0]
    for segment, measure in zip(segments, segmentation.measures, strict=True):
        segment.SegmentDescription = _described(measure)  # viewers show it beside the label
    return dataset


def _described(measure: LabelMeasure) -> str:
    told = f"{measure.volume_ml:.2f} ml"
    if measure.volume_interval_ml is not None:
        low, high = measure.volume_interval_ml
        told += f" ({low:.2f} to {high:.2f} ml in 90 % of cases)"
    if measure.predicted_dice is not None:
        told += f", predicted Dice {measure.predicted_dice:.2f}"
    return told


def _frames(segmentation: Segmentation, source: DicomVolume) -> np.ndarray:
    """The mask (I, J, K) -> frames (N, rows, columns) in the order of the source's frames."""
    frames = np.empty(segmentation.mask.T.shape, dtype=np.uint8)
    is_one = len(source.sources) == 1
    order = np.argsort(np.argsort(source.frames)) if is_one else np.arange(len(frames))
    frames[order] = segmentation.mask.transpose(2, 1, 0)
    return frames


def _refer_to(dataset: Dataset, frames: Sequence[int]) -> None:
    """Number the frames of a multi-frame source as they lie there, with those left out."""
    images = {
        id(image): image  # highdicom shares items between segments
        for group in dataset.PerFrameFunctionalGroupsSequence
        for derivation in group.get("DerivationImageSequence", ())
        for image in derivation.SourceImageSequence
        if "ReferencedFrameNumber" in image
    }
    for image in images.values():
        image.ReferencedFrameNumber = frames[int(image.ReferencedFrameNumber) - 1] + 1


def describe_segment(
    number: int, label: str, coding: SegmentCoding, source: Dataset, provenance: Provenance
) -> highdicom.seg.SegmentDescription:
    """Return a segment: its meaning, colour, identity, and the archive that found it."""
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
            parameters={"archive_digest": provenance.archive_digest},
        ),
        tracking_uid=dicom_derived.tracking_uid(source, label, provenance),
        tracking_id=label,
        display_color=highdicom.color.CIELabColor.from_rgb(*COLOURS[(number - 1) % len(COLOURS)]),
    )
    if coding.modifier is not None:  # PS3.3 C.8.20-4, within the type; highdicom has no argument
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [_code(coding.modifier)]
    return description


def _code(term: CodedTerm) -> highdicom.sr.CodedConcept:
    return highdicom.sr.CodedConcept(term.value, term.scheme, term.meaning)
