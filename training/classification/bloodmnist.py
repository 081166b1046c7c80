"""Train on pictures of 28 pixels, as BloodMNIST has them.

    python -m training.classification.bloodmnist --data-dir bloodmnist.npz

BloodMNIST is the middle 200 of 360 pixels of each picture of the archive of Barcelona, shrunk to
28 (Yang et al., Scientific Data 10, 2023). Give its `bloodmnist.npz`, or the class folders: then
the same is made of them.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import lightning
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as PillowImage
from torch import nn

from medserve.errors import ConfigError
from models.blood_cell.network import BloodCellNet
from training.classification import metrics, report
from training.classification.barcelona import SourceConfig, read_source
from training.classification.cells import CellAugment, CellClassifier, with_kinds
from training.classification.data import LabelledImages, to_planes
from training.classification.fit import fit_classifier
from training.core.config import FitConfig, Setting, TrainPrecision, run, write
from training.core.files import write_json
from training.core.report import draw

__all__ = ["SIDE", "SmallConfig", "main", "shrunk", "small_network"]

_log = logging.getLogger(__name__)

SIDE = 28
_MIDDLE = 200 / 360  # of the side of the archive's pictures
_BATCH = 512  # images a pass when answering


@dataclass(frozen=True)
class SmallConfig(FitConfig):
    """Train a network for blood cells of 28 pixels and report on it."""

    data_dir: Annotated[Path, Setting("bloodmnist.npz, class folders, or a CSV")] = Path("data/PBC")
    out_dir: Annotated[Path, Setting("folder for checkpoints and metrics")] = Path(
        "runs/blood_cell_28"
    )
    split: Annotated[Path | None, Setting("split.csv of a training, to hold out the same")] = None
    epochs: Annotated[int, Setting("passes over the training images", minimum=1)] = 40
    batch_size: Annotated[int, Setting("images a step", minimum=1)] = 128
    learning_rate: Annotated[float, Setting("peak of the one-cycle schedule", minimum=0.0)] = 3e-3
    weight_decay: Annotated[float, Setting("AdamW's, apart from the gradient", minimum=0.0)] = 0.05
    patience: Annotated[int, Setting("epochs without a better validation", minimum=1)] = 40
    precision: Annotated[
        TrainPrecision, Setting("arithmetic; bf16 halves the time on CPUs that have it")
    ] = TrainPrecision.BF16
    width: Annotated[int, Setting("channels of the first stage", minimum=2)] = 32
    views: Annotated[int, Setting("turned and mirrored views in an answer: 1, 4, 8", minimum=1)] = 8
    label_smoothing: Annotated[
        float, Setting("some labels are wrong, none is certain", minimum=0.0, maximum=0.5)
    ] = 0.05


def main(config: SmallConfig) -> None:
    """Read, shrink, fit, answer the test part."""
    source = SourceConfig(config.data_dir, config.split, config.seed)
    parts = {name: shrunk(images) for name, images in read_source(source).items()}
    write(config, config.out_dir / "config.json")
    lightning.seed_everything(config.seed, verbose=False)
    module = CellClassifier(
        small_network(config.width),
        config,
        CellAugment(window=SIDE, side=SIDE, shift=0.06, log_scale=0.12, blur_probability=0.05),
        config.label_smoothing,
        first_side=SIDE,
        small_share=0.0,
    )
    fitted = fit_classifier(module, with_kinds(parts["train"]), parts["validation"], config.out_dir)
    test = parts["test"]
    probabilities = _answers(fitted.network, test, config.views)
    measured = metrics.measure(probabilities, test.label_ids, test.labels)
    content = {
        "side": SIDE,
        "epochs": config.epochs,
        "views": config.views,
        "train_images": len(parts["train"]),
        "validation_images": len(parts["validation"]),
        "best_epoch": fitted.epoch,
        "parameters": sum(each.numel() for each in fitted.network.parameters()),
        **measured.to_json(),
    }
    write_json(config.out_dir / "metrics.json", content)
    png = draw(lambda: report.confusion_matrix(measured.confusion, measured.labels))
    (config.out_dir / "confusion_matrix.png").write_bytes(png)
    _log.info(
        "%d errors in %d images (%.2f %%)", measured.errors, measured.n, 100 * measured.accuracy
    )


def small_network(width: int) -> BloodCellNet:
    """The room's network for 28 pixels: the planes are halved twice instead of four times."""
    return BloodCellNet(width=width, window=SIDE, side=SIDE, strides=(1, 2, 2, 1))


def shrunk(images: LabelledImages) -> LabelledImages:
    """Pictures of whole frames -> their middle at 28 pixels; pictures of 28 pixels as they are.

    Raises:
        ConfigError: pictures smaller than that.
    """
    height = images.images.shape[1]
    if height == SIDE:
        return images
    if height < SIDE:
        raise ConfigError(f"expected pictures of at least {SIDE} pixels, got {height}")
    side = round(_MIDDLE * height)
    start = (height - side) // 2
    middles = images.images[:, start : start + side, start : start + side]
    small = np.stack([_resized(np.ascontiguousarray(middle)) for middle in middles])
    return LabelledImages(small, images.label_ids, images.paths, images.labels, images.skipped)


def _resized(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    image = PillowImage.fromarray(picture)
    return np.asarray(image.resize((SIDE, SIDE), PillowImage.Resampling.BICUBIC))


@torch.no_grad()
def _answers(network: nn.Module, test: LabelledImages, views: int) -> npt.NDArray[np.float64]:
    assert isinstance(network, BloodCellNet)
    network.views = views
    planes = to_planes(test.images)
    answers = []
    for start in range(0, len(planes), _BATCH):
        logits = network(planes[start : start + _BATCH].float() / 255.0)
        answers.append(logits.softmax(dim=1))
    return torch.cat(answers).double().numpy()


if __name__ == "__main__":
    sys.exit(run(main, SmallConfig))
