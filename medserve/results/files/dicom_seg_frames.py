"""Masks of frames as DICOM Segmentation (PS3.3 A.51): each frame refers to the one it was made of.

Ultrasound has no frame of reference: its frames lie nowhere in the patient. The object therefore
states no positions; frames are told apart by their place in the stack (PS3.3 C.7.6.16.2.2), and
each points at its source frame. highdicom writes the object for one frame; the others are added
here, for it takes several only with positions.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from functools import partial
from hashlib import sha256

import highdicom
import numpy as np
from pydicom import DataElement, Dataset
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian, UltrasoundImageStorage, generate_uid

from medserve.imaging.codecs.dicom_frames import DicomFrames
from medserve.imaging.codecs.payload import quietly
from medserve.imaging.packed_masks import PackedMasks
from medserve.results.files.dicom_seg import MANUFACTURER, describe_segment, incomplete
from medserve.spec.volumes import SegmentCoding
from medserve.tasks.result import Provenance

__all__ = ["encode"]

_STACK = "1"  # name of the one stack that the frames belong to
_ONE_FRAME = UltrasoundImageStorage
_FRAMES_A_BLOCK = 8  # whose bits fill whole bytes, whatever a frame's size
_FRAME_CONTENT, _IN_STACK = Tag("FrameContentSequence"), Tag("InStackPositionNumber")


def encode(
    masks: PackedMasks,
    source: DicomFrames,
    label: str,
    coding: SegmentCoding,
    provenance: Provenance,
) -> bytes:
    """One DICOM file with one binary segment and a frame for each frame of the source.

    The identifiers are computed from masks, source and archive: the same answer, made twice, is
    the same object.

    Raises:
        InvalidImageError: the source's header lacks what a derived object must repeat.
    """
    header = source.header()
    with quietly():
        try:
            dataset = _first_frame(masks, header, label, coding, provenance)
            dataset.walk(partial(_refer, header.SOPClassUID))
            if source.is_stack:
                _add_frames(dataset, masks)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise incomplete() from None  # not chained: highdicom quotes the header
        dataset.PixelData = b"".join(_packed(masks))
        stream = io.BytesIO()
        dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _first_frame(
    masks: PackedMasks, header: Dataset, label: str, coding: SegmentCoding, provenance: Provenance
) -> highdicom.seg.Segmentation:
    """The object of the first frame alone.

    highdicom wants positions of whatever calls itself multi-frame, so it is told of one image.
    """
    single = copy.copy(header)  # elements are shared, and none of them is changed
    if "NumberOfFrames" in single:
        single.NumberOfFrames = 1
    # Groups for each frame describe more of them than `single` has; a segmentation needs none.
    for name in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        if name in single:
            delattr(single, name)
    single.SOPClassUID = _ONE_FRAME
    seed = [
        str(header.get("SOPInstanceUID")),
        *(provenance.model, provenance.version, provenance.archive_digest),
    ]
    digest = sha256(b"".join(_packed(masks))).hexdigest()
    return highdicom.seg.Segmentation(
        source_images=[single],
        pixel_array=masks[0][np.newaxis],
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[describe_segment(1, label, coding, provenance)],
        series_instance_uid=generate_uid(entropy_srcs=seed),
        series_number=100,
        sop_instance_uid=generate_uid(entropy_srcs=[*seed, digest]),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=provenance.model,
        software_versions=provenance.version,
        device_serial_number="0",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=False,
    )


def _add_frames(dataset: Dataset, masks: PackedMasks) -> None:
    """One functional group for each frame, with its place in the stack and its source frame."""
    first = dataset.PerFrameFunctionalGroupsSequence[0]
    dataset.PerFrameFunctionalGroupsSequence = [
        _group(first, number) for number in range(1, len(masks) + 1)
    ]
    dataset.NumberOfFrames = len(masks)
    index = copy.deepcopy(dataset.DimensionIndexSequence[0])
    index.DimensionIndexPointer = _IN_STACK
    index.FunctionalGroupPointer = _FRAME_CONTENT
    index.DimensionDescriptionLabel = "Place in the stack"
    dataset.DimensionIndexSequence.append(index)


def _group(first: Dataset, number: int) -> Dataset:
    group = copy.deepcopy(first)
    content = group.FrameContentSequence[0]
    content.StackID, content.InStackPositionNumber = _STACK, number
    content.DimensionIndexValues = [1, number]  # the segment, the place
    group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = number
    return group


def _refer(sop_class: UID, dataset: Dataset, element: DataElement) -> None:
    """Call the source what it is, wherever it is referred to."""
    if element.keyword == "ReferencedSOPClassUID" and element.value == _ONE_FRAME:
        element.value = sop_class


def _packed(masks: PackedMasks) -> Iterator[bytes]:
    """The bits of all frames without gaps, the first pixel lowest (PS3.5 8.2), in even length."""
    length = 0
    for start in range(0, len(masks), _FRAMES_A_BLOCK):
        block = np.stack(masks[start : start + _FRAMES_A_BLOCK])
        bits = np.packbits(block.ravel(), bitorder="little").tobytes()
        length += len(bits)
        yield bits
    yield b"\0" * (length % 2)
