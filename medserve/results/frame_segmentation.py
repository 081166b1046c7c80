"""The masks of frames, each on the pixels of its own frame, and what was measured of them."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medserve.errors import MedserveError, ServerFailedError, error_from_code
from medserve.imaging.frames import FrameGrid
from medserve.imaging.geometry import Geometry
from medserve.imaging.packed_masks import PackedMasks
from medserve.results.frame_measure import FrameMeasure, StackMeasure, measure_label
from medserve.results.measure import measure
from medserve.tasks.frames import View

if TYPE_CHECKING:
    from medserve.imaging.frames import FrameStack

__all__ = ["FrameFinding", "FrameSegmentation", "mask_png"]

_WHITE = 255  # of the structure in a PNG: what annotation tools and other programs expect


@dataclass(frozen=True)
class FrameFinding:
    """What became of one frame: its measurements, or the error that stands in their place.

    Attributes:
        outcome: Exactly one of the two.
        unlike_ultrasound: Whether the frame does not look like B-mode ultrasound, so that its
            mask means little.
    """

    outcome: FrameMeasure | MedserveError
    unlike_ultrasound: bool = False

    @property
    def measure(self) -> FrameMeasure | None:
        """The measurements, or None where the frame failed."""
        return self.outcome if isinstance(self.outcome, FrameMeasure) else None

    @property
    def error(self) -> MedserveError | None:
        """Why the frame failed, or None where it did not."""
        return self.outcome if isinstance(self.outcome, MedserveError) else None

    def to_json(self, index: int) -> dict[str, Any]:
        """One entry of the member `frames`."""
        if isinstance(self.outcome, MedserveError):
            error = {"code": self.outcome.code, "message": self.outcome.message}
            return {"index": index, "status": "error", "error": error}
        flag = {"unlike_ultrasound": self.unlike_ultrasound}
        return {"index": index, "status": "ok", **self.outcome.to_json(), **flag}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FrameFinding:
        """Read it back; ServerFailedError where it is none."""
        if content.get("status") == "ok":
            return cls(FrameMeasure.from_json(content), bool(content.get("unlike_ultrasound")))
        error = content.get("error")
        if not isinstance(error, Mapping):
            raise ServerFailedError("expected the status of a frame from the server, got none")
        return cls(error_from_code(str(error.get("code")), str(error.get("message"))))


@dataclass(frozen=True, eq=False)
class FrameSegmentation:
    """What a model found in the frames of one file.

    Attributes:
        masks: One for each frame, empty where the frame failed.
        grid: Size, number and distances of the frames.
        labels: The background's name, and the structure's.
        frames: What became of each.
        stack: The structure in all of them together.

    Raises:
        ValueError: another number of masks or findings than of frames: a mistake of the code.
    """

    masks: PackedMasks = field(repr=False)
    grid: FrameGrid
    labels: tuple[str, ...]
    frames: tuple[FrameFinding, ...] = field(repr=False)
    stack: StackMeasure

    def __post_init__(self) -> None:
        if not len(self.masks) == len(self.frames) == self.grid.count:
            raise ValueError(
                f"{len(self.masks)} masks and {len(self.frames)} findings for "
                f"{self.grid.count} frames"
            )

    @property
    def mask(self) -> npt.NDArray[np.uint8]:
        """All masks (N, H, W), 1 where the structure is."""
        return self.masks.array

    @property
    def failed(self) -> int:
        """How many frames have no answer."""
        return sum(each.error is not None for each in self.frames)

    @property
    def unlike_ultrasound(self) -> int:
        """How many frames do not look like ultrasound."""
        return sum(each.unlike_ultrasound for each in self.frames)

    def to_json(self, source: FrameStack) -> dict[str, Any]:
        """The members of a JSON answer.

        The mask travels as a .nii.gz with the header of its source, and as PNG where that is a
        single frame. `labels`, `shape`, `affine`, `spacing_mm`, `measures` and `mask_nifti` mean
        what they mean for volumes; lengths count only where `grid` states them.
        """
        geometry = source.geometry
        content: dict[str, Any] = {
            "labels": list(self.labels),
            "shape": list(geometry.shape),
            "affine": geometry.affine.tolist(),
            "spacing_mm": list(geometry.spacing_mm),
            "measures": self._measures(geometry, source),
            "view": source.view,
            "grid": {
                "rows": self.grid.size[0],
                "columns": self.grid.size[1],
                "frames": self.grid.count,
                "spacing_mm": self.grid.spacing_mm and list(self.grid.spacing_mm),
                "step_mm": self.grid.step_mm,
            },
            "stack": self.stack.to_json(),
            "frames": [each.to_json(index) for index, each in enumerate(self.frames)],
            "mask_nifti": _base64(source.nifti_mask(self.masks)),
        }
        if not source.is_stack:
            content["mask_png"] = _base64(mask_png(self.masks[0]))
        return content

    def _measures(self, geometry: Geometry, source: FrameStack) -> list[dict[str, Any]]:
        """As of a volume, where the stack is one: where every length is known."""
        if self.stack.volume_ml is None:
            return []
        if source.view is View.STORED:  # the planes need not stand side by side in memory
            frames = [each.measure for each in self.frames]
            return [measure_label(frames, geometry, self.labels[1]).to_json()]
        array = source.on_grid(self.masks)
        return [each.to_json() for each in measure(array, geometry, self.labels)]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> FrameSegmentation:
        """Read an answer back; ServerFailedError where it is no such answer with its masks."""
        from medserve.imaging.codecs import nifti

        try:
            grid = _grid(content["grid"])
            volume = nifti.decode(base64.b64decode(content["mask_nifti"], validate=True))
            masks = _masks(volume, View(content["view"]))
            return cls(
                masks,
                grid,
                tuple(str(label) for label in content["labels"]),
                tuple(FrameFinding.from_json(each) for each in content["frames"]),
                StackMeasure.from_json(content["stack"]),
            )
        except (
            *(AttributeError, KeyError, IndexError, TypeError, ValueError),
            *(binascii.Error, MedserveError),
        ) as error:
            raise ServerFailedError(
                "expected the masks of frames from the server, "
                f"got members {sorted(map(str, content))}"
            ) from error


def mask_png(mask: npt.NDArray[np.integer]) -> bytes:
    """A mask (H, W) as 8-bit grey PNG: white where the structure is."""
    from PIL import Image as pillow

    stream = io.BytesIO()
    white = np.where(mask > 0, np.uint8(_WHITE), np.uint8(0))
    pillow.fromarray(white).save(stream, format="PNG")
    return stream.getvalue()


def _masks(volume: Any, view: View) -> PackedMasks:
    from medserve.imaging.codecs.nifti_frames import frame_order

    planes = frame_order(volume, view).apply(volume.array)  # (H, W, K)
    return PackedMasks(planes.shape[:2], (planes[..., k] for k in range(planes.shape[2])))


def _grid(content: Mapping[str, Any]) -> FrameGrid:
    spacing, step = content["spacing_mm"], content["step_mm"]
    return FrameGrid(
        (int(content["rows"]), int(content["columns"])),
        int(content["frames"]),
        None if spacing is None else (float(spacing[0]), float(spacing[1])),
        None if step is None else float(step),
    )


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
