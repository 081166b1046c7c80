"""Versions of one model compared: counts that add up, a paired test, every error shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import models
from medserve.inference.engines import Inputs, Outputs
from medserve.spec import EngineName
from tests.training.drawn import class_folders
from training import comparison
from training.comparison import ComparisonConfig, Held
from training.core.config import run

SPEC = models.spec("mednist")


class Knowing:
    """An engine that is right but for the images at `wrong`, which it calls the next label."""

    name = EngineName.ONNXRUNTIME

    def __init__(self, wrong: set[int]) -> None:
        self.wrong = wrong

    def run(self, inputs: Inputs) -> Outputs:
        """Logits of 8 for the answer and -2 for every other label; nothing is novel."""
        assert isinstance(inputs, np.ndarray)
        tensor = inputs
        numbers = np.rint(tensor[:, 0, 0, 0] * 255).astype(int)
        answered = [(n + (n in self.wrong)) % len(SPEC.labels) for n in numbers]
        logits = np.full((len(numbers), len(SPEC.labels)), -2.0, np.float32)
        logits[np.arange(len(numbers)), answered] = 8.0
        return {"logits": logits, "novelty": np.zeros(len(numbers), np.float32)}


@pytest.fixture
def held() -> Held:
    """Thirty images; the first pixel of each says its number."""
    planes = np.random.default_rng(0).random((30, 1, 64, 64), np.float32)
    planes[:, 0, 0, 0] = np.arange(30, dtype=np.float32) / 255
    label_ids = np.arange(30, dtype=np.int64) % len(SPEC.labels)
    names = tuple(f"{SPEC.labels[k]}/{n:02d}.jpeg" for n, k in enumerate(label_ids))
    return Held(names, planes, label_ids)


@pytest.fixture
def content(held: Held) -> dict[str, object]:
    rows, answers = [], []
    for wrong in ({3}, {3, 5, 7}):
        engine = Knowing(wrong)
        answered = comparison._answer(engine, held, "")
        weights = models.room("mednist") / "weights"
        rows.append(comparison._row(SPEC, weights, engine, held, answered))
        answers.append(answered[0])
    rows[1]["version"] = "1.0-other"
    pairs = comparison._pairs(rows, answers, held)
    return {"room": "mednist", "part": "test", "n": 30, "labels": list(SPEC.labels),
            "versions": rows, "pairs": pairs}  # fmt: skip


def test_errors_and_matrix_add_up_to_all_images(content: dict[str, object]) -> None:
    rows = content["versions"]
    assert isinstance(rows, list)
    for row, errors in zip(rows, (1, 3), strict=True):
        matrix = np.array(row["confusion_matrix"])
        assert (matrix.sum(), matrix.sum() - np.trace(matrix)) == (30, errors)
        assert len(row["wrong"]) == row["errors"] == errors


def test_the_paired_test_counts_what_only_one_gets_right(content: dict[str, object]) -> None:
    pairs = content["pairs"]
    assert isinstance(pairs, list)
    (pair,) = pairs
    assert (pair["only_first"], pair["only_second"], pair["both_wrong"]) == (2, 0, 1)
    assert pair["p_value"] == 0.5  # two coins, both heads or both tails


def test_the_page_shows_every_error_of_every_version(
    content: dict[str, object], held: Held, tmp_path: Path
) -> None:
    rows = content["versions"]
    assert isinstance(rows, list)
    comparison.write(tmp_path, content, comparison._pictures(rows, held))
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    for row in rows:
        for error in row["wrong"]:
            assert error["name"] in page
    assert page.count("data:image/png") == 1 + 1 + 3  # the matrices and four errors
    table = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "| `1.0` and `1.0-other` | 2 | 0 | 1 | 0.5000 |" in table
    written = (tmp_path / "comparison.json").read_text(encoding="utf-8")
    assert comparison.as_markdown(json.loads(written)) == table


def test_other_images_than_those_held_out_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = class_folders(tmp_path / "drawn", count=1)
    flags = ["--data-dir", str(folder), "--out-dir", str(tmp_path / "out")]
    assert run(comparison.main, ComparisonConfig, flags) == 2
    assert "found none of them" in capsys.readouterr().err


def test_an_artifact_that_no_room_ships_is_compared_under_the_name_of_its_folder() -> None:
    weights, variants = models.room("blood_cell") / "weights", ["", *models.variants("blood_cell")]
    versions = comparison._versions(ComparisonConfig(room="blood_cell", artifact=weights))
    named = [spec.version for spec, _ in versions]
    assert named == [models.spec("blood_cell", each).version for each in variants] + [str(weights)]
    assert versions[0][1] == versions[-1][1]
    assert versions[0][0].labels == versions[-1][0].labels
