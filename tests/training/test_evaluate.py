"""Evaluation runs the artifact by the code that serves it and reports what came out."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from medserve.inference.engines import load_engine
from medserve.results.sorted_folders import doubt_first
from medserve.spec import EngineName, Precision
from tests.archives import packaged
from tests.training.drawn import LABELS
from tests.training.guide import guided
from training import evaluate
from training.classification.data import LabelledImages, write_split
from training.classification.evaluation import answer_files, evaluate_classifier
from training.core.config import run
from training.core.evaluation import EvaluationRequest
from training.core.files import files_below

SPEC = models.spec("mednist")
FIGURES = ("confusion_matrix", "reliability", "novelty")


def evaluation(*arguments: str) -> int:
    """What `python -m training.evaluate` does with these arguments; the exit code."""
    return run(evaluate.main, evaluate.EvaluateConfig, arguments)


@pytest.fixture(scope="module")
def out(drawn: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    flags = ("--data-dir", str(drawn), "--out", str(folder), "--weights", str(weights))
    assert evaluation(*guided("training.evaluate mednist", *flags, "--threads", 1)) == 0
    return folder


@pytest.fixture(scope="module")
def metrics(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    return content


def test_metrics_count_every_image(metrics: dict[str, Any]) -> None:
    counts = np.array(metrics["confusion_matrix"])
    assert metrics["n"] == counts.sum() == 24
    assert metrics["errors"] == counts.sum() - np.trace(counts)
    assert metrics["accuracy"] == pytest.approx(np.trace(counts) / 24)
    np.testing.assert_array_equal(counts.sum(axis=1), [4] * 6)
    assert metrics["labels"] == list(LABELS)


def test_the_errors_among_the_first_that_review_shows_are_counted(
    drawn: Path, weights: Path, metrics: dict[str, Any]
) -> None:
    spec = models.spec("mednist")
    engine = load_engine(EngineName.ONNXRUNTIME, weights, precision=Precision.F32, threads=1)
    answers = answer_files(engine, spec, files_below(drawn))
    assert answers.novelty is not None
    highest = answers.probabilities.max(axis=1)
    rows = sorted(
        (
            doubt_first({
                "status": "unlike" if novelty > 1.0
                else "review" if probability < spec.classifier.review_below else "ok",
                "probability": str(probability),
            }),
            spec.labels[chosen] != path.relative_to(drawn).parts[0],
        )
        for path, novelty, probability, chosen in zip(
            answers.paths, answers.novelty, highest,
            answers.probabilities.argmax(axis=1), strict=True,
        )
    )  # fmt: skip
    review = metrics["review"]
    found = review["errors_in_first_5_percent"]
    assert found == sum(wrong for _, wrong in rows[:2])
    places = [place for place, (_, wrong) in enumerate(rows, start=1) if wrong]
    assert review["images_until_the_last_error"] == max(places, default=0)
    if places:
        low, high = review["share_in_first_5_percent_interval_95_exact"]
        assert low <= found / len(places) <= high


def test_metrics_agree_with_the_network_that_was_exported(
    metrics: dict[str, Any], weights: Path, drawn_images: LabelledImages
) -> None:
    engine = load_engine(EngineName.ONNXRUNTIME, weights, precision=Precision.F32, threads=1)
    tensor = drawn_images.images[:, np.newaxis].astype(np.float32) / np.float32(255)
    logits = engine.run(tensor)["logits"]
    errors = int((logits.argmax(axis=1) != drawn_images.label_ids).sum())
    assert metrics["errors"] == errors


def test_metrics_name_the_artifact_and_the_engine(metrics: dict[str, Any]) -> None:
    assert re.fullmatch("[0-9a-f]{64}", metrics["artifact_sha256"])
    assert (metrics["model"], metrics["engine"]) == ("mednist", "openvino")


def test_figures_are_png(out: Path) -> None:
    for name in FIGURES:
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_carries_its_figures_inside(out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    inside = [base64.b64decode(each) for each in re.findall(r"base64,([A-Za-z0-9+/=]+)", page)]
    for name in FIGURES:
        assert (out / f"{name}.png").read_bytes() in inside
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_the_report_shows_each_error(out: Path, metrics: dict[str, Any]) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("true ") == metrics["errors"] > 0
    assert len(list((out / "errors").glob("*.png"))) == metrics["errors"]


@pytest.mark.cpu
def test_a_file_that_serving_would_refuse_is_skipped_and_counted(
    drawn: Path, weights: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(drawn, tmp_path / "broken")
    (broken / "Hand" / "000.png").write_bytes(b"no image")
    request = EvaluationRequest(SPEC, weights, broken, tmp_path / "out", threads=1)
    content = evaluate_classifier(request)
    assert (content["n"], content["skipped"]) == (23, 1)


@pytest.mark.cpu
def test_one_part_of_a_split_is_evaluated(
    drawn: Path, weights: Path, drawn_images: LabelledImages, tmp_path: Path
) -> None:
    parts = {"validation": np.arange(3), "test": np.arange(10, 15)}
    write_split(tmp_path / "split.csv", drawn_images, parts)
    request = EvaluationRequest(
        SPEC, weights, drawn, tmp_path / "out", split=tmp_path / "split.csv", threads=1
    )
    assert evaluate_classifier(request)["n"] == 5


@pytest.mark.cpu
def test_foreign_images_are_counted_by_kind(drawn: Path, weights: Path, tmp_path: Path) -> None:
    for kind in ("bars", "more_bars"):
        shutil.copytree(drawn / "CXR", tmp_path / "foreign" / kind)
    request = EvaluationRequest(
        SPEC, weights, drawn, tmp_path / "out", foreign_dir=tmp_path / "foreign", threads=1
    )
    foreign = evaluate_classifier(request)["novelty"]["foreign"]
    assert {kind: each["n"] for kind, each in foreign.items()} == {"bars": 4, "more_bars": 4}


def test_probabilities_sum_to_one(drawn: Path, weights: Path) -> None:
    engine = load_engine(EngineName.ONNXRUNTIME, weights, precision=Precision.F32, threads=1)
    answers = answer_files(engine, models.spec("mednist"), files_below(drawn))
    np.testing.assert_allclose(answers.probabilities.sum(axis=1), 1.0)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("nobody", "--data-dir", "."), "expected one of"),
        (("mednist", "--data-dir", "/nowhere"), "expected --data-dir to be a folder"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(
    arguments: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluation(*arguments) == 2
    message = capsys.readouterr().err
    assert reason in message
    assert message.count("\n") == 1


def test_a_folder_that_is_no_label_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "Foot").mkdir()
    assert evaluation("mednist", "--data-dir", str(tmp_path)) == 2
    assert "'Foot'" in capsys.readouterr().err


def test_a_part_that_does_not_exist_is_refused(
    drawn: Path, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "split.csv").write_text("path,split\n")
    flags = ("--split", str(tmp_path / "split.csv"), "--part", "exam", "--weights", str(weights))
    assert evaluation("mednist", "--data-dir", str(drawn), *flags) == 2
    assert "'exam'" in capsys.readouterr().err


@pytest.mark.cpu
def test_an_npz_is_measured_as_the_same_images_in_folders(
    drawn: Path, weights: Path, drawn_images: LabelledImages, tmp_path: Path
) -> None:
    content: dict[str, Any] = {}
    for part in ("train", "val", "test"):
        content[f"{part}_images"] = drawn_images.images
        content[f"{part}_labels"] = drawn_images.label_ids[:, None]
    np.savez(tmp_path / "drawn.npz", **content)
    flags = ("--weights", str(weights), "--threads", "1", "--part", "validation")
    file = str(tmp_path / "drawn.npz")
    assert evaluation("mednist", "--data-dir", file, "--out", str(tmp_path / "npz"), *flags) == 0
    found = json.loads((tmp_path / "npz/metrics.json").read_text())
    folders = evaluate_classifier(EvaluationRequest(SPEC, weights, drawn, tmp_path / "folders"))
    np.testing.assert_array_equal(found["confusion_matrix"], folders["confusion_matrix"])


@pytest.mark.archive
def test_an_archive_is_measured_as_its_room(drawn: Path, tmp_path: Path) -> None:
    pytest.importorskip("ts", reason="needs the serve extra")
    archive = packaged("mednist", tmp_path / "store")
    flags = ("--data-dir", str(drawn), "--threads", "1")
    command = guided("training.evaluate model_store/mednist-1.0.mar", *flags)
    command[0] = str(archive)
    assert evaluation(*command, "--out", str(tmp_path / "archive")) == 0
    assert evaluation("mednist", *flags, "--out", str(tmp_path / "room")) == 0
    first, second = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("archive", "room")
    )
    assert first == second
    assert evaluation(str(archive), *flags, "--variant", "svm") == 2
