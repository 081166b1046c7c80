"""The best epoch is counted from 1 in every training, as people count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medserve.inference.volume_pipeline import VolumePipeline
from models.diffusion_sampler.network import DenoisingUNet
from models.mednist.network import MednistNet
from tests.training.volumes.drawn import LABELS, tiny_spec
from training.classification.fit import SCORE as ERRORS
from training.classification.fit import Classifier
from training.core.config import FitConfig
from training.core.fit import AveragedNetwork, Score, load_best
from training.diffusion.fit import SCORE as DISTANCE
from training.diffusion.module import Diffusion
from training.diffusion.settings import DiffusionConfig
from training.frames.config import FrameConfig
from training.frames.module import SCORE as IOU
from training.frames.module import FrameSegmenter
from training.volumes.config import VolumesConfig
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


def _classifier() -> AveragedNetwork:
    return Classifier(MednistNet(width=4), FitConfig(), lambda image, _: image, 0.0)


def _segmenter() -> AveragedNetwork:
    window = VolumePipeline(tiny_spec()).window
    return Segmenter(OneWeight(), VolumesConfig(), window, LABELS)


def _frame_segmenter() -> AveragedNetwork:
    return FrameSegmenter(OneWeight(), FrameConfig())


def _diffusion() -> AveragedNetwork:
    config = DiffusionConfig(image_size=16, width=8, stages=2, blocks=1)
    return Diffusion(DenoisingUNet(config.network_config(2)), 2, config)


@pytest.mark.parametrize(
    ("make", "score"),
    [
        (_classifier, ERRORS),
        (_segmenter, DICE),
        (_frame_segmenter, IOU),
        (_diffusion, DISTANCE),
    ],
    ids=["classification", "volumes", "frames", "diffusion"],
)
def test_the_checkpoint_of_the_first_epoch_is_of_epoch_1(
    make: Callable[[], AveragedNetwork], score: Score, tmp_path: Path
) -> None:
    module = make()
    content = {
        "epoch": 0,  # as Lightning counts
        "state_dict": module.state_dict(),
        "callbacks": {f"saver of {score.name}": {"best_model_score": torch.tensor(0.5)}},
    }
    torch.save(content, tmp_path / "best.ckpt")
    assert load_best(module, tmp_path / "best.ckpt", score).epoch == 1
