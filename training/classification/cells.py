"""How cells are learned: changes that leave the kind as it is, stages of maturation, small images.

The archive of the Hospital Clinic of Barcelona names its files by finer kinds than its folders:
band and segmented neutrophils, metamyelocytes, myelocytes, promyelocytes. A few files of these two
folders name no stage. Each kind allows one or more units of the network's head; the loss asks for
the sum of their probabilities, so a file without a stage teaches its label and no stage.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from models.blood_cell.network import CellNet
from models.blood_cell.transfer import EncoderNet
from models.blood_cell.units import UNITS
from training.classification.augment import Augment, around_zero, happens, sample
from training.classification.data import LabelledImages
from training.classification.fit import Classifier
from training.core.config import FitConfig
from training.core.depthwise import DepthwiseInF32

__all__ = [
    "FOLDERS",
    "CellAugment",
    "CellClassifier",
    "EncoderClassifier",
    "KindLoss",
    "Phases",
    "with_kinds",
]

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


@dataclass(frozen=True)
class CellAugment(Augment):
    """Strengths for single cells in the middle of a colour frame; shows the middle alone.

    A smear has no up and no left, so every turn and mirror image is another cell. In the archive
    of Barcelona the frame's size and a bluish ground give some labels away: tint, scale and a
    painted frame are drawn apart from the label, so that they tell nothing.
    """

    rotation_degrees: float = 180.0
    log_scale: float = 0.18  # factor 0.84 … 1.20
    log_aspect: float = 0.08
    shift: float = 0.08  # of half the frame: 5 pixels of 128
    log_gamma: float = 0.15
    log_contrast: float = 0.15
    brightness: float = 0.06
    noise: float = 0.03
    noise_probability: float = 0.2
    blur_probability: float = 0.15  # seldom: granules are fine
    erase_side: float = 0.35
    window: int = 84  # pixels of the middle square that is shown
    side: int = 112  # pixels of the result
    tint_probability: float = 0.75
    log_tint: float = 0.14  # of each channel; from cream to bluish, as measured in the archive
    mixing: float = 0.05  # of one channel into another: scanners see the dyes differently
    frame_probability: float = 0.15
    frame_share: float = 0.12  # of the side, from each edge

    def _move(self, image: Tensor, generator: torch.Generator) -> Tensor:
        placements = self._placements(len(image), generator)
        shown = torch.tensor([self.window / image.shape[3], self.window / image.shape[2]])
        turned = placements[:, :, :2] * shown[:, None]
        placements = torch.cat([turned, placements[:, :, 2:]], dim=2)
        return self._painted(sample(image, placements, (self.side, self.side)), generator)

    def _expose(self, image: Tensor, generator: torch.Generator) -> Tensor:
        n = len(image)
        is_tinted = happens(self.tint_probability, n, generator)
        gains = self.log_tint * around_zero(3 * n, generator).view(n, 3)
        gains = torch.exp(gains * is_tinted[:, None])
        mixed = self.mixing * around_zero(9 * n, generator).view(n, 3, 3) * is_tinted[:, None, None]
        # Rows sum to their gain, so that mixing alone leaves grey as it is.
        mixed = mixed - torch.diag_embed(mixed.sum(dim=2)) + torch.eye(3)
        colours = (gains[:, :, None] * mixed).to(image.device)
        tinted = torch.einsum("nij,njhw->nihw", colours, image).clamp(0.0, 1.0)
        return super()._expose(tinted, generator)

    def _painted(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Some images with a frame of one colour, as padding and scanner edges leave it."""
        n, height, width = len(image), image.shape[2], image.shape[3]
        margins = self.frame_share * torch.rand(n, 4, generator=generator)
        margins = margins * happens(self.frame_probability, n, generator)[:, None]
        rows = (torch.arange(height) + 0.5) / height
        columns = (torch.arange(width) + 0.5) / width
        inside_rows = (rows >= margins[:, 0, None]) & (rows <= 1.0 - margins[:, 1, None])
        inside_columns = (columns >= margins[:, 2, None]) & (columns <= 1.0 - margins[:, 3, None])
        inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
        colour = torch.rand(n, 3, 1, 1, generator=generator)
        return torch.where(inside.to(image.device), image, colour.to(image.device))


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


class CellClassifier(Classifier):
    """A `CellNet` that sees smaller images in its first epochs.

    Args:
        network: Takes images of any side.
        config: Of the training.
        augment: Shows the middle of a frame at its full side.
        label_smoothing: Share of the target that is spread over all labels.
        first_side: Pixels of the images in the first epochs; they cost less and teach as much.
        small_share: Share of the epochs that see them.
    """

    def __init__(
        self,
        network: CellNet,
        config: FitConfig,
        augment: CellAugment,
        label_smoothing: float,
        first_side: int,
        small_share: float,
    ) -> None:
        super().__init__(network, config, augment, label_smoothing)
        self.full = augment
        self.small = dataclasses.replace(augment, side=min(first_side, augment.side))
        self.small_epochs = round(small_share * config.epochs)
        self.kind_loss = KindLoss(label_smoothing)

    def on_train_epoch_start(self) -> None:
        """Choose the side of this epoch's images."""
        super().on_train_epoch_start()
        self.augment = self.small if self.current_epoch < self.small_epochs else self.full

    def learn(self, image: Tensor, label_ids: Tensor) -> Tensor:
        """Loss of the kinds, which are units; the augmentation shows the middle."""
        cells = cast(CellNet, self.network)
        units = cells.tell_apart(cells.maps(image))
        return self.kind_loss(units, cells.join(units), label_ids)


@dataclass(frozen=True)
class Phases:
    """How an encoder with weights of photographs learns cells.

    Attributes:
        frozen_share: Of the epochs, the first, in which the new head learns alone.
        encoder_rate: Of the last convolutional part after that, as a share of the learning rate.
    """

    frozen_share: float
    encoder_rate: float


class EncoderClassifier(CellClassifier):
    """A `CellClassifier` of an `EncoderNet`: in two phases, or whole where there are none.

    Args:
        network: With weights of photographs, or at random.
        config: As of `CellClassifier`.
        augment: As of `CellClassifier`.
        label_smoothing: As of `CellClassifier`.
        first_side: As of `CellClassifier`.
        small_share: As of `CellClassifier`.
        phases: First the head alone, then the last convolutional part too; None: all at once.
    """

    def __init__(
        self,
        network: EncoderNet,
        config: FitConfig,
        augment: CellAugment,
        label_smoothing: float,
        first_side: int,
        small_share: float,
        phases: Phases | None,
    ) -> None:
        super().__init__(network, config, augment, label_smoothing, first_side, small_share)
        self.phases = phases
        self.frozen_epochs = round(phases.frozen_share * config.epochs) if phases else 0

    @property
    def cells(self) -> EncoderNet:
        """The network in training."""
        return cast(EncoderNet, self.network)

    def on_train_epoch_start(self) -> None:
        """Let learn what this epoch's phase lets learn."""
        super().on_train_epoch_start()
        if self.phases is None:
            return
        is_open = self.current_epoch >= self.frozen_epochs
        self.cells.freeze(but=[self.cells.head, *(self.cells.last_convolutions if is_open else ())])

    def learn(self, image: Tensor, label_ids: Tensor) -> Tensor:
        """Loss of the kinds, with depthwise convolutions in float32 for their gradient's sake."""
        with DepthwiseInF32():
            return super().learn(image, label_ids)

    def configure_optimizers(self) -> dict[str, object]:  # type: ignore[override]
        """AdamW on one cycle; an encoder of photographs moves slower than the head."""
        rate = self.config.learning_rate
        learning = [self.cells.encoder] if self.phases is None else self.cells.last_convolutions
        share = 1.0 if self.phases is None else self.phases.encoder_rate
        groups: list[dict[str, Any]] = [
            {"params": list(self.cells.head.parameters())},
            {"params": [p for part in learning for p in part.parameters()], "lr": share * rate},
        ]
        optimiser = torch.optim.AdamW(groups, lr=rate, weight_decay=self.config.weight_decay)
        return self.on_one_cycle(optimiser)
