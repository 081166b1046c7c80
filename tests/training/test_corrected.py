"""From images without a label to a better model: sort, correct, train, evaluate."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import models
from medserve.cli.main import main as medserve
from tests.client.fake_gateway import FakeGateway, classification, serving
from tests.training.drawn import class_folders
from training import evaluate, mednist
from training.classification.data import labelled_files
from training.core.config import run

pytestmark = [pytest.mark.training, pytest.mark.loopback]

FLAGS = ("--width", "8", "--epochs", "1", "--batch-size", "16", "--precision", "32-true")


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["medserve", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        medserve()
    assert end.value.code in (0, None)


def test_what_a_person_corrected_is_trained_on_and_the_result_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn, unsorted, out = class_folders(tmp_path / "drawn", 12), tmp_path / "in", tmp_path / "out"
    unsorted.mkdir()
    truth = {}  # digest -> class
    for path in sorted(drawn.rglob("*.png")):
        truth[hashlib.sha256(path.read_bytes()).hexdigest()] = path.parent.name
        shutil.copy(path, unsorted / f"{path.parent.name}-{path.name}")
    doubtful = {digest for digest in truth if digest < "2"}  # an eighth of them

    def answer(payload: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(payload).hexdigest()
        return classification("CXR", probability=0.5) if digest in doubtful else classification(
            truth[digest]
        )  # fmt: skip

    with serving(FakeGateway(answer=answer)) as gateway:
        command(monkeypatch, "sort", unsorted, "--out", out, "--address", gateway.address)
    capsys.readouterr()
    command(monkeypatch, "review", out, "--first", len(doubtful))
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "review" in line]
    assert len(listed) == len(doubtful)
    for stored in listed:
        digest = hashlib.sha256((out / stored).read_bytes()).hexdigest()
        command(monkeypatch, "review", out, stored, "--class", truth[digest], "--by", "Ada")
    label_of = labelled_files(out, models.spec("mednist").labels, every_class=True)
    assert {
        hashlib.sha256(path.read_bytes()).hexdigest(): label for path, label in label_of.items()
    } == truth

    arguments = ("--data-dir", str(out), "--out-dir", str(tmp_path / "run"), *FLAGS)
    assert run(mednist.main, mednist.TrainConfig, arguments) == 0
    unseen = class_folders(tmp_path / "unseen", 4, seed=1)
    measured = ("mednist", "--data-dir", str(unseen), "--out", str(tmp_path / "found"),
                 "--weights", str(tmp_path / "run" / "artifact"))  # fmt: skip
    assert run(evaluate.main, evaluate.EvaluateConfig, measured) == 0
    metrics = json.loads((tmp_path / "found" / "metrics.json").read_text())
    assert (metrics["n"], metrics["labels"]) == (24, list(models.spec("mednist").labels))
    trained = json.loads((tmp_path / "run" / "artifact" / "metrics.json").read_text())
    held_out = len((tmp_path / "run" / "split.csv").read_text().splitlines()) - 1  # its heading
    assert trained["training"]["train_images"] + held_out == len(truth)
