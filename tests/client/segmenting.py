"""A fake server's answers to volumes: the payload's size is the number of marked voxels."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from medserve.gateway.core.calls import ModelInfo
from medserve.imaging.geometry import Geometry
from medserve.results.segmentation import Segmentation
from medserve.spec import Task
from tests.client.fake_gateway import failure, served_model

__all__ = ["GEOMETRY", "LABELS", "by_size", "volumes_model"]

GEOMETRY = Geometry.from_spacing((12, 10, 8), (1.0, 1.0, 2.0))
LABELS = ("background", "anterior", "posterior")


def volumes_model() -> tuple[ModelInfo, ...]:
    """What a gateway serves that has one model of volumes."""
    return (served_model(task=Task.VOLUMES, labels=LABELS),)


def by_size(payload: bytes) -> dict[str, Any]:
    """`broken…` and no bytes are refused; n bytes mark n voxels of the first label."""
    if not payload or payload.startswith(b"broken"):
        return failure("INVALID_IMAGE", "expected NIfTI, got text; send a volume")
    mask = np.zeros(GEOMETRY.shape, dtype=np.uint8)
    inner = np.zeros((8, 6, 4), dtype=np.uint8)
    inner.flat[: len(payload)] = 1
    mask[2:-2, 2:-2, 2:-2] = inner
    mask[0, 0, 0] = 2
    found = Segmentation(mask, GEOMETRY, LABELS)
    return {
        "status": "ok",
        **found.to_result().to_json(),
        "overlay_png": base64.b64encode(b"PNG").decode(),
        "entropy_nifti": base64.b64encode(b"ENTROPY").decode(),
        "dicom_seg": base64.b64encode(b"DICM").decode(),
    }
