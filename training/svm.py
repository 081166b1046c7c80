"""Fit a support vector machine, a variant of MedNIST's room: `python -m training.svm`.

One pipeline (shrink, PCA, scale, SVC) is searched over a grid with five folds, so that components
and scales of a fold never see its held-out images; the best is fitted again on all of them.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import joblib
import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.callback import ProgressBar
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import models
from medserve.errors import ConfigError
from models.mednist.svm import SupportVectorMachine
from training.classification import data
from training.classification import ship as shipping
from training.classification.calibration import fit_temperature
from training.classification.data import LabelledImages
from training.classification.evaluation import evaluate_classifier
from training.classification.novelty import BLANK, fit_novelty
from training.classification.svm_export import TOLERANCE, ServedSvm, export_svm, fitted_parts
from training.core.config import Setting, run
from training.core.evaluation import EvaluationRequest
from training.core.files import write_json, write_rows

__all__ = ["GRID", "NAME", "VARIANT", "Shrink", "SvmConfig", "build", "main", "search"]

NAME = "mednist"
VARIANT = "svm"
GRID: list[dict[str, list[Any]]] = [
    {"svc__kernel": ["linear"], "svc__C": [1, 10, 100, 1000]},
    {"svc__kernel": ["rbf"], "svc__C": [1, 10, 100, 1000], "svc__gamma": [1e-3, 1e-4]},
]
_BATCH = 2048  # images a pass of the calibration
_CACHE_MB = 500  # of kernel values
_SEARCH = ("kernel", "C", "gamma", "accuracy", "deviation", "rank", "seconds")

_log = logging.getLogger(__name__)
Rows = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class SvmConfig(data.ImagesConfig):
    """Search, fit, export and report on a support vector machine."""

    data_dir: Annotated[Path, Setting("folder with one folder of images per class")] = Path(
        "data/MedNIST"
    )
    out_dir: Annotated[Path, Setting("folder for search, artifact, report")] = Path("runs/svm")
    factor: Annotated[int, Setting("sides are divided by it: 16 pixels are left", minimum=1)] = 4
    components: Annotated[int, Setting("of the PCA", minimum=1)] = 64
    search_images: Annotated[
        int, Setting("drawn for the search, as many of each class as there are; 0: all", minimum=0)
    ] = 8000
    folds: Annotated[int, Setting("of the search", minimum=2)] = 5
    jobs: Annotated[int, Setting("fits at a time", minimum=1)] = 2
    seed: Annotated[int, Setting("of split, draw and folds", minimum=0)] = 0


class Shrink(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Rows of square images uint8 (N, H * W) -> their means over squares of `factor` pixels."""

    def __init__(self, factor: int = 4) -> None:
        self.factor = factor

    def fit(self, rows: Rows, label_ids: object = None) -> Shrink:
        """Nothing is learned; ConfigError where the squares do not fill the image."""
        side = round(rows.shape[1] ** 0.5)
        if side * side != rows.shape[1] or side % self.factor:
            raise ConfigError(
                f"expected square images whose side {self.factor} divides, got rows of "
                f"{rows.shape[1]} pixels"
            )
        self.side_ = side
        return self

    def transform(self, rows: Rows) -> npt.NDArray[np.float32]:
        """Intensities float32 (N, (H / factor) * (W / factor)) in [0, 1]."""
        step = self.factor
        images = rows.reshape(-1, self.side_, self.side_)
        total: npt.NDArray[np.float32] = np.zeros(
            (len(rows), self.side_ // step, self.side_ // step), np.float32
        )
        for i in range(step):  # numpy's mean over two axes of a reshaped view is much slower
            for j in range(step):
                total += images[:, i::step, j::step]
        total /= 255 * step * step
        return total.reshape(len(rows), -1)


def build(config: SvmConfig) -> Pipeline:
    """The pipeline of the search; the kernel and its numbers come from the grid."""
    return Pipeline(
        [
            ("shrink", Shrink(config.factor)),
            ("pca", PCA(config.components, svd_solver="covariance_eigh")),
            ("scale", StandardScaler()),
            ("svc", SVC(decision_function_shape="ovo", cache_size=_CACHE_MB)),
        ]
    )


def search(rows: Rows, label_ids: npt.NDArray[np.int64], config: SvmConfig) -> GridSearchCV:
    """Every point of the grid on every fold, with a bar of progress; fits nothing on all rows."""
    folds = StratifiedKFold(config.folds, shuffle=True, random_state=config.seed)
    found = GridSearchCV(build(config), GRID, cv=folds, n_jobs=config.jobs, refit=False)
    found.set_callbacks(ProgressBar(max_propagation_depth=0))
    with joblib.parallel_config("threading"):  # libsvm lets go of Python's lock; rows are shared
        return found.fit(rows, label_ids)


def main(config: SvmConfig) -> None:
    """Read, split, search, fit on all training images, then export and report."""
    spec = models.spec(NAME, VARIANT)
    images = data.read_class_folders(config.data_dir, spec)
    train, validation = data.divide(images, config)  # the room's own: same images, same seed
    started = time.process_time()
    found = search(*_drawn(train, config), config)
    _write_search(config.out_dir / "search.csv", found.cv_results_)
    minutes = (time.process_time() - started) / 60
    _log.info("searched in %.1f minutes of one core: %s, %.3f %% right",
              minutes, found.best_params_, 100 * found.best_score_)  # fmt: skip
    pipeline = build(config).set_params(**found.best_params_)
    pipeline.fit(_rows(train), train.label_ids)
    folder = config.out_dir / "artifact"
    served = calibrate(pipeline, train, validation)
    step = max(1, len(validation) // 64)
    example = data.to_planes(validation.images[::step]).float() / 255.0
    agreement = export_svm(served, pipeline, folder, example)
    _write_golden(folder, served)
    for name in ("config.json", "split.csv"):
        shutil.copyfile(config.out_dir / name, folder / name)
    measured = _measure(config, folder)
    measured["training"] = {
        "train_images": len(train),
        "validation_images": len(validation),
        "validation_errors": int(
            (pipeline.predict(_rows(validation)) != validation.label_ids).sum()
        ),
        "search": {
            "images": config.search_images or len(train),
            "best": found.best_params_,
            "accuracy": round(float(found.best_score_), 6),
        },
        "support_vectors": int(pipeline["svc"].n_support_.sum()),
        "temperature": float(served.temperature),
        "novelty_limit": float(served.novelty.limit),
        "largest_difference_of_decisions": agreement.decisions,
        "largest_export_difference": agreement.logits,
    }
    write_json(folder / "metrics.json", measured)
    if config.install:
        shipping.install(folder, NAME, VARIANT, ("search.csv",))


def calibrate(pipeline: Pipeline, train: LabelledImages, validation: LabelledImages) -> ServedSvm:
    """The fitted machine with temperature and novelty from images that it was not fitted on."""
    served = ServedSvm(SupportVectorMachine(fitted_parts(pipeline)), len(train.labels)).eval()
    described, contrast, _ = _describe(served, train)
    held_out, shows, logits = _describe(served, validation)
    served.temperature = torch.tensor(
        fit_temperature(logits, torch.from_numpy(validation.label_ids))
    )
    served.novelty = fit_novelty(
        described[contrast >= BLANK],
        torch.from_numpy(train.label_ids)[contrast >= BLANK],
        (held_out[shows >= BLANK], logits[shows >= BLANK]),
        least_contrast=float(contrast[contrast >= BLANK].min()),
    )
    return served.eval()


@torch.no_grad()
def _describe(
    served: ServedSvm, images: LabelledImages
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of every image: what novelty sees (N, D), its contrast (N,), its logits (N, K)."""
    described, contrast, logits = [], [], []
    for start in range(0, len(images), _BATCH):
        image = data.to_planes(images.images[start : start + _BATCH]).float() / 255.0
        small = served.machine.small(image)
        features = served.machine.features(small)
        described.append(served.describe(small, features))
        contrast.append(image.flatten(1).std(dim=1))
        logits.append(served.decide(served.machine.decisions(features)))
    return torch.cat(described), torch.cat(contrast), torch.cat(logits)


def _rows(images: LabelledImages) -> Rows:
    return images.images.reshape(len(images), -1)


def _drawn(train: LabelledImages, config: SvmConfig) -> tuple[Rows, npt.NDArray[np.int64]]:
    """The images of the search: all, or a draw with the shares of the classes."""
    if not config.search_images or config.search_images >= len(train):
        return _rows(train), train.label_ids
    chosen, _ = train_test_split(
        np.arange(len(train)),
        train_size=config.search_images,
        random_state=config.seed,
        stratify=train.label_ids,
    )
    return _rows(train)[chosen], train.label_ids[chosen]


def _write_search(path: Path, results: dict[str, Any]) -> None:
    """One row for each point of the grid, best first."""
    order = np.argsort(results["rank_test_score"], kind="stable")
    points = [
        (
            point["svc__kernel"],
            point["svc__C"],
            point.get("svc__gamma", ""),
            f"{results['mean_test_score'][i]:.6f}",
            f"{results['std_test_score'][i]:.6f}",
            results["rank_test_score"][i],
            f"{results['mean_fit_time'][i]:.2f}",
        )
        for i in order
        for point in [results["params"][i]]
    ]
    write_rows(path, _SEARCH, points)


def _write_golden(folder: Path, served: ServedSvm) -> None:
    """The room's golden picture, and what eager torch answers to it."""
    spec = models.spec(NAME, VARIANT)
    picture = folder / "golden_input.png"
    shutil.copyfile(models.room(NAME) / "weights" / "golden_input.png", picture)
    ((_, plane),) = data.decoded([picture], spec, [])
    with torch.no_grad():
        logits, novelty = served(torch.from_numpy(plane)[None])
    np.savez(
        folder / "golden_output.npz",
        logits=logits.numpy(),
        novelty=novelty.numpy(),
        tolerance=np.float32(TOLERANCE),
    )


def _measure(config: SvmConfig, folder: Path) -> dict[str, Any]:
    return evaluate_classifier(
        EvaluationRequest(
            models.spec(NAME, VARIANT), folder, config.data_dir, config.out_dir / "report",
            folder / "split.csv", foreign_dir=config.foreign_dir,
        )
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(run(main, SvmConfig))
