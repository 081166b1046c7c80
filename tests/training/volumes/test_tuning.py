"""A search for settings: drawn, trained, scored, gone on with, reported."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

import models
from medserve.errors import ConfigError
from tests.training.volumes.drawn import tiny_spec, write_folder
from training import segmentation_3d
from training.core.config import TrainPrecision, parse
from training.segmentation_3d import TrainConfig
from training.volumes import tuning
from training.volumes.tuning import TuneConfig

SETTINGS = {"learning_rate", "batch_size", "epochs", "width", "dropout", "l1", "weight_decay"}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TuneConfig:
    monkeypatch.setattr(models, "spec", lambda name: tiny_spec())
    return TuneConfig(
        data_dir=write_folder(tmp_path / "data", 6),
        out_dir=tmp_path / "out",
        least_epochs=1,
        most_epochs=2,
        precision=TrainPrecision.F32,
        threads=1,
        folds=2,
        test_share=0.3,
    )


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """Settings of each training; its score depends on the learning rate alone."""
    seen: list[TrainConfig] = []

    def pretend(settings: TrainConfig, *_: object) -> Any:
        seen.append(settings)
        away = abs(math.log10(settings.learning_rate) - math.log10(3e-3))
        return SimpleNamespace(epoch=0, score=0.9 - 0.1 * away)

    monkeypatch.setattr(segmentation_3d, "train_member", pretend)
    return seen


def stored(config: TuneConfig) -> optuna.Study:
    return optuna.load_study(
        study_name="segmentation", storage=f"sqlite:///{config.out_dir / 'study.db'}"
    )


def content(config: TuneConfig) -> Any:
    return json.loads((config.out_dir / "tuning.json").read_text(encoding="utf-8"))


@pytest.mark.training
def test_a_trial_is_a_real_training(config: TuneConfig) -> None:
    tuning.main(dataclasses.replace(config, trials=1, most_epochs=1))
    result = content(config)
    assert 0.0 <= result["best_validation_dice"] <= 1.0
    assert (config.out_dir / "trial_000" / "member_0" / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.cpu
def test_the_first_trial_has_the_defaults(config: TuneConfig, trained: list[TrainConfig]) -> None:
    tuning.main(dataclasses.replace(config, trials=1))
    default = TrainConfig()
    assert trained[0].learning_rate == default.learning_rate
    assert trained[0].batch_size == default.batch_size
    assert trained[0].weight_decay == default.weight_decay
    assert content(config)["default_validation_dice"] == content(config)["best_validation_dice"]


@pytest.mark.cpu
def test_every_setting_is_drawn_within_its_bounds(
    config: TuneConfig, trained: list[TrainConfig]
) -> None:
    tuning.main(dataclasses.replace(config, trials=12))
    assert len({settings.learning_rate for settings in trained}) == 12
    assert {settings.epochs for settings in trained} == {1, 2}
    assert all(0.0 <= settings.dropout <= 0.3 for settings in trained)
    assert len({settings.batch_size for settings in trained}) > 1
    assert set(content(config)["best"]) == SETTINGS


@pytest.mark.cpu
def test_a_study_goes_on_where_it_ended(config: TuneConfig, trained: list[TrainConfig]) -> None:
    tuning.main(dataclasses.replace(config, trials=3))
    tuning.main(dataclasses.replace(config, trials=5))
    assert len(trained) == 5
    assert [row["trial"] for row in content(config)["rows"]] == [0, 1, 2, 3, 4]
    assert len({settings.learning_rate for settings in trained}) == 5  # nothing drawn twice
    tuning.main(dataclasses.replace(config, trials=5))
    assert len(trained) == 5


@pytest.mark.cpu
def test_a_trial_that_was_interrupted_is_made_again(
    config: TuneConfig, trained: list[TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning.main(dataclasses.replace(config, trials=1))

    def interrupted(*_: object) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(segmentation_3d, "train_member", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tuning.main(dataclasses.replace(config, trials=2))
    drawn = stored(config).trials[1].params
    tuning.main(dataclasses.replace(config, trials=3))
    assert trained[1].learning_rate == drawn["learning_rate"]
    assert trained[2].learning_rate != drawn["learning_rate"]  # once is enough
    assert content(config)["trials"] == 3


@pytest.mark.cpu
def test_a_trial_whose_process_was_killed_is_made_again(
    config: TuneConfig, trained: list[TrainConfig]
) -> None:
    tuning.main(dataclasses.replace(config, trials=1))
    drawn = tuning.suggest(config, stored(config).ask())  # asked for, never answered
    tuning.main(dataclasses.replace(config, trials=2))
    assert trained[1].learning_rate == drawn.learning_rate
    assert content(config)["trials"] == 2


@pytest.mark.cpu
def test_what_mattered_is_what_the_score_depends_on(
    config: TuneConfig, trained: list[TrainConfig]
) -> None:
    tuning.main(dataclasses.replace(config, trials=25))
    importance = content(config)["importance"]
    assert max(importance, key=importance.__getitem__) == "learning_rate"
    assert sum(importance.values()) == pytest.approx(1.0, abs=1e-3)
    best = max(trained, key=lambda each: -abs(math.log10(each.learning_rate / 3e-3)))
    assert content(config)["best"]["learning_rate"] == best.learning_rate


@pytest.mark.cpu
def test_the_command_of_the_report_trains_with_the_best(
    config: TuneConfig, trained: list[TrainConfig]
) -> None:
    tuning.main(dataclasses.replace(config, trials=4))
    result = content(config)
    _, _, flags = result["command"].partition("training.segmentation_3d ")
    settings = parse(TrainConfig, flags.split())
    for name, value in result["best"].items():
        assert getattr(settings, name) == pytest.approx(value, rel=1e-3)


@pytest.mark.cpu
def test_the_report_is_there_for_machines_and_for_eyes(
    config: TuneConfig, trained: list[TrainConfig]
) -> None:
    tuning.main(dataclasses.replace(config, trials=5))
    with (config.out_dir / "tuning.csv").open(encoding="utf-8") as stream:
        assert {row["trial"] for row in csv.DictReader(stream)} == {"0", "1", "2", "3", "4"}
    page = (config.out_dir / "tuning.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3


def test_epochs_that_cannot_be_drawn_are_refused(config: TuneConfig) -> None:
    with pytest.raises(ConfigError, match="least-epochs up to"):
        tuning.main(dataclasses.replace(config, least_epochs=3))
