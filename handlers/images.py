"""The line of models that are shown single images, whatever they tell of them."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from handlers.batched import BatchedHandler
from medserve.imaging import Image
from medserve.imaging.codecs import sniff
from medserve.imaging.codecs.payload import Payload
from medserve.inference.fit import fit_image

__all__ = ["ImageHandler"]

Chosen = TypeVar("Chosen")
Result = TypeVar("Result")


class ImageHandler(BatchedHandler[Image, Chosen, Result]):
    """Image -> Result; how a model wants its pixels stands in the section `input` of its spec."""

    def prepare(self) -> None:
        """Import the codecs of the kinds that this model reads."""
        sniff.prepare(self.spec.input)

    def decode(self, payload: Payload) -> Image:
        """PNG, JPEG, TIFF or DICOM, by content -> the image in it."""
        return sniff.decode(payload, self.spec.input)

    def to_network(self, source: Image) -> npt.NDArray[np.float32]:
        """Image -> plane (C, H, W) by the section `input` of the spec, as in training."""
        return fit_image(source, self.spec.input)
