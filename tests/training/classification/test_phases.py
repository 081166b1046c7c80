"""A public encoder from a file learns cells in two phases; one at random learns whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.blood_cell.transfer import Encoder, EncoderNet
from models.encoders import load_encoder
from tests.training.classification.drawn_cells import cell_folders, labelled
from training import blood_cell
from training.classification.cells import CellAugment, EncoderClassifier, Phases
from training.classification.fit import fit_classifier
from training.core.config import TrainPrecision, run

State = Mapping[str, Tensor]
LAST = ("model.blocks.5.", "model.blocks.6.")


class Noting(EncoderClassifier):
    """Keeps what the network was after each epoch."""

    def on_train_epoch_end(self) -> None:
        """Note a copy of the state."""
        self.noted = [*getattr(self, "noted", []), copied(self.cells)]


@dataclass
class Learned:
    """What a training of two epochs left, and the rates of its groups."""

    before: State
    after: list[State] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def moved(self, epoch: int) -> set[str]:
        """Names of the tensors that an epoch changed, counted from 0."""
        start = self.after[epoch - 1] if epoch else self.before
        return {name for name, each in self.after[epoch].items() if not each.equal(start[name])}


def copied(network: EncoderNet) -> State:
    return {name: each.clone() for name, each in network.state_dict().items()}


def small() -> EncoderNet:
    return EncoderNet(window=32, side=32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Computed weights under names of no library here, with a classifier behind them."""
    torch.manual_seed(5)
    encoder = small().encoder.state_dict()
    renamed = {f"layer{number}": value for number, value in enumerate(encoder.values())}
    path = tmp_path_factory.mktemp("weights") / "encoder.pth"
    torch.save(renamed | {"classifier": torch.zeros(1000, 320)}, path)
    return path


def learned(network: EncoderNet, out_dir: Path, phases: Phases | None) -> Learned:
    config = blood_cell.TrainConfig(
        epochs=2, batch_size=8, precision=TrainPrecision.F32, threads=1, devices=1
    )
    augment = CellAugment(window=32, side=32)
    module = Noting(network, config, augment, 0.05, 32, 0.0, phases)
    found = Learned(copied(network))
    cells = labelled(2, side=32)
    fit_classifier(module, cells, cells, out_dir)
    found.after = module.noted
    found.rates = [group["initial_lr"] for group in module.trainer.optimizers[0].param_groups]
    return found


@pytest.fixture(scope="module")
def transferred(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    network = small()
    assert load_encoder(network, weights) == len(network.encoder.state_dict())
    return learned(network, tmp_path_factory.mktemp("transferred"), Phases(0.5, 0.2))


@pytest.mark.cpu
def test_in_the_first_phase_the_head_learns_alone_and_no_statistic_moves(
    transferred: Learned,
) -> None:
    assert transferred.moved(0) == {"head.weight", "head.bias"}


@pytest.mark.cpu
def test_in_the_second_phase_the_last_part_of_the_encoder_learns_too(transferred: Learned) -> None:
    moved = transferred.moved(1) - {"head.weight", "head.bias"}
    last = {name for name in transferred.before if name.removeprefix("encoder.").startswith(LAST)}
    assert moved == last  # statistics of its batch norms included


@pytest.mark.cpu
def test_the_last_part_learns_at_a_share_of_the_rate(transferred: Learned) -> None:
    assert transferred.rates == pytest.approx([3e-3, 0.2 * 3e-3])


@pytest.mark.cpu
def test_an_encoder_at_random_learns_whole_from_the_first_epoch(tmp_path: Path) -> None:
    found = learned(small(), tmp_path, None)
    assert found.moved(0) == set(found.before)
    assert found.rates == pytest.approx([3e-3, 3e-3])


def train(data_dir: Path, out_dir: Path, *more: str) -> int:
    """What `python -m training.blood_cell` does with these flags; the exit code."""
    flags = ("--data-dir", str(data_dir), "--out-dir", str(out_dir), "--epochs", "1", *more)
    return run(blood_cell.main, blood_cell.TrainConfig, flags)


@pytest.mark.cpu
def test_weights_of_another_network_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(EncoderNet(Encoder.RESNET18).encoder.state_dict(), tmp_path / "resnet18.pth")
    data_dir = cell_folders(tmp_path / "cells", count=3, side=32)
    flags = ("--encoder", Encoder.EFFICIENTNET_LITE0, "--encoder-weights")
    assert train(data_dir, tmp_path / "run", *flags, str(tmp_path / "resnet18.pth")) == 2
    message = capsys.readouterr().err
    assert "resnet18.pth: expected the weights of the same encoder" in message
    assert message.count("error: ") == 1


def test_weights_without_an_encoder_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, tmp_path / "run", "--encoder-weights", "encoder.pth") == 2
    assert "say which one by --encoder" in capsys.readouterr().err
