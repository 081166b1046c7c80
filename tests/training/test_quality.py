"""Temperature, predicted Dice and intervals do what their names promise."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from scipy.special import expit

import models
from medserve.errors import ConfigError
from medserve.spec.quality import QualitySpec
from tests.training.guide import guided
from tests.training.volumes.drawn import tiny_spec, write_folder
from tests.training.volumes.test_evaluation import Threshold
from training.core.config import run
from training.core.export import export_network
from training.core.split import Split, write_split
from training.quality import (
    JudgedMask,
    NoMask,
    QualityConfig,
    expected_calibration_error,
    fit_absence,
    fit_dice,
    fit_temperature,
    main,
    volume_ratio,
)
from training.robustness import CHANGES
from training.volumes.data import find_cases


def draw(temperature: float, count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are too large by a factor, and labels drawn from what they mean."""
    generator = np.random.default_rng(0)
    honest = generator.normal(0.0, 2.0, (3, count))
    label_ids = (honest + generator.gumbel(size=honest.shape)).argmax(axis=0)
    return temperature * honest, label_ids


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_logits_were_drawn_with_is_found(temperature: float) -> None:
    logits, label_ids = draw(temperature)
    found = fit_temperature(logits, label_ids)
    assert found == pytest.approx(temperature, rel=0.05)
    assert expected_calibration_error(logits, label_ids, found) < 0.01
    if temperature != 1.0:
        assert expected_calibration_error(logits, label_ids, 1.0) > 0.05


def test_an_interval_of_volumes_covers_new_cases_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    held = []
    for _ in range(400):
        ratios = np.exp(generator.normal(0.0, 0.1, 41))
        low, high = volume_ratio(ratios[:-1])
        held.append(low <= ratios[-1] <= high)
    assert 0.85 <= np.mean(held) <= 0.95


def masks(count: int, seed: int = 0, each: int = 1) -> list[JudgedMask]:
    """Masks whose Dice follows one of their figures, `each` of them of one case."""
    generator = np.random.default_rng(seed)
    found = []
    for number in range(count):
        overlap, size = generator.normal(1.0, 1.5), generator.normal(5.0, 1.0)
        dice = float(1 / (1 + np.exp(-overlap - generator.normal(0.0, 0.3))))
        case, patient = f"c{number // each}", f"p{number // (2 * each)}"
        is_changed = number // each % 4 == 3
        found.append(JudgedMask(case, patient, is_changed, "body", (overlap, size), dice, 1.0))
    return found


def test_what_decides_about_dice_is_found_and_flags_what_is_wrong() -> None:
    dice, figures = fit_dice(masks(200), 0.5)
    assert dice.overlap == pytest.approx(1.0, abs=0.2)
    assert dice.size == pytest.approx(0.0, abs=0.1)
    clean = figures["unchanged"]
    assert clean["auroc"] > 0.9
    assert clean["auroc_interval"][0] <= clean["auroc"] <= clean["auroc_interval"][1]
    assert clean["right_flagged"] <= 0.06
    assert clean["wrong_flagged"] > 0.5
    assert (clean["n"], figures["all"]["n"]) == (150, 200)


@pytest.mark.parametrize("each", [1, 2, 4])
def test_few_cases_that_are_right_ask_for_a_review_however_many_masks_they_have(each: int) -> None:
    found = masks(800, each=each)
    dice, _ = fit_dice(found, 0.3)
    right = [mask for mask in found if not mask.is_changed and mask.dice >= 0.3]
    flagged = {
        mask.case
        for mask in right
        if expit(dice.intercept + np.dot((dice.overlap, dice.size), mask.predictors))
        < dice.review_below
    }
    assert 0.02 <= len(flagged) / len({mask.case for mask in right}) <= 0.06


def test_masks_of_which_no_unchanged_one_is_wrong_are_judged_by_the_spoilt_ones() -> None:
    found = [mask for mask in masks(400) if mask.is_changed or mask.dice >= 0.5]
    dice, figures = fit_dice(found, 0.5)
    assert dice.overlap == pytest.approx(1.0, abs=0.2)
    unchanged, spoilt_too = figures["unchanged"], figures["all"]
    assert (unchanged["wrong"], unchanged["auroc"], unchanged["wrong_flagged"]) == (0, None, None)
    assert unchanged["right_flagged"] <= 0.06
    assert spoilt_too["auroc"] > 0.9


@pytest.mark.parametrize(("count", "wrong_below"), [(6, 0.5), (200, 0.0)])
def test_too_little_to_judge_by_is_refused(count: int, wrong_below: float) -> None:
    with pytest.raises(ConfigError, match="add cases"):
        fit_dice(masks(count), wrong_below)


def test_the_limit_of_an_absence_tells_it_from_a_missed_structure() -> None:
    generator = np.random.default_rng(0)
    promised = generator.lognormal([[1.0], [4.0]], 0.8, (2, 200))
    answers = [
        NoMask(is_changed=number % 2 == 0, is_missed=bool(kind), promised=float(value))
        for kind, row in enumerate(promised)
        for number, value in enumerate(row)
    ]
    limit, counts = fit_absence(answers)
    assert limit is not None
    told = [np.mean(promised[1] >= each) + np.mean(promised[0] < each) for each in range(1, 99)]
    best = np.mean(promised[1] >= limit) + np.mean(promised[0] < limit)
    assert best >= max(told) - 0.01
    assert (counts["right"], counts["missed"]) == (100, 100)
    assert counts["missed_flagged"] == int((promised[1, 1::2] >= limit).sum())
    assert counts["right_flagged"] == int((promised[0, 1::2] >= limit).sum())


@pytest.mark.parametrize(("absent", "missed"), [(9, 5), (20, 4), (20, 0), (0, 0)])
def test_too_few_frames_without_a_mask_set_no_limit(absent: int, missed: int) -> None:
    answers = [NoMask(False, False, 1.0)] * absent + [NoMask(False, True, 9.0)] * missed
    limit, counts = fit_absence(answers)
    assert limit is None
    assert (counts["right_flagged"], counts["missed_flagged"]) == (absent, missed)


@pytest.mark.cpu
def test_a_model_of_volumes_is_measured_by_its_own_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "spec", lambda name, variant="": tiny_spec())
    monkeypatch.setattr("training.quality.changes_of", lambda task: CHANGES[:7:3])
    monkeypatch.setitem(main.__globals__["WRONG_BELOW"], tiny_spec().task, 0.75)
    folder = tmp_path / "weights"
    export_network(Threshold().eval(), folder, torch.rand(2, 1, 16, 24, 16), ["logits"])
    data = write_folder(tmp_path / "data", 8)
    names = [each.name for each in find_cases(data)]
    write_split(folder / "split.csv", Split(tuple(names[3:]), (tuple(names[:2]), (names[2],))))
    flags = guided(
        "training.quality segmentation_3d", "--data-dir", data, "--weights", folder,
        "--threads", 1, "--out-dir", tmp_path / "out",
    )  # fmt: skip
    assert run(main, QualityConfig, flags) == 0
    content = json.loads((tmp_path / "out/quality.json").read_text(encoding="utf-8"))
    quality = msgspec.convert(content["quality"], QualitySpec)
    assert set(quality.volume_ratio) == set(tiny_spec().labels[1:])
    assert content["predicted_dice"]["unchanged"]["patients"] == 7
    assert content["calibration"]["error_after"] <= content["calibration"]["error_before"]
    text = (tmp_path / "out/quality.md").read_text(encoding="utf-8")
    assert f"Below {quality.dice.review_below}" in text if quality.dice else False
