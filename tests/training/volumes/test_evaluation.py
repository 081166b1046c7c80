"""A segmentation artifact measured as it is served: on native grids, with its own settings."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models
from medserve.errors import ConfigError
from tests.training.volumes.drawn import LABELS, tiny_spec, write_folder
from training.core.evaluation import EvaluationRequest
from training.core.export import export_network
from training.core.split import Split, write_split
from training.volumes.evaluation import evaluate_segmentation


class Threshold(nn.Module):
    """Three grey levels told apart without training: the room's phantoms have one a label."""

    def __init__(self) -> None:
        super().__init__()
        levels = torch.tensor([0.1, 0.9, 0.5]).reshape(1, 3, 1, 1, 1)
        self.register_buffer("levels", levels)

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, 1, I, J, K) in [0, 1] -> logits (N, 3, I, J, K)."""
        smooth = torch.nn.functional.avg_pool3d(image, 3, 1, 1, count_include_pad=False)
        levels = self.get_buffer("levels")
        return -100.0 * (smooth - levels) ** 2


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    export_network(Threshold().eval(), folder, torch.rand(2, 1, 16, 24, 16), ["logits"])
    return folder


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "spec", lambda name, variant="": tiny_spec())


def evaluate(data: Path, out: Path, weights: Path, **options: Any) -> dict[str, Any]:
    request = EvaluationRequest(
        models.spec("segmentation_3d"), weights, data, out, threads=1, **options
    )
    return evaluate_segmentation(request)


@pytest.mark.cpu
def test_every_figure_is_written_with_what_it_was_measured_on(
    tmp_path: Path, weights: Path
) -> None:
    returned = evaluate(write_folder(tmp_path / "data", 4), tmp_path / "out", weights)
    written = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(returned))
    assert written["n"] == 4
    assert set(written["dice"]) == {"head", "tail", "mean"}
    assert written["dice"]["mean"] == pytest.approx(
        (written["dice"]["head"] + written["dice"]["tail"]) / 2, abs=1e-5
    )
    assert written["dice"]["mean"] > 0.7
    for measure in ("hd95_mm", "surface_dice", "volume_error_ml", "volume_error_percent"):
        low, high = written["intervals"][measure]["head"]
        assert low <= written[measure]["head"] <= high
    model = (weights / "model.onnx").read_bytes()
    assert written["artifact_sha256"] == hashlib.sha256(model).hexdigest()
    assert written["settings"]["flips"] is False
    assert written["settings"]["engine"] == "onnxruntime"
    with (tmp_path / "out" / "cases.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 8
    mean = sum(float(row["dice"]) for row in rows if row["label"] == "head") / 4
    assert mean == pytest.approx(written["dice"]["head"], abs=1e-5)


@pytest.mark.cpu
def test_the_report_carries_everything_it_shows(tmp_path: Path, weights: Path) -> None:
    evaluate(write_folder(tmp_path / "data", 3), tmp_path / "out", weights)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2 + 3  # figures, and the gallery of all three
    assert 'src="http' not in page
    for label in LABELS[1:]:
        assert f"<th>{label}</th>" in page


@pytest.mark.cpu
def test_the_worst_case_leads_the_gallery(tmp_path: Path, weights: Path) -> None:
    content = evaluate(write_folder(tmp_path / "data", 4), tmp_path / "out", weights)
    dice: dict[str, list[float]] = {}
    for row in content["cases"]:
        dice.setdefault(row["case"], []).append(row["dice"])
    worst = min(dice, key=lambda case: sum(dice[case]))
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.index(f"Contours of {worst}") == page.index("Contours of ")


@pytest.mark.cpu
def test_masks_are_compared_on_the_grid_of_their_file(tmp_path: Path, weights: Path) -> None:
    spacing = (0.7, 1.2, 0.9)
    data = write_folder(tmp_path / "data", 2, spacing_mm=spacing)
    content = evaluate(data, tmp_path / "out", weights)
    assert content["dice"]["mean"] > 0.7
    ml = spacing[0] * spacing[1] * spacing[2] / 1000
    for row in content["cases"]:  # whole voxels of the file, not of the network
        assert row["found_ml"] / ml == pytest.approx(round(row["found_ml"] / ml), abs=1e-2)


@pytest.mark.cpu
def test_the_rooms_flips_are_those_of_the_measurement(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "spec", lambda name, variant="": tiny_spec(flips=True))
    content = evaluate(write_folder(tmp_path / "data", 1), tmp_path / "out", weights)
    assert content["settings"]["flips"] is True


@pytest.mark.cpu
def test_one_part_of_a_split_can_be_measured(tmp_path: Path, weights: Path) -> None:
    data = write_folder(tmp_path / "data", 4)
    split = tmp_path / "split.csv"
    write_split(split, Split(("case_01",), (("case_00",), ("case_02", "case_03"))))
    (tmp_path / "config.json").write_text('{"fold": 1}', encoding="utf-8")
    for part, names in (("test", {"case_01"}), ("validation", {"case_02", "case_03"})):
        content = evaluate(data, tmp_path / "out", weights, split=split, part=part)
        assert {row["case"] for row in content["cases"]} == names
        assert content["settings"]["part"] == part


@pytest.mark.cpu
def test_remarks_about_the_folder_are_in_the_metrics_and_on_the_page(
    tmp_path: Path, weights: Path
) -> None:
    data = write_folder(tmp_path / "data", 2)
    for role in ("imagesTr", "labelsTr"):
        (data / role / "case_01.nii.gz").unlink()
    content = evaluate(data, tmp_path / "out", weights)
    assert content["n"] == 1
    assert content["remarks"][0] in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_volume_that_serving_would_refuse_is_named(tmp_path: Path, weights: Path) -> None:
    data = write_folder(tmp_path / "data", 1)
    (data / "imagesTr" / "case_00.nii.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(ConfigError, match=r"case_00\.nii\.gz: serving would refuse it"):
        evaluate(data, tmp_path / "out", weights)


def test_weights_that_are_not_there_are_an_error_of_one_line(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", 1)
    with pytest.raises(Exception, match=r"expected the artifact model\.onnx"):
        evaluate(data, tmp_path / "out", tmp_path)


def test_foreign_images_are_no_question_to_a_segmentation(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(ConfigError, match="no --foreign-dir"):
        evaluate(tmp_path, tmp_path / "out", weights, foreign_dir=tmp_path)
