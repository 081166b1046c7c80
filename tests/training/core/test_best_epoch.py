"""The best epoch is counted from 1 in every training, as people count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from medserve.inference.volume_pipeline import VolumePipeline
from models.diffusion_sampler.network import DenoisingUNet
from models.mednist.network import MednistNet
from tests.training.volumes.drawn import LABELS, tiny_spec
from training.classification import fit as engine
from training.core.config import FitConfig
from training.diffusion import fit as diffusion
from training.diffusion.module import Diffusion
from training.diffusion.settings import DiffusionConfig
from training.frames import fit as frames
from training.frames.config import FrameConfig
from training.frames.module import SCORE as IOU
from training.frames.module import FrameSegmenter
from training.volumes import fit as volumes
from training.volumes.config import SegmentationConfig
from training.volumes.module import SCORE as DICE
from training.volumes.module import Segmenter


class OneWeight(nn.Module):
    """The least that can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, ...) -> itself, scaled."""
        return self.weight * image


def _classifier() -> L.LightningModule:
    return engine.Classifier(MednistNet(width=4), FitConfig(), lambda image, _: image, 0.0)


def _segmenter() -> L.LightningModule:
    window = VolumePipeline(tiny_spec()).window
    return Segmenter(OneWeight(), SegmentationConfig(), window, LABELS)


def _frame_segmenter() -> L.LightningModule:
    return FrameSegmenter(OneWeight(), FrameConfig())


def _diffusion() -> L.LightningModule:
    config = DiffusionConfig(image_size=16, width=8, stages=2, blocks=1)
    return Diffusion(DenoisingUNet(config.network_config(2)), 2, config)


@pytest.mark.parametrize(
    ("make", "load_best", "score"),
    [
        (_classifier, engine.load_best, engine.SCORE),
        (_segmenter, volumes.load_best, DICE),
        (_frame_segmenter, frames.load_best, IOU),
        (_diffusion, diffusion.load_best, diffusion.SCORE),
    ],
    ids=["classification", "volumes", "frames", "diffusion"],
)
def test_the_checkpoint_of_the_first_epoch_is_of_epoch_1(
    make: Callable[[], L.LightningModule],
    load_best: Callable[[Any, Path], Any],
    score: str,
    tmp_path: Path,
) -> None:
    module = make()
    content = {
        "epoch": 0,  # as Lightning counts
        "state_dict": module.state_dict(),
        "callbacks": {f"saver of {score}": {"best_model_score": torch.tensor(0.5)}},
    }
    torch.save(content, tmp_path / "best.ckpt")
    assert load_best(module, tmp_path / "best.ckpt").epoch == 1
