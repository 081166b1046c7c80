"""Trainings of a few seconds: they learn, stop, resume, fine-tune, and every setting acts."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn

from medserve.errors import ConfigError
from medserve.inference.volume_pipeline import VolumePipeline
from models.segmentation_3d.network import build
from tests.training.volumes.drawn import LABELS, tiny_spec, write_folder
from training.core.config import TrainPrecision
from training.core.fit import Fitted, is_fitted, load_fitted, start_from
from training.core.segmentation import fit_segmentation
from training.volumes.augment import Augmentation, Intensity, Placement
from training.volumes.config import VolumesConfig
from training.volumes.data import LoadedCase, find_cases, load_cases
from training.volumes.module import SCORE, Segmenter, freeze_body

pytestmark = pytest.mark.training

QUICK = VolumesConfig(
    epochs=2, batch_size=2, learning_rate=5e-3, precision=TrainPrecision.F32, width=8,
    validate_every=1, ema_decay=0.5, threads=1,
)  # fmt: skip
GENTLE = Augmentation(Placement(rotate=0.0, elastic=0.0, shift=1.0), Intensity(share=0.0))
PIPELINE = VolumePipeline(tiny_spec())


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[LoadedCase]:
    folder = write_folder(tmp_path_factory.mktemp("drawn"), 6)
    return load_cases(find_cases(folder), PIPELINE)


def segmenter(config: VolumesConfig, labels: tuple[str, ...] = LABELS) -> Segmenter:
    lightning.seed_everything(config.seed, verbose=False)
    network = build(
        config.network or "unet", in_channels=1, classes=len(labels), width=config.width,
        dropout=config.dropout,
    )  # fmt: skip
    return Segmenter(network, config, PIPELINE.window, labels, GENTLE)


def fit(config: VolumesConfig, cases: list[LoadedCase], out_dir: Path) -> Fitted:
    return fit_segmentation(segmenter(config), cases[:4], cases[4:], out_dir)


@pytest.fixture(scope="module")
def fitted(cases: list[LoadedCase], tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A training that has ended."""
    return fit(QUICK, cases, tmp_path_factory.mktemp("fitted"))


def weights(network: nn.Module) -> Tensor:
    return torch.cat([each.detach().flatten() for each in network.parameters() if each.ndim > 1])


def last(out_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(out_dir / "checkpoints/last.ckpt", weights_only=True)
    return content


@pytest.mark.parametrize(
    ("setting", "attribute", "otherwise"),
    [("mirror", "mirrored", 0.5), ("rotate", "rotate", 0.4), ("elastic", "elastic", 0.25)],
)
def test_shares_of_moved_patches_are_settings(
    setting: str, attribute: str, otherwise: float
) -> None:
    network = build("unet", in_channels=1, classes=len(LABELS), width=8)
    changed = VolumesConfig(**{setting: 0.1})  # type: ignore[arg-type]
    for config, share in ((VolumesConfig(), otherwise), (changed, 0.1)):
        placement = Segmenter(network, config, PIPELINE.window, LABELS).augmentation.placement
        expected = (share, 0.0, 0.0) if setting == "mirror" else share
        assert getattr(placement, attribute) == expected


def test_a_training_that_came_to_its_end_is_read_again(
    cases: list[LoadedCase], tmp_path: Path
) -> None:
    for name, config in (
        ("epochs", QUICK), ("minutes", dataclasses.replace(QUICK, epochs=100_000, minutes=0.02))
    ):  # fmt: skip
        assert not is_fitted(tmp_path / name)
        fitted = fit(config, cases, tmp_path / name)
        assert is_fitted(tmp_path / name)
        trained = last(tmp_path / name)["loops"]["fit_loop"]["epoch_progress"]["total"]["ready"]
        assert 1 <= fitted.epoch <= trained
        assert name == "epochs" or fitted.epoch == trained  # by minutes the last one ships
        again = load_fitted(segmenter(config), tmp_path / name, SCORE)
        assert again.checkpoint == fitted.checkpoint
        assert (again.epoch, again.score) == (fitted.epoch, fitted.score)
        assert torch.equal(weights(again.network), weights(fitted.network))


def test_a_training_begun_anew_where_another_ended_has_not_ended(
    cases: list[LoadedCase], tmp_path: Path
) -> None:
    fit(QUICK, cases, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        _fit_with(_StopAfter(epoch=0), segmenter(QUICK), cases, tmp_path)
    assert not is_fitted(tmp_path)


def test_a_network_learns_two_bodies(cases: list[LoadedCase], tmp_path: Path) -> None:
    config = dataclasses.replace(QUICK, epochs=25, validate_every=5)
    fitted = fit(config, cases, tmp_path)
    assert fitted.score > 0.8
    assert not fitted.network.training
    curves = (tmp_path / "logs/attempt_0/metrics.csv").read_text().splitlines()
    rows = list(csv.DictReader(curves))
    assert sum(bool(row["validation_dice_head"]) for row in rows) == 5
    assert list((tmp_path / "logs/attempt_0").glob("events.out.tfevents.*"))


def test_bf16_arithmetic_trains_too(cases: list[LoadedCase], tmp_path: Path) -> None:
    config = dataclasses.replace(QUICK, epochs=1, precision=TrainPrecision.BF16)
    fitted = fit(config, cases, tmp_path)
    assert {each.dtype for each in fitted.network.parameters()} == {torch.float32}


def test_two_trainings_with_one_seed_are_alike(cases: list[LoadedCase], tmp_path: Path) -> None:
    one, two = (fit(QUICK, cases, tmp_path / name).network for name in "ab")
    assert torch.equal(weights(one), weights(two))


def test_a_resumed_training_ends_as_an_uninterrupted_one(
    cases: list[LoadedCase], tmp_path: Path
) -> None:
    # A constant schedule would hide what resuming must restore: both ask for the same epochs.
    whole = dataclasses.replace(QUICK, epochs=3)
    fit(whole, cases, tmp_path / "whole")
    module = segmenter(whole)
    cut = _StopAfter(epoch=1)
    with pytest.raises(KeyboardInterrupt):
        _fit_with(cut, module, cases, tmp_path / "cut")
    assert last(tmp_path / "cut")["epoch"] == 1
    fit(dataclasses.replace(whole, resume=True), cases, tmp_path / "cut")
    assert last(tmp_path / "cut")["epoch"] == 2
    states = [last(tmp_path / name)["state_dict"] for name in ("whole", "cut")]
    steps = [last(tmp_path / name)["global_step"] for name in ("whole", "cut")]
    assert steps[0] == steps[1] == 6
    assert set(states[0]) == set(states[1])


def test_there_is_nothing_to_resume_in_a_new_folder(
    cases: list[LoadedCase], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="leave out --resume"):
        fit(dataclasses.replace(QUICK, resume=True), cases, tmp_path)


def test_a_training_that_gets_no_better_stops_early(
    cases: list[LoadedCase], tmp_path: Path
) -> None:
    config = dataclasses.replace(QUICK, epochs=30, learning_rate=0.0, patience=2)
    fit(config, cases, tmp_path)
    assert last(tmp_path)["epoch"] < 10


def test_a_training_by_minutes_ends_with_them(cases: list[LoadedCase], tmp_path: Path) -> None:
    config = dataclasses.replace(QUICK, epochs=100_000, minutes=0.02)
    fitted = fit(config, cases, tmp_path)
    assert fitted.checkpoint == tmp_path / "checkpoints/last.ckpt"
    assert 0.0 <= fitted.score <= 1.0
    rates = [each["lr"] for each in last(tmp_path)["optimizer_states"][0]["param_groups"]]
    assert max(rates) < 0.1 * config.learning_rate  # the schedule ended with the clock


@pytest.mark.parametrize(("l1", "l2"), [(1e-2, 0.0), (0.0, 30.0)])
def test_a_penalty_makes_weights_smaller(
    cases: list[LoadedCase], tmp_path: Path, l1: float, l2: float
) -> None:
    free, bound = (
        dataclasses.replace(QUICK, weight_decay=b, l1=a) for a, b in ((0.0, 0.0), (l1, l2))
    )
    sizes = [
        float(weights(fit(config, cases, tmp_path / name).network).abs().sum())
        for config, name in ((free, "free"), (bound, "bound"))
    ]
    assert sizes[1] < 0.97 * sizes[0]


def test_dropout_acts_while_training_and_only_then() -> None:
    network = segmenter(dataclasses.replace(QUICK, dropout=0.5)).network
    image = torch.rand(1, 1, 16, 24, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.equal(network.train()(image), network(image))
        assert torch.equal(network.eval()(image), network(image))


def test_fine_tuning_takes_the_body_and_makes_a_new_head(fitted: Fitted) -> None:
    module = segmenter(QUICK, (*LABELS, "third"))
    other = module.network
    head = {name: value.clone() for name, value in other.state_dict().items() if "head" in name}
    new = start_from(module, fitted.checkpoint, str(other.head_path))
    assert sorted(new) == sorted(head)
    for name, value in other.state_dict().items():
        expected = head[name] if name in head else fitted.network.state_dict()[name]
        assert torch.equal(value, expected)
        assert torch.equal(module.average.module.state_dict()[name], expected)


def test_fine_tuning_to_the_same_labels_takes_the_head_too(fitted: Fitted) -> None:
    other = segmenter(QUICK)
    assert start_from(other, fitted.checkpoint) == []
    assert torch.equal(weights(other.network), weights(fitted.network))


def test_a_checkpoint_of_another_network_is_refused(fitted: Fitted) -> None:
    wider = segmenter(dataclasses.replace(QUICK, width=16))
    with pytest.raises(ConfigError, match="expected the weights of the same network"):
        start_from(wider, fitted.checkpoint, "body.head")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    path.write_bytes(b"none")
    with pytest.raises(ConfigError, match="cannot be read as a checkpoint"):
        start_from(segmenter(QUICK), path)


def test_a_frozen_body_stays_while_the_head_learns(cases: list[LoadedCase], tmp_path: Path) -> None:
    config = dataclasses.replace(QUICK, epochs=1, freeze_epochs=1)
    module = segmenter(config)
    before = {name: value.clone() for name, value in module.network.state_dict().items()}
    fit_segmentation(module, cases[:4], cases[4:], tmp_path / "frozen")
    trained = last(tmp_path / "frozen")["state_dict"]
    changed = {n for n in before if not torch.equal(before[n], trained[f"network.{n}"])}
    assert changed == {"body.head.weight", "body.head.bias"}


def test_a_body_learns_again_after_its_frozen_epochs(
    cases: list[LoadedCase], tmp_path: Path
) -> None:
    module = segmenter(dataclasses.replace(QUICK, epochs=2, freeze_epochs=1))
    before = module.network.body.encoder[0].residual[0].weight.clone()
    fit_segmentation(module, cases[:4], cases[4:], tmp_path)
    after = last(tmp_path)["state_dict"]["network.body.encoder.0.residual.0.weight"]
    assert not torch.equal(before, after)
    freeze_body(module.network, frozen=False)
    assert all(each.requires_grad for each in module.network.parameters())


class _StopAfter(lightning.Callback):
    """Interrupts at the start of the epoch after `epoch`, as Ctrl+C would."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        if trainer.current_epoch > self.epoch:
            raise KeyboardInterrupt


def _fit_with(
    callback: lightning.Callback, module: Segmenter, cases: list[LoadedCase], out_dir: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "configure_callbacks", lambda: [callback])
        try:
            fit_segmentation(module, cases[:4], cases[4:], out_dir)
        except SystemExit as error:  # Lightning's own end after Ctrl+C
            raise KeyboardInterrupt from error
