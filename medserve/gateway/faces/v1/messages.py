"""Options and results on their way through the messages of `medserve.v1`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from medserve.errors import InvalidRequestError, MedserveError
from medserve.gateway.core.packing import Outcome
from medserve.gateway.core.status import rpc_status
from medserve.spec import Task
from medserve.tasks.frames import FailedFrame, FrameResult, MeasuredFrame, Structure
from medserve.tasks.generation import GenerationResult
from medserve.tasks.result import Provenance, error_of
from medserve.tasks.volumes import VolumeResult
from medserve.wire.v1 import imaging_pb2 as pb

__all__ = [
    "OPTION_KEYS",
    "chunks",
    "estimate_response",
    "message_params",
    "provenance_message",
    "sample_files",
    "segment_result",
]

_CHUNK_BYTES = 512 * 2**10  # well below the 4 MB that a gRPC client takes by default
_OWN = ("model_name", "model_version", "content_bytes")  # what of a request is no option
OPTION_KEYS = {
    "image_count": "n",
    "class_name": "class",
    "size_px": "size",
    "mask_format": "format",
}
_NIFTI, _PNG, _DICOM = "application/gzip", "image/png", "application/dicom"
_Message = TypeVar("_Message", bound=Message)


@dataclass(frozen=True)
class File:
    """One file of a result; `image_index` counts where there is one file an image."""

    role: pb.FileRole.ValueType
    media_type: str
    content: bytes
    image_index: int = 0


def message_params(message: Message) -> dict[str, Any]:
    """Return the options that a request or its settings set, by the keys of the tasks' options.

    A field has the name of its option, but for those in `OPTION_KEYS`; what is not set is left out.
    """
    params: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.name not in _OWN:
            params[OPTION_KEYS.get(field.name, field.name)] = _plain(field, value)
    return params


def segment_result(
    answer: bytes, task: Task, mask_format: str | None = None
) -> tuple[pb.SegmentResult, list[File]]:
    """Return the description of a model's answer, and the files behind it.

    Raises:
        InvalidRequestError: a PNG is asked for, and the file is a stack of frames.
    """
    kind = FrameResult if task is Task.FRAMES else VolumeResult
    found: FrameResult | VolumeResult = kind.decode(answer)
    files = _files(found, mask_format)
    result = pb.SegmentResult(
        provenance=provenance_message(found.provenance),
        labels=found.labels,
        shape=found.shape,
        affine=[value for row in found.affine for value in row],
        spacing_mm=found.spacing_mm,
        measures=[_same(pb.LabelMeasure, each) for each in found.measures],
        review=found.review,
        unlike_training=found.unlike_training,
        doubts=[_same(pb.Doubt, each) for each in found.doubts],
        files=[
            pb.ResultFile(role=file.role, media_type=file.media_type, size_bytes=len(file.content))
            for file in files
        ],
    )
    if isinstance(found, FrameResult):
        result.view = found.view
        result.grid.CopyFrom(_same(pb.StackGrid, found.grid))
        result.stack.CopyFrom(_same(pb.StackMeasure, found.stack))
        result.frames.extend(map(_frame, found.frames))
        result.structures.extend(map(_structure, found.structures))
    return result, files


def sample_files(result: GenerationResult) -> list[File]:
    """Return the files that an answer holds beside its images."""
    every = [
        (pb.FILE_ROLE_IMAGES_NPZ, "application/zip", result.npz, 0),
        (pb.FILE_ROLE_IMAGES_NIFTI, _NIFTI, result.nifti, 0),
        *(
            (pb.FILE_ROLE_IMAGE_DICOM, _DICOM, image.dicom, index)
            for index, image in enumerate(result.images)
        ),
    ]
    return [
        File(role, media_type, content, index)
        for role, media_type, content, index in every
        if content is not None
    ]


def chunks(files: list[File]) -> Iterator[pb.FileChunk]:
    """Yield the files in pieces that every client takes."""
    for file in files:
        for offset in range(0, len(file.content), _CHUNK_BYTES):
            piece = file.content[offset : offset + _CHUNK_BYTES]
            yield pb.FileChunk(
                role=file.role, offset_bytes=offset, content=piece, image_index=file.image_index
            )


def provenance_message(provenance: Provenance) -> pb.Provenance:
    """Return the message that names the archive."""
    return pb.Provenance(
        model_name=provenance.model,
        model_version=provenance.version,
        archive_digest=provenance.archive_digest,
    )


def estimate_response(outcome: Outcome) -> pb.EstimateResponse:
    """Return the message that tells the numbers of one image, or why there are none."""
    response = pb.EstimateResponse(id=outcome.id, index=outcome.index)
    if outcome.provenance is not None:
        response.provenance.CopyFrom(provenance_message(outcome.provenance))
    try:
        found = outcome.regression()
    except MedserveError as error:
        response.error.CopyFrom(rpc_status(error))
        return response
    values = [_same(pb.EstimatedValue, each) for each in found.values]
    response.regression.CopyFrom(pb.Regression(values=values, review=found.review))
    return response


def _plain(field: FieldDescriptor, value: Any) -> Any:
    """Return the JSON value of a field: of an enum the word that its name ends with."""
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        prefix = len(field.enum_type.values[0].name.removesuffix("UNSPECIFIED"))
        return known.name[prefix:].lower().replace("_", "-") if known else str(value)
    return list(value) if field.is_repeated else value


def _files(found: VolumeResult | FrameResult, mask_format: str | None) -> list[File]:
    files = [_mask(found, mask_format)]
    if found.overlay_png is not None:
        files.append(File(pb.FILE_ROLE_OVERLAY, _PNG, found.overlay_png))
    if isinstance(found, VolumeResult):
        if found.entropy_nifti is not None:
            files.append(File(pb.FILE_ROLE_ENTROPY, _NIFTI, found.entropy_nifti))
        if found.probabilities_nifti is not None:
            files.append(File(pb.FILE_ROLE_PROBABILITIES, _NIFTI, found.probabilities_nifti))
    return files


def _mask(found: VolumeResult | FrameResult, mask_format: str | None) -> File:
    if found.dicom_seg is not None:  # it is there where it was asked for
        return File(pb.FILE_ROLE_MASK, _DICOM, found.dicom_seg)
    if mask_format == "png" and isinstance(found, FrameResult):
        if found.mask_png is None:
            raise InvalidRequestError(
                "A PNG holds the mask of a single frame, and this file is a stack; ask for NIfTI."
            )
        return File(pb.FILE_ROLE_MASK, _PNG, found.mask_png)
    return File(pb.FILE_ROLE_MASK, _NIFTI, found.mask_nifti)


def _frame(frame: MeasuredFrame | FailedFrame) -> pb.FrameOutcome:
    if isinstance(frame, FailedFrame):
        return pb.FrameOutcome(index=frame.index, error=rpc_status(error_of(frame.error)))
    return pb.FrameOutcome(
        index=frame.index,
        measure=_same(pb.FrameMeasure, frame),
        unlike_ultrasound=frame.unlike_ultrasound,
    )


def _structure(found: Structure) -> pb.Structure:
    return pb.Structure(
        label=found.label,
        label_id=found.label_id,
        stack=_same(pb.StackMeasure, found.stack),
        frames=[
            pb.StructureFrame(index=index, measure=_same(pb.FrameMeasure, each))
            for index, each in enumerate(found.frames)
            if each is not None
        ],
    )


def _same(kind: type[_Message], value: object) -> _Message:
    """Return the message whose fields have the names and values of a value's members."""
    names = kind.DESCRIPTOR.fields_by_name
    return kind(**{name: getattr(value, name) for name in names})
