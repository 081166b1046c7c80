"""One synthetic image and how it came about; the handler builds it and the client returns it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.errors import ServerFailedError
from medserve.results.classification import Provenance

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

    def to_json(self, png: bytes) -> dict[str, Any]:
        """The members of a JSON answer for one image; `png` is its file."""
        return {
            "png": base64.b64encode(png).decode("ascii"),
            "synthetic": True,
            "seed": self.seed,
            "class": self.label,
            "steps": self.steps,
            "sampler": self.sampler,
            "guidance": self.guidance,
            "size": self.image.shape[0],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], provenance: Provenance) -> tuple[Sample, bytes]:
        """Read it and its PNG back; ServerFailedError where it is something else."""
        from medserve.results.files import synthetic  # Pillow: only who has an image waits for it

        try:
            png = base64.b64decode(content["png"], validate=True)
            sample = cls(
                image=synthetic.pixels_of_png(png),
                seed=int(content["seed"]),
                label=str(content.get("class", "")),
                steps=int(content["steps"]),
                sampler=str(content.get("sampler", "")),
                guidance=float(content.get("guidance", 1.0)),
                provenance=provenance,
            )
        except (KeyError, TypeError, ValueError, OSError, binascii.Error) as error:
            raise ServerFailedError(
                f"expected a synthetic image from the server, got members {sorted(content)}"
            ) from error
        return sample, png
