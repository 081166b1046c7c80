"""The masks of frames, each on the pixels of its own frame, and what was measured of them."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from msgspec import structs

from medserve.errors import MedserveError, ServerFailedError
from medserve.imaging.frames import FrameGrid
from medserve.imaging.geometry import Geometry
from medserve.imaging.packed_masks import PackedMasks
from medserve.results.frame_measure import measure_label
from medserve.results.measure import measure
from medserve.tasks.frames import (
    FailedFrame,
    FrameMeasure,
    FrameResult,
    MeasuredFrame,
    StackGrid,
    StackMeasure,
    Structure,
    View,
)
from medserve.tasks.result import Doubt, DoubtReason, error_of
from medserve.tasks.volumes import LabelMeasure

if TYPE_CHECKING:
    from medserve.imaging.frames import FrameStack
    from medserve.imaging.volume import Volume

__all__ = ["FrameFinding", "FrameSegmentation", "mask_png", "masks_of"]

_WHITE = 255  # of the structure in a PNG: what annotation tools and other programs expect


@dataclass(frozen=True)
class FrameFinding:
    """What became of one frame: its measurements, or the error that stands in their place.

    Attributes:
        outcome: Exactly one of the two.
        unlike_ultrasound: Whether the frame does not look like B-mode ultrasound, so that its
            mask means little.
        doubts: What else about the frame lies outside of the training data, or is uncertain; it
            does not travel.
    """

    outcome: FrameMeasure | MedserveError
    unlike_ultrasound: bool = False
    doubts: tuple[Doubt, ...] = ()

    @property
    def measure(self) -> FrameMeasure | None:
        """The measurements, or None where the frame failed."""
        return self.outcome if isinstance(self.outcome, FrameMeasure) else None

    @property
    def error(self) -> MedserveError | None:
        """Why the frame failed, or None where it did not."""
        return self.outcome if isinstance(self.outcome, MedserveError) else None

    def entry(self, index: int) -> MeasuredFrame | FailedFrame:
        """Return the frame as one of a result."""
        if isinstance(self.outcome, MedserveError):
            error = {"code": self.outcome.code, "message": self.outcome.message}
            return FailedFrame(index=index, error=error)
        return MeasuredFrame(
            **structs.asdict(self.outcome), index=index, unlike_ultrasound=self.unlike_ultrasound
        )

    @classmethod
    def from_entry(cls, entry: MeasuredFrame | FailedFrame) -> FrameFinding:
        """Read it back."""
        if isinstance(entry, FailedFrame):
            return cls(error_of(entry.error))
        return cls(entry.measure, entry.unlike_ultrasound)


@dataclass(frozen=True, eq=False)
class FrameSegmentation:
    """What a model found in the frames of one file.

    Attributes:
        masks: One for each frame, empty where the frame failed.
        grid: Size, number and distances of the frames.
        labels: The background's name, and those of the structures.
        frames: What became of each.
        stack: The structure in all of them together; of several structures their union.
        structures: Each of several structures by itself; empty for one.

    Raises:
        ValueError: another number of masks or findings than of frames: a mistake of the code.
    """

    masks: PackedMasks = field(repr=False)
    grid: FrameGrid
    labels: tuple[str, ...]
    frames: tuple[FrameFinding, ...] = field(repr=False)
    stack: StackMeasure
    structures: tuple[Structure, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.masks) == len(self.frames) == self.grid.count:
            raise ValueError(
                f"{len(self.masks)} masks and {len(self.frames)} findings for "
                f"{self.grid.count} frames"
            )

    @property
    def mask(self) -> npt.NDArray[np.uint8]:
        """All masks (N, H, W): label ids."""
        return self.masks.array

    @property
    def failed(self) -> int:
        """How many frames have no answer."""
        return sum(each.error is not None for each in self.frames)

    @property
    def unlike_ultrasound(self) -> int:
        """How many frames do not look like ultrasound."""
        return sum(each.unlike_ultrasound for each in self.frames)

    @property
    def doubts(self) -> tuple[Doubt, ...]:
        """Return why a person should look at the file as a whole."""
        doubts, measured = [], len(self.frames) - self.failed
        if 2 * self.unlike_ultrasound > measured:  # single frames of a loop are flagged by chance
            told = f"{self.unlike_ultrasound} of {measured} frames do not look like ultrasound"
            doubts.append(Doubt(DoubtReason.INTENSITIES, told))
        for reason in DoubtReason:
            if reason is DoubtReason.EMPTY:  # of a loop, some frames show no structure
                continue
            told_of = [each for frame in self.frames for each in frame.doubts
                       if each.reason is reason]  # fmt: skip
            about_mask = bool(told_of) and not told_of[0].is_about_input
            judged = self.stack.frames_found if about_mask else measured
            if 2 * len(told_of) > judged:
                of = f"{len(told_of)} of {judged} frames, the first: " if measured > 1 else ""
                doubts.append(Doubt(reason, of + told_of[0].message))
        is_doubted = measured == 0 or any(
            each.reason is DoubtReason.EMPTY for frame in self.frames for each in frame.doubts
        )
        if self.stack.frames_found == 0 and is_doubted:
            sought = "a structure" if self.structures else self.labels[1]
            told = f"{sought} was found in none of {measured} frames"
            doubts.append(Doubt(DoubtReason.EMPTY, told))
        return tuple(doubts)

    def to_result(self, source: FrameStack) -> FrameResult:
        """Return the result of a call.

        The masks travel as a .nii.gz with the header of their source, and as PNG where that is a
        single frame.
        """
        geometry = source.geometry
        rows: Any = tuple(map(tuple, geometry.affine.tolist()))
        return FrameResult(
            labels=self.labels,
            shape=geometry.shape,
            affine=rows,
            spacing_mm=geometry.spacing_mm,
            measures=self._measures(geometry, source),
            view=source.view,
            grid=StackGrid(
                *self.grid.size, self.grid.count, self.grid.spacing_mm, self.grid.step_mm
            ),
            stack=self.stack,
            frames=tuple(each.entry(index) for index, each in enumerate(self.frames)),
            structures=self.structures,
            review=bool(self.doubts),
            unlike_training=any(each.is_about_input for each in self.doubts),
            doubts=self.doubts,
            mask_nifti=source.nifti_mask(self.masks),
            mask_png=None if source.is_stack else mask_png(self.masks[0], len(self.labels)),
        )

    def _measures(self, geometry: Geometry, source: FrameStack) -> tuple[LabelMeasure, ...]:
        """As of a volume, where the stack is one: where every length is known."""
        if self.stack.volume_ml is None:
            return ()
        if source.view is View.STORED:  # the planes need not stand side by side in memory
            frames = tuple(each.measure for each in self.frames)
            own = self.structures or (Structure(self.labels[1], 1, self.stack, frames),)
            return tuple(
                measure_label(each.frames, geometry, each.label, each.label_id) for each in own
            )
        array = source.on_grid(self.masks)
        return measure(array, geometry, self.labels)

    @classmethod
    def from_result(cls, result: FrameResult) -> FrameSegmentation:
        """Read the masks of a result; ServerFailedError where they do not fit its description."""
        from medserve.imaging.codecs import nifti

        grid = result.grid
        try:
            mask = nifti.decode(result.mask_nifti)
            masks = masks_of(mask, result.view, len(result.labels))
            return cls(
                masks,
                FrameGrid((grid.rows, grid.columns), grid.frames, grid.spacing_mm, grid.step_mm),
                result.labels,
                tuple(map(FrameFinding.from_entry, result.frames)),
                result.stack,
                result.structures,
            )
        except (IndexError, TypeError, ValueError, MedserveError) as error:
            raise ServerFailedError(
                "expected the masks of frames from the server, got masks that do not fit their "
                "description"
            ) from error


def mask_png(mask: npt.NDArray[np.integer], labels: int = 2) -> bytes:
    """A mask (H, W) as 8-bit grey PNG: white where the structure is; of several the label ids.

    Args:
        mask: Label ids.
        labels: How many there are, the background among them.
    """
    from PIL import Image as pillow

    stream = io.BytesIO()
    shown = np.where(mask > 0, np.uint8(_WHITE), np.uint8(0)) if labels == 2 else mask
    pillow.fromarray(shown.astype(np.uint8)).save(stream, format="PNG")
    return stream.getvalue()


def masks_of(volume: Volume, view: View, labels: int) -> PackedMasks:
    """Return the masks of all frames in a file of masks, whose frames lie as `view` says."""
    from medserve.imaging.codecs.nifti_frames import frame_order

    planes = frame_order(volume, view).apply(volume.array)  # (H, W, K)
    each = (planes[..., k] for k in range(planes.shape[2]))
    return PackedMasks(planes.shape[:2], each, labels)
