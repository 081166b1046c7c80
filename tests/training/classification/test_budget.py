"""A budget of processor time ends a training, moves its rates and opens its second phase."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models.blood_cell.network import BloodCellNet
from models.blood_cell.transfer import Backbone, TransferNet
from tests.training.classification.drawn_cells import labelled
from training.classification.barcelona import BarcelonaDataset
from training.classification.budget import EXPECTED, Budget, BudgetedClassifier, seen
from training.classification.cells import CellAugment
from training.core.fit import expected_remarks

AUGMENT = CellAugment(window=32, side=32)


def ticking() -> Callable[[], float]:
    """A clock that moves by one at each look."""
    ticks = itertools.count(1.0)
    return lambda: next(ticks)


def fit(module: BudgetedClassifier) -> None:
    loader = DataLoader(
        BarcelonaDataset(labelled(2, side=32)), batch_size=8, collate_fn=lambda batch: batch
    )
    trainer = L.Trainer(
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    with expected_remarks(*EXPECTED):
        trainer.fit(module, loader)


class Noting(BudgetedClassifier):
    """Notes the rate of each step."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """The loss, as ever."""
        self.rates = [*getattr(self, "rates", []), self.optimizers().param_groups[0]["lr"]]  # type: ignore[union-attr]
        return super().training_step(batch, batch_index)


def noted(seconds: float) -> Noting:
    """A training of that many looks at the clock, with the rates of its steps."""
    network = BloodCellNet(width=4, window=32, side=32)
    module = Noting(network, Budget(seconds, 1e-3), AUGMENT, clock=ticking())
    fit(module)
    return module


@pytest.mark.cpu
def test_a_training_ends_with_its_budget() -> None:
    module = noted(seconds=40.0)
    assert module.progress >= 1.0
    assert 5 <= len(module.rates) <= 40
    assert module.images_seen == 8 * len(module.rates)


@pytest.mark.cpu
def test_the_rate_follows_the_clock_up_and_down() -> None:
    rates = noted(seconds=60.0).rates
    peak = rates.index(max(rates))
    assert max(rates) <= 1e-3
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[0] < 0.3 * max(rates)
    assert rates[-1] < 0.1 * max(rates)


@pytest.mark.cpu
def test_a_network_from_random_weights_learns_whole() -> None:
    module = BudgetedClassifier(
        BloodCellNet(width=4, window=32, side=32), Budget(30.0, 1e-2), AUGMENT, clock=ticking()
    )
    before = {name: each.clone() for name, each in module.network.named_parameters()}
    fit(module)
    still = [n for n, p in module.network.named_parameters() if torch.equal(p, before[n])]
    assert still == []


def transferred() -> TransferNet:
    network = TransferNet(Backbone.MOBILENET)
    network.is_pretrained = True  # as if its weights came from photographs
    return network


def moved(module: BudgetedClassifier) -> set[str]:
    """Modules of the backbone, by their first two names, that a training changes."""
    before = {name: each.clone() for name, each in module.network.named_parameters()}
    fit(module)
    after = dict(module.network.named_parameters())
    changed = [name for name, each in before.items() if not torch.equal(each, after[name])]
    return {".".join(name.split(".")[1:3]) for name in changed}


def test_in_the_first_phase_the_last_layer_learns_alone() -> None:
    budget = Budget(5.0, 1e-2, frozen_share=1.0)
    module = BudgetedClassifier(transferred(), budget, AUGMENT, clock=ticking())
    assert moved(module) == {"classifier.3"}


def test_in_the_second_phase_the_last_convolutions_learn_too() -> None:
    budget = Budget(5.0, 1e-2, frozen_share=0.5)
    module = BudgetedClassifier(transferred(), budget, AUGMENT, clock=ticking())
    assert moved(module) == {"classifier.3", "features.11", "features.12"}


def test_what_is_unfrozen_learns_at_a_lower_rate() -> None:
    module = BudgetedClassifier(transferred(), Budget(30.0, 1e-2), AUGMENT)
    groups = module.configure_optimizers().param_groups
    assert [group["peak"] for group in groups] == pytest.approx([1e-2, 1e-3])


def test_answers_are_probabilities_of_the_middle() -> None:
    class Mean(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.mean(dim=(2, 3))

    frames = torch.rand(3, 3, 64, 64)
    module = BudgetedClassifier(Mean(), Budget(1.0, 1.0), AUGMENT)
    expected = frames[:, :, 16:48, 16:48].mean(dim=(2, 3)).softmax(dim=1)
    torch.testing.assert_close(module.probabilities(frames), expected)


def test_the_middle_is_shrunk_by_averaging() -> None:
    frames = torch.zeros(1, 3, 8, 8)
    frames[:, :, ::2] = 1.0  # stripes that nearest-pixel sampling would take for black or white
    shown = seen(frames, window=8, side=4)
    assert tuple(shown.shape) == (1, 3, 4, 4)
    assert 0.3 < float(shown.min()) <= float(shown.max()) < 0.7
