"""Masks on their way through the typed `Segment` call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from medserve.errors import InvalidRequestError
from medserve.gateway.calls import ModelInfo
from medserve.gateway.segment import MaskAnswer
from medserve.imaging.measure import LabelMeasure
from medserve.imaging.result import Provenance
from medserve.wire.v1 import imaging_pb2 as pb

__all__ = ["chunks", "provenance_message", "segment_params", "segment_result"]

_CHUNK_BYTES = 512 * 2**10  # well below the 4 MB that a gRPC client takes by default
_SWITCHES = ("flips", "largest_component", "fill_holes", "channel")
# Answered as the bare file, in one piece with no measurements beside it.
_BARE = {
    pb.MASK_FORMAT_DICOM_SEG: ("dicom-seg", "application/dicom"),
    pb.MASK_FORMAT_PNG: ("png", "image/png"),
}
_NIFTI = "application/gzip"


@dataclass(frozen=True)
class File:
    """One file of a result."""

    role: pb.FileRole.ValueType
    media_type: str
    content: bytes


def segment_params(settings: pb.SegmentSettings) -> dict[str, Any]:
    """What of the settings is for the model; what is not set is left to it."""
    params: dict[str, Any] = {}
    if settings.mask_format in _BARE:
        if settings.overlay or settings.uncertainty:
            raise InvalidRequestError(
                "overlay and uncertainty come only with a mask in NIfTI; ask for one of them"
            )
        params["output"], params["format"] = "mask", _BARE[settings.mask_format][0]
    else:
        params["output"] = "json"
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


def segment_result(
    settings: pb.SegmentSettings, model: ModelInfo, answer: bytes
) -> tuple[pb.SegmentResult, list[File]]:
    """The description of the answer, and the files behind it."""
    if settings.mask_format in _BARE:
        media_type = _BARE[settings.mask_format][1]
        files = [File(pb.FILE_ROLE_MASK, media_type, answer)]
        provenance = Provenance(model.name, model.version, model.digest)
        result = pb.SegmentResult(provenance=provenance_message(provenance), labels=model.labels)
    else:
        mask = MaskAnswer.from_json(answer)
        files = _files(mask)
        result = pb.SegmentResult(
            provenance=provenance_message(mask.provenance),
            labels=mask.labels,
            shape=mask.shape,
            affine=[value for row in mask.affine for value in row],
            spacing_mm=mask.spacing_mm,
            measures=[_measure(each) for each in mask.measures],
        )
    result.files.extend(
        pb.ResultFile(role=file.role, media_type=file.media_type, size_bytes=len(file.content))
        for file in files
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
    files = [File(pb.FILE_ROLE_MASK, _NIFTI, answer.mask)]
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
