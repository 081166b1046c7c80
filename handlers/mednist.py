"""MedNIST: kind of radiograph, CT or MR slice."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from handlers.classification import ClassificationHandler
from medserve.imaging import Image
from medserve.inference.fit import fit_grey


class MednistHandler(ClassificationHandler):  # TorchServe wants exactly one class in this file
    """Six kinds of image, told apart on a grey plane of 64 x 64 pixels."""

    def preprocess(self, source: Image) -> npt.NDArray[np.float32]:
        """Image -> grey (1, H, W) in [0, 1], proportions kept, as in training."""
        height, width = self.spec.input.size
        return fit_grey(source, (height, width))
