"""The JSON answer of a model that segments, read into what the faces hand on."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medserve.errors import MedserveError, ServerFailedError
from medserve.tasks.result import Provenance
from medserve.tasks.volumes import LabelMeasure

__all__ = ["MaskAnswer", "member_bytes", "read_object"]


@dataclass(frozen=True)
class MaskAnswer:
    """A mask on the grid of its input.

    Attributes:
        labels: Names by number, the background's first.
        shape: Voxels along each axis (I, J, K).
        affine: 4 x 4, voxel index to world, RAS+ in millimetres.
        spacing_mm: Size of a voxel along each axis.
        measures: Every label but the background.
        mask: The mask as .nii.gz.
        overlay: PNG with the mask drawn on the image, where it was asked for.
        entropy: .nii.gz, where it was asked for.
        dicom_seg: The mask as a DICOM Segmentation object, where it was asked for.
    """

    provenance: Provenance
    labels: tuple[str, ...]
    shape: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...]
    spacing_mm: tuple[float, ...]
    measures: tuple[LabelMeasure, ...]
    mask: bytes
    overlay: bytes | None = None
    entropy: bytes | None = None
    dicom_seg: bytes | None = None

    @classmethod
    def from_json(cls, answer: bytes) -> MaskAnswer:
        """Read it; ServerFailedError where it is no such answer."""
        content = read_object(answer)
        try:
            return cls(
                provenance=Provenance.from_json(content),
                labels=tuple(str(label) for label in content["labels"]),
                shape=tuple(int(size) for size in content["shape"]),
                affine=tuple(tuple(float(x) for x in row) for row in content["affine"]),
                spacing_mm=tuple(float(size) for size in content["spacing_mm"]),
                measures=tuple(LabelMeasure.from_json(each) for each in content["measures"]),
                mask=member_bytes(content, "mask_nifti") or b"",
                overlay=member_bytes(content, "overlay_png"),
                entropy=member_bytes(content, "entropy_nifti"),
                dicom_seg=member_bytes(content, "dicom_seg"),
            )
        except (KeyError, TypeError, ValueError, MedserveError) as error:
            raise ServerFailedError(
                f"expected a mask from the model, got members {sorted(content)}"
            ) from error


def read_object(answer: bytes) -> dict[str, Any]:
    """A JSON answer; ServerFailedError where it is something else."""
    try:
        content = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise ServerFailedError("expected a JSON answer from the model, got another") from error
    if not isinstance(content, dict):
        raise ServerFailedError("expected a JSON object from the model, got another value")
    return content


def member_bytes(content: Mapping[str, Any], name: str) -> bytes | None:
    """A file in a JSON answer, where it has it; ServerFailedError where it is no base64."""
    if (text := content.get(name)) is None:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, binascii.Error) as error:
        raise ServerFailedError(f"expected base64 under {name} in the model's answer") from error
