"""A mask on the grid of the volume that it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medserve.errors import MedserveError, ServerFailedError
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from medserve.results.measure import measure
from medserve.tasks.volumes import LabelMeasure, VolumeResult

if TYPE_CHECKING:
    from medserve.imaging.codecs.nifti_space import NiftiSpace

__all__ = ["Segmentation"]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Label ids uint8 (I, J, K) on the voxel grid of the source.

    Attributes:
        mask: 0 is background, id n stands for `labels[n]`.
        geometry: The grid; the source's own, to the last bit.
        labels: Names by id, the background's first.

    Raises:
        ValueError: another shape than the geometry's, another type, or an id without a name: all
            of them mistakes of the code that built it.
    """

    mask: npt.NDArray[np.uint8] = field(repr=False)  # pixels belong into no log line
    geometry: Geometry
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.mask.shape != self.geometry.shape:
            raise ValueError(f"mask {self.mask.shape} is not on the grid {self.geometry.shape}")
        if self.mask.dtype != np.uint8:
            raise ValueError(f"expected label ids as uint8, got {self.mask.dtype}")
        if int(self.mask.max()) >= len(self.labels):
            raise ValueError(f"label id {self.mask.max()} has no name in {self.labels}")

    @cached_property
    def measures(self) -> tuple[LabelMeasure, ...]:
        """Size and place of every label but the background."""
        return measure(self.mask, self.geometry, self.labels)

    def with_measures(self, measures: Sequence[LabelMeasure]) -> Segmentation:
        """Return the same mask with measurements that are known already."""
        same = Segmentation(self.mask, self.geometry, self.labels)
        same.__dict__["measures"] = tuple(measures)
        return same

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Volume of every label but the background."""
        return {each.label: each.volume_ml for each in self.measures}

    def to_nifti(self, space: NiftiSpace | None = None) -> bytes:
        """The mask as .nii.gz; with the space of its source, on exactly that header's grid."""
        from medserve.imaging.codecs import (
            nifti,  # nibabel takes 0.3 s to import; most clients need none
        )

        return nifti.encode(Volume(self.mask, self.geometry), space)

    def to_result(self, space: NiftiSpace | None = None) -> VolumeResult:
        """Return the result of a call; with the space of its source on its header's grid."""
        rows: Any = tuple(map(tuple, self.geometry.affine.tolist()))
        return VolumeResult(
            labels=self.labels,
            shape=self.geometry.shape,
            affine=rows,
            spacing_mm=self.geometry.spacing_mm,
            volumes_ml=self.volumes_ml,
            measures=self.measures,
            mask_nifti=self.to_nifti(space),
        )

    @classmethod
    def from_result(cls, result: VolumeResult) -> Segmentation:
        """Read the mask of a result; ServerFailedError where it does not fit its description.

        Shape and affine are those of the result, which keeps float64; NIfTI-1 rounds an affine to
        float32.
        """
        from medserve.imaging.codecs import nifti

        try:
            geometry = Geometry(result.shape, np.array(result.affine, dtype=np.float64))
            volume = nifti.decode(result.mask_nifti)
            found = cls(volume.array, geometry, result.labels)
        except (TypeError, ValueError, MedserveError) as error:
            raise ServerFailedError(
                "expected a segmentation with its mask from the server, got a mask that does not "
                "fit its description"
            ) from error
        return found.with_measures(result.measures)  # as the model measured, not once more
