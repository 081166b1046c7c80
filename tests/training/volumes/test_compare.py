"""Networks compared under one budget: every row is trained, exported, scored and timed once."""

from __future__ import annotations

import csv
import json
from typing import Any

import pytest

import models
from medserve.errors import ConfigError
from tests.training.guide import guided
from tests.training.volumes.drawn import tiny_spec, write_folder
from training.core.config import parse
from training.volumes import compare, train
from training.volumes.compare import CompareConfig

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> CompareConfig:
    folder = tmp_path_factory.mktemp("compare")
    flags = guided(
        "training.volumes.compare", "--data-dir", write_folder(folder / "data", 9),
        "--out-dir", folder / "out", "--networks", "unet,cenet", "--minutes", 0, "--epochs", 1,
        "--precision", "32-true", "--threads", 1, "--folds", 2, "--test-share", 0.3,
    )  # fmt: skip
    config = parse(CompareConfig, flags)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "spec", lambda name, variant="": tiny_spec())
        compare.main(config)
    return config


def content(study: CompareConfig) -> Any:
    return json.loads((study.out_dir / "comparison.json").read_text(encoding="utf-8"))


def test_every_network_has_a_row_with_all_that_decides(study: CompareConfig) -> None:
    rows = content(study)["rows"]
    assert {row["network"] for row in rows} == {"unet", "cenet"}
    for row in rows:
        assert set(row["dice"]) == {"head", "tail", "mean"}
        assert row["n"] == 3
        low, high = row["intervals"]["dice"]["mean"]
        assert low <= row["dice"]["mean"] <= high
        artifact = study.out_dir / row["network"] / "artifact" / "model.onnx"
        assert row["artifact_mb"] == round(artifact.stat().st_size / 1e6, 3)
        assert set(row["ms_per_volume"]) == {"openvino", "onnxruntime"}
        assert row["largest_export_difference"] <= 1e-4
        assert row["epochs"] == 1


def test_the_best_row_is_first_and_the_others_say_by_how_much_they_miss_it(
    study: CompareConfig,
) -> None:
    best, other = content(study)["rows"]
    assert best["versus_best"]["mean"] == 0.0
    missing = other["dice"]["mean"] - best["dice"]["mean"]
    assert missing <= 0.0
    assert other["versus_best"]["mean"] == pytest.approx(missing, abs=2e-5)


def test_the_budget_is_stated_with_the_table(study: CompareConfig) -> None:
    budget = content(study)["budget"]
    assert (budget["epochs"], budget["minutes"]) == (1, None)
    assert budget["train_volumes"] + budget["scored_volumes"] < 9  # the rest validates
    text = (study.out_dir / "comparison.md").read_text(encoding="utf-8")
    assert "1 epochs of training each on 1 threads" in text
    assert text.count("| `") == 2


def test_the_table_is_there_for_machines_and_for_eyes(study: CompareConfig) -> None:
    with (study.out_dir / "comparison.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert float(rows[0]["dice_mean"]) == content(study)["rows"][0]["dice"]["mean"]
    page = (study.out_dir / "comparison.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched
    assert (study.out_dir / "comparison.png").stat().st_size > 10_000


def test_what_is_done_is_not_trained_again(
    study: CompareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it was trained again")

    monkeypatch.setattr(models, "spec", lambda name, variant="": tiny_spec())
    monkeypatch.setattr(train, "train_member", never)
    before = content(study)
    compare.main(study)
    assert content(study) == before


def test_an_unknown_network_is_refused_with_the_list(study: CompareConfig) -> None:
    with pytest.raises(ConfigError, match="among unet, vnet"):
        compare.main(CompareConfig(data_dir=study.data_dir, networks="unet,resunet"))


def test_the_training_part_cannot_be_scored(study: CompareConfig) -> None:
    with pytest.raises(ConfigError, match="test or validation"):
        compare.main(CompareConfig(data_dir=study.data_dir, part="train"))
