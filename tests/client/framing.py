"""A fake server's answers to frames: the payload's size is the number of marked pixels."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from medserve.errors import InvalidImageError
from medserve.gateway.core.calls import ModelInfo
from medserve.imaging.frames import FrameGrid, FrameStack, SingleFrame
from medserve.imaging.image import Image
from medserve.imaging.packed_masks import PackedMasks
from medserve.results.frame_measure import measure_frame, measure_stack
from medserve.results.frame_segmentation import FrameFinding, FrameSegmentation
from medserve.spec import InputKind, Task
from tests.client.fake_gateway import failure, served_model

__all__ = ["GRID", "LABELS", "LOOP", "by_frame_size", "frames_model"]

GRID = FrameGrid((20, 30), 1, (0.2, 0.3))
LOOP = FrameGrid((20, 30), 3, (0.2, 0.3), 5.0)
LABELS = ("background", "prostate")


def frames_model() -> tuple[ModelInfo, ...]:
    """What a gateway serves that has one model of frames."""
    return (served_model(task=Task.FRAMES, labels=LABELS),)


class _Loop(FrameStack):
    kind = InputKind.DICOM
    is_stack = True
    grid = LOOP

    def read(self, index: int) -> Image:
        raise NotImplementedError


def by_frame_size(payload: bytes) -> dict[str, Any]:
    """`broken…` and no bytes are refused; `loop…` is three frames, the last one damaged."""
    if not payload or payload.startswith(b"broken"):
        return failure("INVALID_IMAGE", "expected PNG, got text; send a frame")
    mask = np.zeros(GRID.size, dtype=np.uint8)
    mask.flat[: len(payload)] = 1
    if payload.startswith(b"loop"):
        return _answer(_Loop(), [mask, mask, None])
    blank = Image(np.zeros(GRID.size, dtype=np.float32))
    return _answer(SingleFrame(blank, InputKind.RASTER, GRID), [mask])


def _answer(source: FrameStack, masks: list[np.ndarray | None]) -> dict[str, Any]:
    empty = np.zeros(GRID.size, dtype=np.uint8)
    damaged = InvalidImageError("expected a whole frame, got a damaged one; export it again")
    findings = tuple(
        FrameFinding(damaged if mask is None else measure_frame(mask, source.grid))
        for mask in masks
    )
    found = FrameSegmentation(
        PackedMasks(GRID.size, [empty if mask is None else mask for mask in masks]),
        source.grid,
        LABELS,
        findings,
        measure_stack([each.measure for each in findings], source.grid),
    )
    return {
        "status": "ok",
        **found.to_result(source).to_json(),
        "overlay_png": base64.b64encode(b"PNG").decode(),
        "dicom_seg": base64.b64encode(b"DICM").decode(),
    }
