"""Masks of frames as DICOM Segmentation (PS3.3 A.51): each frame refers to the one it was made of.

Ultrasound has no frame of reference: its frames lie nowhere in the patient. The object therefore
states no positions; frames are told apart by their place in the stack (PS3.3 C.7.6.16.2.2), and
each points at its source frame. highdicom writes the object for one frame; the others are added
here, for it takes several only with positions.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from functools import partial

import highdicom
import numpy as np
from pydicom import DataElement, Dataset
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian, UltrasoundImageStorage

from medserve.imaging.codecs.dicom_frames import DicomFrames
from medserve.imaging.codecs.payload import quietly
from medserve.imaging.frames import FrameGrid
from medserve.imaging.packed_masks import PackedMasks
from medserve.results.files import dicom_derived
from medserve.results.files.dicom_seg import CONTENT_LABEL, describe_segment
from medserve.spec.volumes import SegmentCoding
from medserve.tasks.result import Provenance

__all__ = ["encode"]

_STACK = "1"  # name of the one stack that the frames belong to
_ONE_FRAME = UltrasoundImageStorage
# Groups for each frame describe more of them than one image has; a segmentation needs none.
_OF_PLACES = (
    "FrameOfReferenceUID",
    "NumberOfFrames",
    "PerFrameFunctionalGroupsSequence",
    "SharedFunctionalGroupsSequence",
)
# Readers refuse an object without a thickness, and 0 is no valid one; so little claims no volume.
_UNKNOWN_THICKNESS_MM = 1e-3
_FRAMES_A_BLOCK = 8  # whose bits fill whole bytes, whatever a frame's size
_FRAME_CONTENT, _IN_STACK = Tag("FrameContentSequence"), Tag("InStackPositionNumber")


def encode(
    masks: PackedMasks,
    source: DicomFrames,
    segments: Sequence[tuple[str, SegmentCoding]],
    provenance: Provenance,
) -> bytes:
    """Return one DICOM file: of each binary segment a frame for each frame of the source.

    The same answer, made twice, is the same file, byte for byte.

    Args:
        masks: Label ids of all frames.
        source: The frames that they are masks of.
        segments: Name and meaning of each structure, in the order of their ids.
        provenance: The archive that answered.

    Raises:
        InvalidImageError: the source's header lacks an identifier that a derived object repeats.
    """
    with quietly():
        header = dicom_derived.repeatable(source.header())
        try:
            dataset = _first_frame(masks, header, segments, provenance)
            dataset.walk(partial(_refer, header.SOPClassUID))
            if source.is_stack:
                _add_frames(dataset, len(masks))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise dicom_derived.incomplete() from None  # not chained: highdicom quotes the header
        dataset.PatientOrientation = None  # type 2C of an image without a place in the patient
        _state_spacing(dataset, source.grid)
        dataset.PixelData = b"".join(_packed(masks, len(segments)))
        return dicom_derived.finished(dataset)


def _first_frame(
    masks: PackedMasks,
    header: Dataset,
    segments: Sequence[tuple[str, SegmentCoding]],
    provenance: Provenance,
) -> highdicom.seg.Segmentation:
    """Return the object of the first frame alone.

    highdicom wants positions of whatever calls itself multi-frame or names a frame of reference,
    so it is told of one image without.
    """
    single = copy.deepcopy(header)  # an assignment changes the element, which a copy would share
    for name in _OF_PLACES:
        single.pop(name, None)
    single.SOPClassUID = _ONE_FRAME
    return highdicom.seg.Segmentation(
        source_images=[single],
        pixel_array=masks[0][np.newaxis],
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            describe_segment(number, label, coding, header, provenance)
            for number, (label, coding) in enumerate(segments, start=1)
        ],
        content_label=CONTENT_LABEL,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=False,
        **dicom_derived.identity(header, provenance),
    )


def _state_spacing(dataset: Dataset, grid: FrameGrid) -> None:
    """Add the size of a pixel where it is known; viewers measure by it."""
    if grid.spacing_mm is None:
        return
    measures = Dataset()
    measures.PixelSpacing = [round(mm, 9) for mm in grid.spacing_mm]
    measures.SliceThickness = round(grid.step_mm or _UNKNOWN_THICKNESS_MM, 9)
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = [measures]


def _add_frames(dataset: Dataset, count: int) -> None:
    """One functional group for each frame, with its place in the stack and its source frame.

    The object has the groups of the first frame, one for each segment in their order.
    """
    dataset.PerFrameFunctionalGroupsSequence = [
        _group(first, segment, number)
        for segment, first in enumerate(dataset.PerFrameFunctionalGroupsSequence, start=1)
        for number in range(1, count + 1)
    ]
    dataset.NumberOfFrames = len(dataset.PerFrameFunctionalGroupsSequence)
    index = copy.deepcopy(dataset.DimensionIndexSequence[0])
    index.DimensionIndexPointer = _IN_STACK
    index.FunctionalGroupPointer = _FRAME_CONTENT
    index.DimensionDescriptionLabel = "Place in the stack"
    dataset.DimensionIndexSequence.append(index)


def _group(first: Dataset, segment: int, number: int) -> Dataset:
    group = copy.deepcopy(first)
    content = group.FrameContentSequence[0]
    content.StackID, content.InStackPositionNumber = _STACK, number
    content.DimensionIndexValues = [segment, number]
    group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = number
    return group


def _refer(sop_class: UID, dataset: Dataset, element: DataElement) -> None:
    """Call the source what it is, wherever it is referred to."""
    if element.keyword == "ReferencedSOPClassUID" and element.value == _ONE_FRAME:
        element.value = sop_class


def _packed(masks: PackedMasks, segments: int) -> Iterator[bytes]:
    """The bits of all frames without gaps, the first pixel lowest (PS3.5 8.2), in even length."""
    length = 0
    frames = (mask == number for number in range(1, segments + 1) for mask in masks)
    while block := list(itertools.islice(frames, _FRAMES_A_BLOCK)):
        bits = np.packbits(np.stack(block).ravel(), bitorder="little").tobytes()
        length += len(bits)
        yield bits
    yield b"\0" * (length % 2)
