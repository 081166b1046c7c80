"""Blood cells: kind of the cell in the middle of a frame of a stained smear."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from handlers.classification import ClassificationHandler
from medserve.imaging import Image
from medserve.inference.fit import fit_cell


class BloodCellHandler(ClassificationHandler):  # TorchServe wants exactly one class in this file
    """Eight kinds of cell, told apart on a colour plane of 128 x 128 pixels."""

    def preprocess(self, source: Image) -> npt.NDArray[np.float32]:
        """Image -> red, green, blue (3, H, W) in [0, 1], proportions kept, as in training."""
        height, width = self.spec.input.size
        return fit_cell(source, (height, width))
