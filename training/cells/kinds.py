"""What is known of a cell: one of eight labels, and for some labels the stage of maturation.

The archive of the Hospital Clinic of Barcelona names its files by finer kinds than its folders:
band and segmented neutrophils, metamyelocytes, myelocytes, promyelocytes. A few files of these two
folders name no stage. Each kind allows one or more units of the network's head; the loss asks for
the sum of their probabilities, so a file without a stage teaches its label and no stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from models.blood_cell.units import UNITS
from training.classification.data import LabelledImages

__all__ = ["FOLDERS", "KindLoss", "with_kinds"]

FOLDERS = {"ig": "immature_granulocyte"}  # class folders of the archive that carry another name

_UNIT_OF_PREFIX = {
    "MMY": "metamyelocyte",
    "MY": "myelocyte",
    "PMY": "promyelocyte",
    "BNE": "band_neutrophil",
    "SNE": "segmented_neutrophil",
}
_FLAT = tuple(unit for units in UNITS for unit in units)
_LABEL_OF_UNIT = {unit: label_id for label_id, units in enumerate(UNITS) for unit in units}


def with_kinds(images: LabelledImages) -> LabelledImages:
    """The same images whose ids also tell the stage: ids above the labels' are single units.

    A prefix that belongs to another label than the folder's is not believed.
    """
    kind_ids = images.label_ids.copy()
    for i, path in enumerate(images.paths):
        unit = _UNIT_OF_PREFIX.get(PurePosixPath(path).name.split("_")[0])
        if unit is not None and _LABEL_OF_UNIT[unit] == images.label_ids[i]:
            kind_ids[i] = len(UNITS) + _FLAT.index(unit)
    return LabelledImages(images.images, kind_ids, images.paths, images.labels, images.skipped)


def _allowed() -> npt.NDArray[np.bool_]:
    """Bool (kinds, units): a label allows all its units, a unit itself."""
    labels = [
        [_LABEL_OF_UNIT[unit] == label_id for unit in _FLAT] for label_id in range(len(UNITS))
    ]
    return np.concatenate([np.array(labels), np.eye(len(_FLAT), dtype=bool)])


@dataclass(frozen=True)
class KindLoss:
    """Cross-entropy of what is known, smoothed over the labels.

    The negative log of the allowed units' summed probability is the likelihood of a label that
    leaves several candidates (Jin and Ghahramani, NeurIPS 2002).
    """

    label_smoothing: float

    def __call__(self, unit_logits: Tensor, label_logits: Tensor, kind_ids: Tensor) -> Tensor:
        """Mean loss of logits (N, U) and (N, K) for kinds int64 (N,)."""
        log_units = F.log_softmax(unit_logits.float(), dim=1)
        allowed = torch.from_numpy(_allowed()).to(kind_ids.device)[kind_ids]  # (N, U)
        known = log_units.masked_fill(~allowed, -torch.inf).logsumexp(dim=1)
        spread = F.log_softmax(label_logits.float(), dim=1).mean(dim=1)
        return -((1.0 - self.label_smoothing) * known + self.label_smoothing * spread).mean()
