"""Options and results on their way through the messages of `medserve.v1`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from medserve.gateway.core.masks import MaskAnswer
from medserve.tasks.result import Provenance
from medserve.tasks.volumes import LabelMeasure
from medserve.wire.v1 import imaging_pb2 as pb

__all__ = ["chunks", "message_params", "provenance_message", "segment_result"]

_CHUNK_BYTES = 512 * 2**10  # well below the 4 MB that a gRPC client takes by default
_OWN = ("model_name", "model_version", "content_bytes")  # what of a request is no option
_KEYS = {"image_count": "n", "class_name": "class", "size_px": "size", "mask_format": "format"}
_NIFTI = "application/gzip"


@dataclass(frozen=True)
class File:
    """One file of a result."""

    role: pb.FileRole.ValueType
    media_type: str
    content: bytes


def message_params(message: Message) -> dict[str, Any]:
    """Return the options that a request or its settings set, by the keys of the tasks' options.

    A field has the name of its option, but for those in `_KEYS`; what is not set is left out.
    """
    params: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.name not in _OWN:
            params[_KEYS.get(field.name, field.name)] = _plain(field, value)
    return params


def segment_result(answer: bytes) -> tuple[pb.SegmentResult, list[File]]:
    """The description of the model's answer, and the files behind it."""
    mask = MaskAnswer.from_json(answer)
    files = _files(mask)
    result = pb.SegmentResult(
        provenance=provenance_message(mask.provenance),
        labels=mask.labels,
        shape=mask.shape,
        affine=[value for row in mask.affine for value in row],
        spacing_mm=mask.spacing_mm,
        measures=[_measure(each) for each in mask.measures],
        files=[
            pb.ResultFile(role=file.role, media_type=file.media_type, size_bytes=len(file.content))
            for file in files
        ],
    )
    return result, files


def chunks(files: list[File]) -> Iterator[pb.FileChunk]:
    """The files in pieces that every client takes."""
    for file in files:
        for offset in range(0, len(file.content), _CHUNK_BYTES):
            piece = file.content[offset : offset + _CHUNK_BYTES]
            yield pb.FileChunk(role=file.role, offset_bytes=offset, content=piece)


def provenance_message(provenance: Provenance) -> pb.Provenance:
    """Which archive answered."""
    return pb.Provenance(
        model_name=provenance.model,
        model_version=provenance.version,
        archive_digest=provenance.archive_digest,
    )


def _plain(field: FieldDescriptor, value: Any) -> Any:
    """Return the JSON value of a field: of an enum the word that its name ends with."""
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        prefix = len(field.enum_type.values[0].name.removesuffix("UNSPECIFIED"))
        return known.name[prefix:].lower().replace("_", "-") if known else str(value)
    return list(value) if field.is_repeated else value


def _files(answer: MaskAnswer) -> list[File]:
    if answer.dicom_seg is None:
        files = [File(pb.FILE_ROLE_MASK, _NIFTI, answer.mask)]
    else:
        files = [File(pb.FILE_ROLE_MASK, "application/dicom", answer.dicom_seg)]
    if answer.overlay is not None:
        files.append(File(pb.FILE_ROLE_OVERLAY, "image/png", answer.overlay))
    if answer.entropy is not None:
        files.append(File(pb.FILE_ROLE_ENTROPY, _NIFTI, answer.entropy))
    return files


def _measure(measure: LabelMeasure) -> pb.LabelMeasure:
    return pb.LabelMeasure(
        label=measure.label,
        label_id=measure.label_id,
        voxels=measure.voxels,
        volume_ml=measure.volume_ml,
        centroid_mm=measure.centroid_mm or (),
        box_start=measure.box_start or (),
        box_stop=measure.box_stop or (),
        touches_border=measure.touches_border,
    )
