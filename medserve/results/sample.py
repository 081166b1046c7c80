"""One synthetic image and how it came about; the handler builds it and the client returns it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medserve.errors import ServerFailedError
from medserve.tasks.generation import SampleImage
from medserve.tasks.result import Provenance

__all__ = ["Sample"]


@dataclass(frozen=True, eq=False)
class Sample:
    """An image that a model made; it shows nobody.

    Attributes:
        image: Grey levels uint8 (H, W) or colours (H, W, 3).
        seed: Draws it again, with the same archive and the same settings.
        label: The class it was drawn for; "" for a model without classes.
        steps: Calls of the network.
        sampler: The way from noise to the image.
        guidance: Weight of the class; 1 is the class alone.
        provenance: Which archive made it.
    """

    image: npt.NDArray[np.uint8]
    seed: int
    label: str
    steps: int
    sampler: str
    guidance: float
    provenance: Provenance

    @property
    def settings(self) -> str:
        """Everything that draws it again, in one line."""
        label = f"class {self.label}, " if self.label else ""
        return (
            f"{label}seed {self.seed}, {self.sampler}, {self.steps} steps, "
            f"guidance {self.guidance:g}, {self.image.shape[1]} x {self.image.shape[0]} pixels"
        )

    def to_image(self, png: bytes, dicom: bytes | None = None) -> SampleImage:
        """Return the image as one of a result; `png` and `dicom` are its files."""
        return SampleImage(
            png=png,
            synthetic=True,
            seed=self.seed,
            label=self.label,
            steps=self.steps,
            sampler=self.sampler,
            guidance=self.guidance,
            size=self.image.shape[0],
            dicom=dicom,
        )

    @classmethod
    def from_image(cls, image: SampleImage, provenance: Provenance) -> Sample:
        """Read it back; ServerFailedError where its PNG cannot be read."""
        from medserve.results.files import synthetic  # Pillow: only who has an image waits for it

        try:
            pixels = synthetic.pixels_of_png(image.png)
        except (ValueError, OSError) as error:
            raise ServerFailedError(
                "expected a synthetic image from the server, got a PNG that cannot be read"
            ) from error
        return cls(
            image=pixels,
            seed=image.seed,
            label=image.label,
            steps=image.steps,
            sampler=image.sampler,
            guidance=image.guidance,
            provenance=provenance,
        )
