"""The objects of a result: a model's segmentation with the node's identifiers, report, picture.

Identifiers are computed from the images, the rule, the model's archive and the task, so that the
objects of one result refer to each other and no two results share one. What is made here is kept
and sent as it is; it is never made a second time for the same task.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import highdicom
from pydicom import Dataset
from pydicom.filereader import read_partial
from pydicom.uid import generate_uid

from medserve.client import SegmentedFile
from medserve.dicom.ask import Answer
from medserve.dicom.deidentify import without_times
from medserve.dicom.evidence import evidence_of
from medserve.dicom.headers import read_header
from medserve.dicom.picture import draw_picture
from medserve.dicom.report import (
    Segments,
    frame_report,
    image_report,
    value_report,
    volume_report,
)
from medserve.dicom.rules import Kind, Rule, RuleTask
from medserve.dicom.spool import MadeObject, Task
from medserve.dicom.table import DEIDENTIFIED
from medserve.errors import InvalidImageError, MedserveError, ServerFailedError
from medserve.results.files.overlay import COLOURS
from medserve.tasks.frames import FrameResult
from medserve.tasks.result import Provenance

__all__ = ["make_objects"]

_SERIES_NUMBERS = {Kind.SEG: 9001, Kind.LABELMAP: 9001, Kind.SR: 9002, Kind.SC: 9003}
_SPOKEN = {
    Kind.SEG: "segmentation",
    Kind.LABELMAP: "segmentation",
    Kind.SR: "measurements",
    Kind.SC: "picture",
}
_LABEL_LENGTH = 64  # of VR LO (PS3.5 6.2)


# Of a segmentation: SegmentSequence. Behind it stand functional groups and pixels.
_LAST_CHANGED = 0x00620002


@dataclass(frozen=True)
class _Object:
    """An object before it is written.

    Attributes:
        dataset: Its elements, or the first of them.
        rest: The bytes of those that follow, in the same transfer syntax.
    """

    kind: Kind
    dataset: Dataset
    rest: bytes | memoryview = b""


@dataclass(frozen=True)
class Origin:
    """What the identifiers of one result are computed from."""

    task: Task
    provenance: Provenance

    def uid(self, *parts: object) -> str:
        """Return the identifier of that part of the result."""
        of = self.provenance
        seed = [
            *(self.task.content, self.task.rule, repr(self.task.created)),
            *(of.model, of.version, of.archive_digest),
        ]
        return str(generate_uid(entropy_srcs=[*seed, *map(str, parts)]))

    def series_uid(self, kind: Kind) -> str:
        """Return the identifier of the series that holds all objects of one kind."""
        return self.uid("series", kind)

    def description(self, kind: Kind) -> str:
        """Return the text of such a series, which says that it is for research."""
        of = self.provenance
        return f"{of.model} {of.version} {_SPOKEN[kind]} (research)"[:_LABEL_LENGTH]


def make_objects(
    task: Task, rule: Rule, answer: Answer, files: Sequence[Path], folder: Path
) -> list[MadeObject]:
    """Return all objects of a result, as they will be sent.

    Of a rule that de-identifies, the images that it was asked about are among them.

    Args:
        task: The task that was answered.
        rule: Its rule.
        answer: What the model found.
        files: The images that it was asked about, in the order of the answer.
        folder: Receives the objects' files.

    Raises:
        InvalidImageError: the images' headers do not allow an object to be derived from them.
        OSError: an image is gone.
    """
    origin = Origin(task, answer.provenance)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of foreign headers, whose values they quote
        try:
            copies = [_copy(file) for file in files if rule.deidentify]
            made = [_made(each, rule, folder) for each in _objects(origin, rule, answer, files)]
            return copies + made
        except (MedserveError, OSError):
            raise
        except Exception as error:
            raise InvalidImageError(
                "expected images whose headers allow a result to be derived, got some that do not "
                f"({type(error).__name__}); send the original series"
            ) from None  # not chained: libraries quote the header


def _objects(
    origin: Origin, rule: Rule, answer: Answer, files: Sequence[Path]
) -> Iterator[_Object]:
    evidence = [evidence_of(read_header(file)) for file in files]
    if rule.task is RuleTask.VOLUMES:
        yield from _of_volume(origin, rule, answer, evidence)
    elif rule.task is RuleTask.FRAMES:
        yield from _of_frames(origin, rule, answer, evidence, files)
    else:
        found: Any = answer.found
        report_of = value_report if rule.task is RuleTask.REGRESSION else image_report
        report = report_of(found, evidence, answer.provenance, origin.uid)
        yield _stamped(report, origin, Kind.SR, 1)


def _of_volume(
    origin: Origin, rule: Rule, answer: Answer, evidence: Sequence[Dataset]
) -> Iterator[_Object]:
    [result] = answer.found
    assert isinstance(result, SegmentedFile)
    kind = Kind.LABELMAP if Kind.LABELMAP in rule.kinds else Kind.SEG
    volumes = {each.label: each.volume_ml for each in result.measures}
    seg = _segmentation(result.mask, origin, kind, 1, volumes)
    yield seg
    if Kind.SR in rule.kinds:
        report = volume_report(result, Segments(seg.dataset), evidence, origin.uid)
        yield _stamped(report, origin, Kind.SR, 1)


def _of_frames(
    origin: Origin,
    rule: Rule,
    answer: Answer,
    evidence: Sequence[Dataset],
    files: Sequence[Path],
) -> Iterator[_Object]:
    for number, (result, source, file) in enumerate(
        zip(answer.found, evidence, files, strict=True), start=1
    ):
        assert isinstance(result, FrameResult)
        if Kind.SEG in rule.kinds:
            seg = _segmentation(result.dicom_seg, origin, Kind.SEG, number, result.volumes_ml)
            yield seg
            if Kind.SR in rule.kinds:
                report = frame_report(result, Segments(seg.dataset), source, origin.uid)
                yield _stamped(report, origin, Kind.SR, number)
        if Kind.SC in rule.kinds:
            yield _stamped(draw_picture(result, file, source), origin, Kind.SC, number)


def _segmentation(
    content: bytes | None, origin: Origin, kind: Kind, number: int, volumes_ml: dict[str, float]
) -> _Object:
    """Return the model's segmentation under the node's identifiers, its segments named for people.

    Only what changes is read: functional groups and pixels pass as they are. Viewers show the
    label of a segment and nothing else of it, so the volume stands there, too.
    """
    if content is None:
        raise ServerFailedError(
            "expected a DICOM segmentation in the model's answer, got none; does the archive have "
            "codes for its labels?"
        )
    stream = io.BytesIO(content)
    dataset = read_partial(stream, lambda tag, vr, length: tag > _LAST_CHANGED)
    segments = [each for each in dataset.SegmentSequence if each.SegmentNumber > 0]
    for place, segment in enumerate(segments):
        label = str(segment.SegmentLabel)
        segment.TrackingID = label
        segment.TrackingUID = origin.uid("track", number, segment.SegmentNumber)
        if label in volumes_ml:
            segment.SegmentLabel = f"{label} {volumes_ml[label]:.2f} ml"[:_LABEL_LENGTH]
        if "RecommendedDisplayCIELabValue" not in segment:
            colour = highdicom.color.CIELabColor.from_rgb(*COLOURS[place % len(COLOURS)])
            segment.RecommendedDisplayCIELabValue = list(colour.value)
    rest = memoryview(content)[stream.tell() :]
    return replace(_stamped(dataset, origin, kind, number), rest=rest)


def _stamped(dataset: Dataset, origin: Origin, kind: Kind, number: int) -> _Object:
    dataset.SeriesInstanceUID = origin.series_uid(kind)
    dataset.SOPInstanceUID = origin.uid("object", kind, number)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SeriesNumber, dataset.InstanceNumber = _SERIES_NUMBERS[kind], number
    dataset.SeriesDescription = origin.description(kind)
    return _Object(kind, dataset)


def _made(made: _Object, rule: Rule, folder: Path) -> MadeObject:
    dataset, kind = made.dataset, str(made.kind)
    file = folder / f"{dataset.SOPInstanceUID}.dcm"
    if rule.deidentify:
        without_times(dataset)
        kind = DEIDENTIFIED + kind
    with file.open("wb") as stream:
        dataset.save_as(stream, enforce_file_format=True)
        stream.write(made.rest)
    return MadeObject(
        str(dataset.SOPInstanceUID), str(dataset.SOPClassUID), str(dataset.SeriesInstanceUID),
        kind, file,
    )  # fmt: skip


def _copy(file: Path) -> MadeObject:
    header = read_header(file)
    return MadeObject(
        str(header.SOPInstanceUID), str(header.SOPClassUID), str(header.SeriesInstanceUID),
        f"{DEIDENTIFIED}image", file,
    )  # fmt: skip
