"""Inputs are spoilt with their truth beside them, and counted as they are answered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from medserve.errors import ConfigError, InvalidImageError
from medserve.imaging.geometry import Geometry
from tests.training.guide import guided
from tests.training.volumes.drawn import case, tiny_spec, write_folder
from tests.training.volumes.test_evaluation import Threshold
from training.core.config import run
from training.core.export import export_network
from training.robustness import (
    CHANGES,
    Answer,
    Change,
    RobustnessConfig,
    Sample,
    answered,
    main,
    split_of,
    totals,
    with_section,
)
from training.volumes.metrics import compare_masks

GEOMETRIC = ("turn", "scale", "mirrored", "resolution")


def change(kind: str, strength: str) -> Change:
    [found] = [each for each in CHANGES if (each.kind, each.strength) == (kind, strength)]
    return found


def picture(colour: bool = False) -> Sample:
    """A bright ellipse off the middle, and its mask."""
    rows, columns = np.mgrid[0:60, 0:80]
    mask = ((rows - 24) / 12) ** 2 + ((columns - 46) / 20) ** 2 < 1
    array = np.where(mask, 0.8, 0.2).astype(np.float32)
    array = np.repeat(array[..., None], 3, axis=2) if colour else array
    return Sample(array, mask.astype(np.uint8))


def volume() -> Sample:
    found, mask = case(3)
    return Sample(found.array, mask, found.geometry)


@pytest.mark.parametrize("each", CHANGES, ids=lambda each: f"{each.kind} {each.strength}")
@pytest.mark.parametrize("make", [picture, lambda: picture(colour=True), volume])
def test_a_spoilt_input_is_one_of_its_kind_with_its_truth_on_its_grid(
    each: Change, make: object
) -> None:
    before: Sample = make()  # type: ignore[operator]
    after = each.apply(before, np.random.default_rng(0))
    assert after.array.dtype == np.float32
    assert np.isfinite(after.array).all()
    spatial = 2 if after.geometry is None else 3
    assert after.truth.shape == after.array.shape[:spatial]
    if after.geometry is None:
        assert (after.array.min() >= 0.0, after.array.max() <= 1.0) == (True, True)
    else:
        assert after.geometry.shape == after.array.shape
    if each.kind not in GEOMETRIC:
        np.testing.assert_array_equal(after.truth, before.truth)
    if each.kind != "none" and (each.kind, spatial) != ("scale", 3):
        changed = after.array.shape != before.array.shape
        assert changed or (after.array != before.array).any()


@pytest.mark.parametrize("kind", GEOMETRIC)
def test_the_mask_goes_with_the_picture(kind: str) -> None:
    for each in [each for each in CHANGES if each.kind == kind]:
        after = each.apply(picture(), np.random.default_rng(0))
        inside = after.truth > 0
        assert after.array[inside].mean() > 0.7
        assert after.array[~inside].mean() < 0.25


def test_a_volume_of_less_resolution_keeps_its_extent_and_its_labels() -> None:
    before = volume()
    after = change("resolution", "1/2").apply(before, np.random.default_rng(0))
    assert isinstance(before.geometry, Geometry)
    assert isinstance(after.geometry, Geometry)
    extent, expected = (
        np.multiply(each.shape, each.spacing_mm) for each in (after.geometry, before.geometry)
    )
    np.testing.assert_allclose(extent, expected)
    scores = compare_masks(after.truth, after.truth, after.geometry, tiny_spec().labels)
    assert all(each.dice == 1.0 for each in scores)


def test_the_table_goes_into_a_card_once_and_before_its_limits() -> None:
    card = "# A model\n\n## Metrics\n\nGood.\n\n## Limits\n\nMany.\n"
    once = with_section(card, "first table\n")
    assert once.index("## Metrics") < once.index("## Robustness") < once.index("## Limits")
    twice = with_section(once, "second table\n")
    assert twice.count("## Robustness") == 1
    assert "first" not in twice
    assert twice.replace("## Robustness\n\nsecond table\n\n", "") == card
    with pytest.raises(ConfigError, match="## Limits"):
        with_section("# A model\n", "table")


@pytest.mark.cpu
def test_a_classifier_is_measured_in_every_way(
    drawn: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = guided(
        "training.robustness mednist", "--data-dir", drawn, "--weights", weights, "--no-held-out",
        "--n", 6, "--threads", 1, "--out-dir", tmp_path,
    )  # fmt: skip
    shutil.copy(models.room("mednist") / "model-config.yaml", tmp_path)
    (tmp_path / "README.md").write_text("# A card\n\n## Limits\n", encoding="utf-8")
    monkeypatch.setattr(models, "room", lambda *_: tmp_path)
    assert run(main, RobustnessConfig, flags) == 0
    assert "## Robustness" in (tmp_path / "README.md").read_text(encoding="utf-8")
    content = json.loads((tmp_path / "robustness.json").read_text(encoding="utf-8"))
    assert content["n"] == 6
    assert [(row["kind"], row["strength"]) for row in content["rows"]] == [
        (each.kind, each.strength) for each in CHANGES
    ]
    for row in content["rows"]:
        assert row["score"] == pytest.approx(1 - row["wrong"] / 6, abs=1e-3)
        assert row["wrong_unflagged"] <= row["wrong"]
    table = (tmp_path / "robustness.md").read_text(encoding="utf-8")
    assert table.count("\n| ") == len(CHANGES) + 1
    assert f"--data-dir {drawn} --n 6 --no-held-out" in table
    alarms, right = content["unchanged_right_flagged"], content["unchanged_right"]
    assert f"of {alarms} of the {right} right answers to unchanged inputs" in table


@pytest.mark.cpu
def test_volumes_are_measured_where_it_is_known_that_they_were_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "spec", lambda name, variant="": tiny_spec())
    folder = tmp_path / "weights"
    export_network(Threshold().eval(), folder, torch.rand(2, 1, 16, 24, 16), ["logits"])
    data = write_folder(tmp_path / "data", 2)
    flags = ["segmentation_3d", "--data-dir", str(data), "--weights", str(folder), "--n", "2",
             "--threads", "1", "--out-dir", str(tmp_path / "out")]  # fmt: skip
    assert run(main, RobustnessConfig, flags) == 2  # nothing says what it was trained on
    assert run(main, RobustnessConfig, [*flags, "--no-held-out"]) == 0
    content = json.loads((tmp_path / "out/robustness.json").read_text(encoding="utf-8"))
    rows = {(row["kind"], row["strength"]): row for row in content["rows"]}
    assert rows["none", ""]["score"] > 0.7
    assert rows["blur", "8 %"]["score"] < rows["none", ""]["score"]


def test_what_is_refused_is_wrong_and_flagged() -> None:
    def refuse(sample: Sample) -> Answer:
        raise InvalidImageError("too small")

    assert answered(picture(), refuse) == Answer(0.0, is_wrong=True, is_flagged=True)


def test_a_flag_of_a_wrong_answer_is_no_false_alarm() -> None:
    unchanged = {"flagged": 0.3125, "wrong": 6, "wrong_unflagged": 4}  # 5 of 16, 2 of them wrong
    spoilt = {"flagged": 1.0, "wrong": 14, "wrong_unflagged": 0}
    assert totals([unchanged, spoilt], 16) == {
        "wrong_flagged_share": 0.8, "unchanged_right": 10, "unchanged_right_flagged": 3,
    }  # fmt: skip
    assert totals([{"flagged": 0.0, "wrong": 0, "wrong_unflagged": 0}], 3) == {
        "wrong_flagged_share": None, "unchanged_right": 3, "unchanged_right_flagged": 0,
    }  # fmt: skip


def test_a_variant_is_measured_on_what_its_room_held_out() -> None:
    config = RobustnessConfig("mednist", variant="svm")
    room = models.room("mednist")
    assert split_of(config, models.room("mednist", "svm") / "weights") == room / "weights/split.csv"
