"""A room's worth of artifact from a network that nobody trained, for tests of what follows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import models
from models.mednist.network import MednistNet
from tests.training.drawn import class_folders
from training.classification import data
from training.classification import ship as shipping
from training.classification.data import LabelledImages
from training.core import export


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with four images for each label."""
    return class_folders(tmp_path_factory.mktemp("drawn"), count=4)


@pytest.fixture(scope="session")
def drawn_images(drawn: Path) -> LabelledImages:
    """The images of `drawn`."""
    return data.read_class_folders(drawn, models.spec("mednist"))


@pytest.fixture(scope="session")
def artifact(drawn_images: LabelledImages) -> export.ClassifierArtifact:
    """A network of width 4 with random weights, calibrated on `drawn`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MednistNet(width=4)
    return shipping.calibrate(network, drawn_images, drawn_images)


@pytest.fixture(scope="session")
def weights(
    artifact: export.ClassifierArtifact,
    drawn_images: LabelledImages,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Folder with both forms of `artifact`."""
    folder = tmp_path_factory.mktemp("weights")
    examples = torch.from_numpy(drawn_images.images)[:6, None].float() / 255.0
    export.export_classifier(artifact, folder, examples)
    return folder
