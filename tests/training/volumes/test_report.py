"""Pictures of cases and logs of trainings, as the report shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medserve.imaging.volume import Volume
from tests.training.volumes.drawn import LABELS, case, tiny_spec
from training.core.report import draw
from training.volumes import report
from training.volumes.curves import fold_of, read_runs
from training.volumes.metrics import compare_masks, summarise
from training.volumes.pictures import Picture, contours

HEADER = "epoch,step,train_loss,validation_dice,validation_dice_head,validation_dice_tail\n"


def log(folder: Path, attempt: int, rows: str, fold: int = 0) -> None:
    path = folder / "logs" / f"attempt_{attempt}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    path.write_text(HEADER + rows, encoding="utf-8")
    (folder / "config.json").write_text(f'{{"fold": {fold}}}', encoding="utf-8")


def picture() -> Picture:
    volume, reference = case(0, (1.0, 1.2, 0.8))
    mask = reference.copy()
    mask[:, :, 11] = 0  # one axial slice was missed
    scores = compare_masks(mask, reference, volume.geometry, LABELS, ("case_00", "case_00"))
    return Picture("case_00", volume, mask, reference, tuple(scores))


def test_each_direction_shows_the_slice_that_differs_most() -> None:
    drawn = contours(picture())
    assert drawn.axes[0].get_title() == "axial, slice 11"
    assert [axes.get_title().split(",")[0] for axes in drawn.axes] == [
        "axial", "coronal", "sagittal"
    ]  # fmt: skip


def test_slices_are_true_to_scale() -> None:
    drawn = contours(picture())
    drawn.draw_without_rendering()
    millimetres = []
    for axes in drawn.axes:
        box = axes.get_window_extent()
        left, right = axes.get_xlim()
        low, high = sorted(axes.get_ylim())
        millimetres += [box.width / (right - left), box.height / (high - low)]
    assert max(millimetres) / min(millimetres) < 1.02  # pixels a millimetre, in all directions


def test_a_volume_stored_the_other_way_round_gives_the_same_picture() -> None:
    seen = picture()
    turned, order = seen.volume.reoriented("IRA")
    other = Picture(
        seen.name,
        Volume(turned.array.copy(), turned.geometry),
        order.apply(seen.mask).copy(),
        order.apply(seen.reference).copy(),
        seen.scores,
    )
    assert other.mask.shape != seen.mask.shape
    assert draw(lambda: contours(other)) == draw(lambda: contours(seen))


def test_a_training_that_was_gone_on_with_is_one_curve(tmp_path: Path) -> None:
    log(tmp_path, 0, "0,1,2.0,,,\n0,2,1.0,,,\n0,2,,0.5,0.4,0.6\n1,3,9.0,,,\n")
    log(tmp_path, 1, "1,3,0.8,,,\n1,3,,0.7,0.65,0.75\n")
    (run,) = read_runs(tmp_path)
    assert run.loss == ((1, 1.5), (2, 0.8))  # the second epoch was begun anew
    assert run.dice == ((1, 0.5), (2, 0.7))
    assert run.labels == {"head": (0.4, 0.65), "tail": (0.6, 0.75)}


def test_a_fold_is_its_best_validation(tmp_path: Path) -> None:
    log(tmp_path, 0, "0,1,,0.5,0.4,0.6\n3,2,,0.8,0.7,0.9\n6,3,,0.7,0.6,0.8\n", fold=4)
    fold = fold_of(read_runs(tmp_path)[0])
    assert (fold.fold, fold.epoch, fold.dice) == (4, 4, 0.8)  # the log counts from 0
    assert fold.labels == {"head": 0.7, "tail": 0.9}


def test_a_folder_without_logs_has_no_curves(tmp_path: Path) -> None:
    assert read_runs(tmp_path) == []


@pytest.mark.cpu
def test_the_report_has_the_table_of_the_folds(tmp_path: Path) -> None:
    for n, dice in enumerate((0.80, 0.90)):
        log(tmp_path / f"member_{n}", 0, f"0,1,1.0,{dice},{dice - 0.1},{dice + 0.1}\n", fold=n)
    shown = picture()
    findings = report.Findings(
        summary=summarise(shown.scores),
        scores=shown.scores,
        worst=(shown,),
        content={
            "settings": {"engine": "onnxruntime"},
            "seconds_per_volume": 0.1,
            "artifact_sha256": "0" * 64,
            "remarks": [],
        },
        runs=read_runs(tmp_path),
    )
    page = report.write(tmp_path / "out", tiny_spec(), findings).read_text(encoding="utf-8")
    assert "<td>member_0</td><td>0</td>" in page
    assert "0.8500 ± 0.0707" in page  # of the means
    assert "0.7500 ± 0.0707" in page  # of the heads
    assert page.count("data:image/png;base64,") == 4


def test_a_case_without_a_label_can_be_shown() -> None:
    volume, reference = case(1)
    empty = np.zeros_like(reference)
    assert contours(Picture("case_01", volume, empty, reference, ())).axes


def test_equal_figures_are_equal_bytes() -> None:
    first, second = (draw(lambda: contours(picture())) for _ in range(2))
    assert first == second


@pytest.mark.cpu
@pytest.mark.parametrize("label", LABELS[1:])
def test_the_gallery_says_what_each_case_scored(tmp_path: Path, label: str) -> None:
    shown = picture()
    score = next(each for each in shown.scores if each.label == label)
    content = {"settings": {}, "seconds_per_volume": 0.1, "artifact_sha256": "", "remarks": []}
    findings = report.Findings(summarise(shown.scores), shown.scores, (shown,), content)
    page = report.write(tmp_path, tiny_spec(), findings).read_text(encoding="utf-8")
    assert f"{label} Dice {score.dice:.3f}, HD95 {score.hd95_mm:.2f} mm" in page
