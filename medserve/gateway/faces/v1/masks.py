"""Masks on their way through the typed `Segment` call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from medserve.errors import InvalidRequestError
from medserve.gateway.core.masks import MaskAnswer
from medserve.tasks.result import Provenance
from medserve.tasks.volumes import LabelMeasure
from medserve.wire.v1 import imaging_pb2 as pb

__all__ = ["chunks", "provenance_message", "segment_params", "segment_result"]

_CHUNK_BYTES = 512 * 2**10  # well below the 4 MB that a gRPC client takes by default
_SWITCHES = ("flips", "largest_component", "fill_holes", "channel")
_NIFTI = "application/gzip"


@dataclass(frozen=True)
class File:
    """One file of a result."""

    role: pb.FileRole.ValueType
    media_type: str
    content: bytes


def segment_params(settings: pb.SegmentSettings) -> dict[str, Any]:
    """What of the settings is for the model; what is not set is left to it."""
    params: dict[str, Any] = {"output": "json"}
    if settings.mask_format == pb.MASK_FORMAT_DICOM_SEG:
        params["format"] = "dicom-seg"
    params |= {name: True for name in ("overlay", "uncertainty") if getattr(settings, name)}
    for name in _SWITCHES:
        if settings.HasField(name):  # type: ignore[arg-type]
            params[name] = getattr(settings, name)
    if settings.spacing_mm:
        if len(settings.spacing_mm) != 3:
            raise InvalidRequestError(
                f"spacing_mm: expected three numbers, got {len(settings.spacing_mm)}"
            )
        params["spacing_mm"] = list(settings.spacing_mm)
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
