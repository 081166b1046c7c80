"""The comparison is one command, and its table says what its files say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.classification.drawn_cells import LABELS, cell_folders
from tests.training.guide import guided
from training.classification import compare, metrics
from training.classification.compare import Row, best_two, markdown
from training.core.config import run


def command(*flags: str) -> int:
    """What `python -m training.classification.compare` does with these flags; the exit code."""
    return run(compare.main, compare.CompareConfig, flags)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cell_folders(tmp_path_factory.mktemp("cells"), count=8, side=64)


@pytest.fixture(scope="module")
def out_dir(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    size = ("--seconds", "0.5", "--window", "32", "--side", "32", "--batch-size", "8")
    names = ("--networks", "blood_cell,mobilenet_v3_small")
    places = ("--data-dir", data_dir, "--out-dir", folder)
    assert command(*guided("training.classification.compare", *places, *size, *names)) == 0
    return folder


@pytest.fixture(scope="module")
def content(out_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out_dir / "comparison.json").read_text(encoding="utf-8"))
    return found


def row(name: str, errors: int) -> Row:
    """A network that takes the first images of 32 for platelets."""
    label_ids = np.arange(32) % 8
    answered = label_ids.copy()
    answered[:errors] = (label_ids[:errors] + 1) % 8
    probabilities = np.eye(8)[answered] * 0.9 + 0.0125
    measured = metrics.measure(probabilities, label_ids, LABELS)
    return Row(name, "random", measured, probabilities, label_ids, 1.0, 1000, 0.004, 2.0)


@pytest.mark.training
def test_every_network_has_a_row(content: dict[str, Any]) -> None:
    assert [each["name"] for each in content["rows"]] == ["blood_cell", "mobilenet_v3_small"]
    for each in content["rows"]:
        assert each["n"] == 8
        assert each["passes"] > 0
        assert each["image_ms"] > 0


@pytest.mark.training
def test_the_weights_of_every_network_are_kept(out_dir: Path) -> None:
    for name in ("blood_cell", "mobilenet_v3_small"):
        assert torch.load(out_dir / name / "network.pt", weights_only=True)


@pytest.mark.training
def test_the_best_two_are_tested_against_each_other(content: dict[str, Any]) -> None:
    assert {content["mcnemar"]["first"], content["mcnemar"]["second"]} == {
        "blood_cell",
        "mobilenet_v3_small",
    }
    assert 0.0 < content["mcnemar"]["p_value"] <= 1.0


@pytest.mark.training
def test_the_table_can_be_made_again_from_the_file(out_dir: Path, content: dict[str, Any]) -> None:
    assert (out_dir / "comparison.md").read_text(encoding="utf-8") == markdown(content)


@pytest.mark.training
def test_the_page_carries_its_figures_inside(out_dir: Path) -> None:
    page = (out_dir / "comparison.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r"src=\"(?!data:)", page)
    assert "no white blood cells" in page


def test_the_best_two_have_the_fewest_errors() -> None:
    rows = [row("a", errors=9), row("b", errors=2), row("c", errors=4)]
    best = best_two(rows)
    assert best is not None
    assert [each.name for each in best] == ["b", "c"]
    assert best_two(rows[:1]) is None


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--networks", "lenet"), "got 'lenet'"),
        (("--networks", ","), "got 'none'"),
        (("--weights", "/nowhere"), "expected --weights to be a folder"),
        (("--data-dir", "/nowhere"), "expected a folder, a CSV or an npz"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    flags: tuple[str, ...], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--out-dir", str(tmp_path), *flags) == 2
    message = capsys.readouterr().err
    assert reason in message
    assert message.count("\n") == 1
