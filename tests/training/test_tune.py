"""A search for settings: drawn, trained, scored, gone on with, reported."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

import models
from medserve.errors import ConfigError
from tests.training.frames.drawn import write_frames
from tests.training.guide import guided
from tests.training.volumes.drawn import tiny_spec, write_folder
from training import mednist, trus_prostate, tune
from training.core.config import TrainPrecision, parse, run
from training.segmentation_3d import TrainConfig
from training.volumes import train

SETTINGS = {"learning_rate", "batch_size", "epochs", "width", "dropout", "l1", "weight_decay"}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(models, "spec", lambda name, variant="": tiny_spec())
    return tune.tune_config("segmentation_3d")(
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

    monkeypatch.setattr(train, "train_member", pretend)
    return seen


def stored(config: Any) -> optuna.Study:
    return optuna.load_study(
        study_name="settings", storage=f"sqlite:///{config.out_dir / 'study.db'}"
    )


def content(config: Any) -> Any:
    return json.loads((config.out_dir / "tuning.json").read_text(encoding="utf-8"))


@pytest.mark.training
def test_a_trial_is_a_real_training(config: Any) -> None:
    flags = guided(
        "training.tune segmentation_3d", "--data-dir", config.data_dir, "--out-dir", config.out_dir,
        "--trials", 1, "--least-epochs", 1, "--most-epochs", 1, "--precision", "32-true",
        "--threads", 1, "--folds", 2, "--test-share", 0.3,
    )  # fmt: skip
    assert run(tune.main, object, flags, read=tune.read) == 0
    result = content(config)
    assert 0.0 <= result["best_score"] <= 1.0
    assert (config.out_dir / "trial_000" / "member_0" / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.cpu
def test_the_first_trial_has_the_defaults(config: Any, trained: list[TrainConfig]) -> None:
    tune.main(dataclasses.replace(config, trials=1))
    default = TrainConfig()
    assert trained[0].learning_rate == default.learning_rate
    assert trained[0].batch_size == default.batch_size
    assert trained[0].weight_decay == default.weight_decay
    assert content(config)["default_score"] == content(config)["best_score"]


@pytest.mark.cpu
def test_every_setting_is_drawn_within_its_bounds(config: Any, trained: list[TrainConfig]) -> None:
    tune.main(dataclasses.replace(config, trials=12))
    assert len({settings.learning_rate for settings in trained}) == 12
    assert {settings.epochs for settings in trained} == {1, 2}
    assert all(0.0 <= settings.dropout <= 0.3 for settings in trained)
    assert len({settings.batch_size for settings in trained}) > 1
    assert set(content(config)["best"]) == SETTINGS


@pytest.mark.cpu
def test_a_study_goes_on_where_it_ended(config: Any, trained: list[TrainConfig]) -> None:
    tune.main(dataclasses.replace(config, trials=3))
    tune.main(dataclasses.replace(config, trials=5))
    assert len(trained) == 5
    assert [row["trial"] for row in content(config)["rows"]] == [0, 1, 2, 3, 4]
    assert len({settings.learning_rate for settings in trained}) == 5  # nothing drawn twice
    tune.main(dataclasses.replace(config, trials=5))
    assert len(trained) == 5


@pytest.mark.cpu
def test_a_trial_that_was_interrupted_is_made_again(
    config: Any, trained: list[TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    tune.main(dataclasses.replace(config, trials=1))

    def interrupted(*_: object) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_member", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune.main(dataclasses.replace(config, trials=2))
    drawn = stored(config).trials[1].params
    tune.main(dataclasses.replace(config, trials=3))
    assert trained[1].learning_rate == drawn["learning_rate"]
    assert trained[2].learning_rate != drawn["learning_rate"]  # once is enough
    assert content(config)["trials"] == 3


@pytest.mark.cpu
def test_a_trial_whose_process_was_killed_is_made_again(
    config: Any, trained: list[TrainConfig]
) -> None:
    tune.main(dataclasses.replace(config, trials=1))
    drawn = tune.suggest(config, stored(config).ask())  # asked for, never answered
    tune.main(dataclasses.replace(config, trials=2))
    assert trained[1].learning_rate == drawn.learning_rate
    assert content(config)["trials"] == 2


@pytest.mark.cpu
def test_what_mattered_is_what_the_score_depends_on(
    config: Any, trained: list[TrainConfig]
) -> None:
    tune.main(dataclasses.replace(config, trials=25))
    importance = content(config)["importance"]
    assert max(importance, key=importance.__getitem__) == "learning_rate"
    assert sum(importance.values()) == pytest.approx(1.0, abs=1e-3)
    best = max(trained, key=lambda each: -abs(math.log10(each.learning_rate / 3e-3)))
    assert content(config)["best"]["learning_rate"] == best.learning_rate


@pytest.mark.cpu
def test_the_command_of_the_report_trains_with_the_best(
    config: Any, trained: list[TrainConfig]
) -> None:
    tune.main(dataclasses.replace(config, trials=4))
    result = content(config)
    _, _, flags = result["command"].partition("training.segmentation_3d ")
    settings = parse(TrainConfig, flags.split())
    for name, value in result["best"].items():
        assert getattr(settings, name) == pytest.approx(value, rel=1e-3)


@pytest.mark.cpu
def test_the_report_is_there_for_machines_and_for_eyes(
    config: Any, trained: list[TrainConfig]
) -> None:
    tune.main(dataclasses.replace(config, trials=5))
    with (config.out_dir / "tuning.csv").open(encoding="utf-8") as stream:
        assert {row["trial"] for row in csv.DictReader(stream)} == {"0", "1", "2", "3", "4"}
    page = (config.out_dir / "tuning.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3


def test_epochs_that_cannot_be_drawn_are_refused(config: Any) -> None:
    with pytest.raises(ConfigError, match="least-epochs up to"):
        tune.main(dataclasses.replace(config, least_epochs=3))


@pytest.mark.training
def test_a_classifier_is_tuned_by_its_errors(drawn: Path, tmp_path: Path) -> None:
    """Images are drawn, the network is the room's; fewer errors are better."""
    flags = guided(
        "training.tune mednist", "--data-dir", drawn, "--out-dir", tmp_path, "--trials", 2,
        "--least-epochs", 1, "--most-epochs", 1, "--precision", "32-true", "--threads", 1,
        "--network", "mednist",
    )  # fmt: skip
    assert run(tune.main, object, flags, read=tune.read) == 0
    result = json.loads((tmp_path / "tuning.json").read_text(encoding="utf-8"))
    assert set(result["best"]) == {"epochs", "learning_rate", "batch_size", "width",
                                   "weight_decay", "label_smoothing"}  # fmt: skip
    assert result["best_score"] == min(row["score"] for row in result["rows"])
    assert (result["score"], result["trials"]) == ("validation score", 2)
    assert (tmp_path / "trial_001/checkpoints/best.ckpt").is_file()
    _, _, command = result["command"].partition("training.mednist ")
    settings = parse(mednist.TrainConfig, command.split())
    assert (settings.data_dir, settings.threads) == (drawn, 1)
    assert settings.width == result["best"]["width"]


@pytest.mark.cpu
def test_the_settings_of_frames_are_drawn_for_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[trus_prostate.TrainConfig] = []

    def pretend(settings: trus_prostate.TrainConfig) -> Any:
        seen.append(settings)
        return SimpleNamespace(epoch=1, score=0.5)

    monkeypatch.setattr(trus_prostate, "prepare_training", lambda config: pretend)
    config = tune.tune_config("trus_prostate")(out_dir=tmp_path, trials=4, cutmix=0.25)
    tune.main(config)
    assert [settings.cutmix for settings in seen] == [0.25] * 4
    assert seen[0].learning_rate == trus_prostate.TrainConfig().learning_rate
    assert len({settings.dice_weight for settings in seen}) == 4


@pytest.mark.training
def test_networks_of_frames_are_tuned(tmp_path: Path) -> None:
    room = models.room("trus_prostate") / "model-config.yaml"
    small = re.sub(r"(?m)^    size: .*$", "    size: [32, 64]", room.read_text(encoding="utf-8"))
    (tmp_path / "small.yaml").write_text(small, encoding="utf-8")
    data = write_frames(tmp_path / "data", patients=6, frames=1)
    flags = guided(
        "training.tune trus_prostate", "--data-dir", data, "--out-dir", tmp_path / "out",
        "--trials", 1, "--least-epochs", 1, "--most-epochs", 1, "--threads", 1, "--folds", 2,
        "--model-config", tmp_path / "small.yaml", "--encoder", "tu-mobilenetv3_small_050",
    )  # fmt: skip
    assert run(tune.main, object, flags, read=tune.read) == 0
    result = json.loads((tmp_path / "out/tuning.json").read_text(encoding="utf-8"))
    assert (result["trials"], result["higher_is_better"]) == (1, True)


def test_a_command_without_a_room_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tune.main, object, ["--trials", "3"], read=tune.read) == 2
    assert "blood_cell, mednist, segmentation_3d, trus_prostate" in capsys.readouterr().err
