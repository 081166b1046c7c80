"""Two-dimensional frames that came together: one picture, a cine loop, the planes of a stack.

A stack gives its frames one at a time, so that a long loop takes the memory of one frame. What lies
between two frames is a distance only where the file or the caller says so; otherwise it is time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medserve.errors import InvalidImageError, InvalidRequestError, PayloadTooLargeError
from medserve.imaging.geometry import Geometry
from medserve.imaging.image import Image, true_aspect
from medserve.imaging.packed_masks import PackedMasks
from medserve.tasks.frames import View

if TYPE_CHECKING:
    from medserve.imaging.codecs.nifti_space import NiftiSpace
    from medserve.spec import InputKind, InputSpec  # YAML, which clients do not need

__all__ = ["FrameGrid", "FrameLimits", "FrameStack", "GivenSpacing", "SingleFrame"]

_MM_BETWEEN = (1e-3, 1e3)  # of pixels, frames and diameters that anybody would send
_UNSTATED_MM = 1.0  # stands in a NIfTI header where no distance is known
_MILLIMETRES, _NO_UNIT = 2, 0  # xyzt_units of NIfTI


@dataclass(frozen=True)
class FrameLimits:
    """What is refused before pixels are decoded.

    Attributes:
        plane: Kinds of file, bytes of a file, pixels of one frame.
        max_frames: In one stack.
        modalities: Values of DICOM's Modality that are accepted; all where it is empty.
    """

    plane: InputSpec
    max_frames: int = 512
    modalities: tuple[str, ...] = ()

    def check_count(self, count: int) -> None:
        """Refuse more frames than the model takes at a time."""
        if count > self.max_frames:
            raise PayloadTooLargeError(
                f"expected at most {self.max_frames} frames in one stack, got {count}; send a "
                "part of it"
            )


@dataclass(frozen=True)
class GivenSpacing:
    """What a caller says of a file that does not say it itself.

    Attributes:
        spacing_mm: Distance between the centres of rows and between those of columns.
        step_mm: Distance from one frame to the next.
    """

    spacing_mm: tuple[float, float] | None = None
    step_mm: float | None = None

    def __post_init__(self) -> None:
        for name, lengths in (("spacing_mm", self.spacing_mm or ()), ("step_mm", (self.step_mm,))):
            least, most = _MM_BETWEEN
            if any(mm is not None and not least <= mm <= most for mm in lengths):
                raise InvalidRequestError(
                    f"{name}: expected lengths from {least:g} to {most:g} mm, got another"
                )


@dataclass(frozen=True)
class FrameGrid:
    """Where the pixels of a stack lie, as far as anybody knows.

    Attributes:
        size: Rows and columns of each frame.
        count: Frames.
        spacing_mm: Distance between rows and between columns; None where nobody says it.
        step_mm: Distance from one frame to the next; None for a cine loop and a single picture.
        calibrated: Where `spacing_mm` holds: top, left, bottom, right of boxes in pixels, ends
            excluded; all of the frame where it is empty.
        pixel_aspect: Height of a pixel over its width where that alone is known.
    """

    size: tuple[int, int]
    count: int = 1
    spacing_mm: tuple[float, float] | None = None
    step_mm: float | None = None
    calibrated: tuple[tuple[int, int, int, int], ...] = ()
    pixel_aspect: float | None = None

    def with_given(self, stated: GivenSpacing) -> FrameGrid:
        """The same grid with what a caller adds.

        Raises:
            InvalidRequestError: the file states it already, or has no second frame.
        """
        if stated.spacing_mm is not None and self.spacing_mm is not None:
            raise InvalidRequestError(
                "expected no spacing_mm, which the file states itself, got one; leave it out"
            )
        if stated.step_mm is not None and self.step_mm is not None:
            raise InvalidRequestError(
                "expected no step_mm, which the file states itself, got one; leave it out"
            )
        if stated.step_mm is not None and self.count == 1:
            raise InvalidRequestError(
                "expected no step_mm for a single frame, got one; send the stack, or leave it out"
            )
        return replace(
            self,
            spacing_mm=self.spacing_mm or stated.spacing_mm,
            step_mm=self.step_mm if self.step_mm is not None else stated.step_mm,
        )

    @property
    def aspect(self) -> float:
        """Height of a pixel over its width; 1 exactly where it is square or nobody says it."""
        if self.spacing_mm is not None:
            return true_aspect(self.spacing_mm[0] / self.spacing_mm[1])
        return true_aspect(self.pixel_aspect)

    def covers(self, mask: npt.NDArray[np.integer]) -> bool:
        """Whether the spacing holds for every pixel that is marked, or for its neighbour."""
        if not self.calibrated:
            return True
        outside = mask != 0
        for top, left, bottom, right in self.calibrated:
            outside[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = False
        return not outside.any()

    @property
    def pixel_cm2(self) -> float | None:
        """Area of a pixel; None where the spacing is unknown."""
        return None if self.spacing_mm is None else self.spacing_mm[0] * self.spacing_mm[1] / 100.0

    @property
    def voxel_ml(self) -> float | None:
        """Volume of a pixel times the way to the next frame; None where either is unknown."""
        if self.pixel_cm2 is None or self.step_mm is None:
            return None
        return self.pixel_cm2 * self.step_mm / 10.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the grid that `space` describes: columns, rows, frames."""
        return self.size[1], self.size[0], self.count

    def space(self) -> NiftiSpace:
        """A NIfTI header that states the distances and claims no place in the patient."""
        from medserve.imaging.codecs.nifti_space import NiftiSpace  # nibabel takes 0.3 s to import

        rows, columns = self.spacing_mm or (_UNSTATED_MM, _UNSTATED_MM)
        return NiftiSpace(
            version=1,
            stored_shape=self.shape,
            pixdim=(1.0, columns, rows, self.step_mm or _UNSTATED_MM),
            xyzt_units=_NO_UNIT if self.spacing_mm is None else _MILLIMETRES,
            qform_code=0,
            quaternion=(0.0, 0.0, 0.0),
            qoffset=(0.0, 0.0, 0.0),
            sform_code=0,
            srow=((0.0,) * 4,) * 3,
        )


class FrameStack(ABC):
    """The frames of one file, read one at a time.

    Attributes:
        kind: The family of file that they came in.
        grid: Their size, number and distances.
        is_stack: Whether the file could hold several, so that its mask is a stack, too.
        view: How the frames lie on `geometry`.
    """

    kind: InputKind
    grid: FrameGrid
    is_stack: bool
    view: View = View.STORED

    @abstractmethod
    def read(self, index: int) -> Image:
        """One frame, its pixels decoded now; InvalidImageError speaks of this frame alone."""

    @property
    def space(self) -> NiftiSpace:
        """The header fields that a mask of this file repeats."""
        return self.grid.space()

    @property
    def geometry(self) -> Geometry:
        """The grid of such a mask, and its place where the file states one."""
        return self.space.geometry(self.grid.shape)

    def nifti_mask(self, masks: PackedMasks) -> bytes:
        """The masks of all frames as .nii.gz, on `geometry`; frames are unpacked one by one."""
        from medserve.imaging.codecs import nifti

        return nifti.encode_planes(masks, self.geometry, self.space)

    def on_grid(self, masks: PackedMasks) -> npt.NDArray[np.uint8]:
        """The masks of all frames as one array (I, J, K) on `geometry`."""
        return masks.array.transpose(2, 1, 0)


class SingleFrame(FrameStack):
    """One picture in memory."""

    is_stack = False

    def __init__(self, image: Image, kind: InputKind, grid: FrameGrid) -> None:
        self.kind = kind
        self.grid = grid
        self._image = image

    def read(self, index: int) -> Image:
        """The picture."""
        if index != 0:
            raise InvalidImageError(f"expected frame 0, the only one, got {index}")
        return self._image
