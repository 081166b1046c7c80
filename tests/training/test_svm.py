"""The support vector machine: honest folds, the asked grid, and one answer from three programs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.model_selection import ParameterGrid

from medserve.errors import ConfigError
from medserve.inference.engines import load_engine
from medserve.spec import EngineName, Precision
from models.mednist.svm import PairwiseLogits, SupportVectorMachine
from tests.training.drawn import LABELS, class_folders, picture
from training import svm
from training.classification.data import LabelledImages
from training.classification.svm_export import export_svm, fitted_parts
from training.core.config import run
from training.svm import GRID, Shrink, SvmConfig

TINY = SvmConfig(factor=8, components=12, search_images=0, folds=3, jobs=1)


@pytest.fixture(scope="module")
def images() -> LabelledImages:
    """Twelve drawn pictures of each label."""
    generator = np.random.default_rng(3)
    label_ids = np.repeat(np.arange(len(LABELS)), 12)
    pixels = np.stack([picture(int(each), generator) for each in label_ids])
    return LabelledImages(pixels, label_ids, tuple(map(str, range(len(pixels)))), LABELS)


def rows(images: LabelledImages) -> npt.NDArray[np.uint8]:
    return images.images.reshape(len(images), -1)


def test_an_image_shrinks_to_the_means_of_its_squares() -> None:
    image = np.arange(16, dtype=np.uint8).reshape(1, 16)  # 4 x 4
    shrunk = Shrink(2).fit(image).transform(image)
    np.testing.assert_allclose(255 * shrunk, [[2.5, 4.5, 10.5, 12.5]], rtol=1e-6)


@pytest.mark.parametrize(("pixels", "factor"), [(15, 1), (16, 3)])
def test_squares_that_do_not_fill_the_image_are_refused(pixels: int, factor: int) -> None:
    with pytest.raises(ConfigError, match=f"got rows of {pixels} pixels"):
        Shrink(factor).fit(np.zeros((2, pixels), np.uint8))


def test_the_grid_is_linear_and_rbf_at_four_costs_and_two_widths() -> None:
    points = [tuple(str(value) for value in each.values()) for each in ParameterGrid(GRID)]
    costs = ("1", "10", "100", "1000")
    wanted: list[tuple[str, ...]] = [(cost, "linear") for cost in costs]
    wanted += [(cost, width, "rbf") for cost in costs for width in ("0.001", "0.0001")]
    assert sorted(points) == sorted(wanted)


@pytest.mark.loopback  # of scikit-learn's progress
def test_components_never_see_the_images_that_a_fold_is_scored_on(
    images: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted_on: list[int] = []

    class Watched(PCA):  # type: ignore[misc]
        def fit_transform(self, values: npt.NDArray[np.float32], labels: object = None) -> object:
            fitted_on.append(len(values))
            return super().fit_transform(values, labels)

    monkeypatch.setattr(svm, "PCA", Watched)
    found = svm.search(rows(images), images.label_ids, TINY)
    assert fitted_on == [48] * 3 * 12  # two thirds of 72 images, for each fold of each point
    assert [name for name, _ in found.estimator.steps] == ["shrink", "pca", "scale", "svc"]
    assert found.best_score_ > 0.9


def test_a_draw_for_the_search_keeps_the_shares_of_the_classes(images: LabelledImages) -> None:
    drawn, label_ids = svm._drawn(images, SvmConfig(search_images=36))
    assert drawn.shape == (36, 64 * 64)
    assert np.bincount(label_ids).tolist() == [6] * 6


@pytest.mark.parametrize("kernel", [{"kernel": "rbf", "gamma": 1e-2}, {"kernel": "linear"}])
def test_the_tensors_decide_as_scikit_learn_does(
    images: LabelledImages, kernel: dict[str, object]
) -> None:
    pipeline = svm.build(TINY)
    pipeline.set_params(svc__C=10, **{f"svc__{key}": value for key, value in kernel.items()})
    pipeline.fit(rows(images), images.label_ids)
    machine = SupportVectorMachine(fitted_parts(pipeline))
    image = torch.from_numpy(images.images)[:, None].float() / 255.0
    decisions = machine.decisions(machine.features(machine.small(image))).numpy()
    expected = pipeline.decision_function(rows(images))
    np.testing.assert_allclose(decisions, expected, rtol=0, atol=1e-4)
    won = PairwiseLogits(6)(4.0 * torch.from_numpy(expected).float()).argmax(dim=1).numpy()
    np.testing.assert_array_equal(won, pipeline.predict(rows(images)))


def test_of_two_classes_the_decision_itself_is_the_log_odds() -> None:
    decisions = torch.tensor([[0.0], [2.0], [-3.0]])
    logits = PairwiseLogits(2)(decisions)
    torch.testing.assert_close(logits[:, 0] - logits[:, 1], decisions[:, 0])


def test_a_class_that_wins_every_pair_is_the_most_probable() -> None:
    decisions = torch.tensor([[-2.0, 0.5, 1.0]])  # 1 beats 0, 0 beats 2, 1 beats 2
    assert int(PairwiseLogits(3)(decisions).argmax()) == 1


def test_a_decision_far_from_the_boundary_stays_finite() -> None:
    logits = PairwiseLogits(3)(torch.tensor([[-500.0, 500.0, 500.0]]))
    torch.testing.assert_close(logits, torch.tensor([[-500.0, 0.0, -1000.0]]))


def test_a_near_defeat_leaves_more_doubt_than_a_clear_one() -> None:
    near, clear = PairwiseLogits(3)(torch.tensor([[0.1, 3.0, 3.0], [2.0, 3.0, 3.0]])).softmax(1)
    assert near[0] < clear[0]


@pytest.mark.training
def test_skl2onnx_torchscript_and_torch_give_one_answer(
    images: LabelledImages, tmp_path: Path
) -> None:
    pipeline = svm.build(TINY).set_params(svc__C=10, svc__gamma=1e-2)
    pipeline.fit(rows(images), images.label_ids)
    served = svm.calibrate(pipeline, images, images)
    image = torch.from_numpy(images.images)[:, None].float() / 255.0
    export_svm(served, pipeline, tmp_path, image)
    with torch.no_grad():
        expected = dict(zip(("logits", "novelty"), served(image), strict=True))
    for name in (EngineName.ONNXRUNTIME, EngineName.TORCHSCRIPT):
        engine = load_engine(name, tmp_path, precision=Precision.F32, threads=1)
        for key, value in engine.run(image.numpy()).items():
            np.testing.assert_allclose(value, expected[key].numpy(), rtol=1e-4, atol=1e-3)
    blank = torch.full((1, 1, 64, 64), 0.3)
    assert float(served(blank)[1]) > 1.0


@pytest.mark.training
def test_a_run_leaves_the_search_and_an_artifact_of_the_variant(tmp_path: Path) -> None:
    folders = class_folders(tmp_path / "drawn", count=20)
    flags = ["--data-dir", str(folders), "--out-dir", str(tmp_path / "run"), "--factor", "8"]
    flags += ["--components", "12", "--search-images", "60", "--folds", "3", "--jobs", "1"]
    assert run(svm.main, SvmConfig, flags) == 0
    with (tmp_path / "run/search.csv").open(newline="") as stream:
        searched = list(csv.DictReader(stream))
    assert len(searched) == 12
    metrics = json.loads((tmp_path / "run/artifact/metrics.json").read_text())
    best = metrics["training"]["search"]["best"]
    assert (searched[0]["kernel"], searched[0]["C"]) == (best["svc__kernel"], str(best["svc__C"]))
    assert metrics["version"] == "1.0-svm"
    assert metrics["accuracy"] == 1.0
