"""Measure how far the masks of a model can be trusted: `python -m training.quality NAME`.

    python -m training.quality segmentation_3d --data-dir data/Task04_Hippocampus

Cases that no training saw, as they are and spoilt in the ways of `training.robustness`, are
answered by the code that serves. Printed is the section `quality` of the model's description, with

- the temperature, fitted on the validation part and judged on the test part;
- the logistic regression that predicts the Dice of a mask from its own scores, and the limit of a
  review, both judged by cross-validation over patients;
- for frames the sum of probabilities below which a frame without a mask asks for no review;
- for volumes the range of reference over found volume, by conformal prediction.

`quality.json` and `quality.md` hold the figures; `--install` puts these into the card of the room.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import yaml
from rich.progress import track
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

import models
from medserve.errors import ConfigError, MedserveError
from medserve.imaging.image import Image
from medserve.imaging.volume import Volume
from medserve.inference.engines import load_engine
from medserve.inference.frame_pipeline import FramePipeline
from medserve.inference.quality import MaskSums
from medserve.inference.volume_pipeline import VolumePipeline
from medserve.spec import ModelSpec, Task
from medserve.spec.quality import DiceSpec, QualitySpec
from medserve.tasks.result import DoubtReason
from training.core.config import Setting, run
from training.core.evaluation import EvaluationRequest, measured_model, predict_by
from training.core.files import write_json
from training.core.means import auroc, auroc_interval
from training.core.report import Table
from training.frames import evaluation as frames
from training.frames.data import read_frame, read_mask
from training.frames.scores import compare_frame
from training.robustness import (
    WRONG_BELOW,
    RobustnessConfig,
    Sample,
    changes_of,
    split_of,
    with_section,
)
from training.volumes import data as volumes
from training.volumes import evaluation as volume_evaluation
from training.volumes.metrics import compare_masks

__all__ = [
    "JudgedMask",
    "NoMask",
    "QualityConfig",
    "expected_calibration_error",
    "fit_absence",
    "fit_dice",
    "fit_temperature",
    "main",
    "volume_ratio",
]

_log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
_HEADING = "## Errors of single masks"
_FOLDS = 5
_FALSE_ALARMS = 0.05  # largest share of the unchanged cases in which a right mask is flagged
_LEAST_ABSENT = 10  # unchanged frames that show none: fewer say nothing about such frames
_LEAST_MISSED = 5  # unchanged or spoilt
_COVERED = 0.9  # share of references that an interval of volumes holds
_BINS = 15  # of confidence, as in arXiv:1706.04599
_PENALTY = 0.1  # 1 / C of the regression on standardised predictors: cases are few
_UNFITTED = DiceSpec(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class QualityConfig:
    """Measure the errors of single masks of a model."""

    model: Annotated[str, Setting("name of a room", positional=True)]
    data_dir: Annotated[Path, Setting("labelled data, as for training.evaluate")] = Path("data")
    out_dir: Annotated[Path, Setting("receives quality.json and quality.md")] = Path(
        "outputs/quality"
    )
    variant: Annotated[str, Setting("of the room, such as busi of trus_prostate")] = ""
    weights: Annotated[Path | None, Setting("folder of another artifact than the shipped")] = None
    spoil_every: Annotated[
        int, Setting("spoil every n-th case only, which is faster", minimum=1)
    ] = 1
    seed: Annotated[int, Setting("of the noise", minimum=0)] = 0
    threads: Annotated[int, Setting("of the engine; 0 takes every core", minimum=0)] = 0
    install: Annotated[bool, Setting("put the figures into the card of the room")] = False


@dataclass(frozen=True)
class JudgedMask:
    """One label of one mask that was found, beside its reference.

    Attributes:
        case: Of the data set.
        patient: Whose it is.
        is_changed: Whether the input was spoilt.
        label: Its name.
        predictors: See `DiceSpec`.
        dice: With the reference.
        ratio: Volume of the reference over that of the mask.
    """

    case: str
    patient: str
    is_changed: bool
    label: str
    predictors: tuple[float, float]
    dice: float
    ratio: float


@dataclass(frozen=True)
class NoMask:
    """A frame without a mask that nothing else flags.

    Attributes:
        is_changed: Whether the input was spoilt.
        is_missed: Whether the reference shows the structure.
        promised: Pixels that the probabilities add up to.
    """

    is_changed: bool
    is_missed: bool
    promised: float


@dataclass(frozen=True, eq=False)
class _Case:
    """A case that no training saw, with its logits on the network's grid."""

    name: str
    patient: str
    part: str
    sample: Sample


@dataclass(frozen=True)
class _Model:
    """What answers a sample, for either task.

    Attributes:
        logits: A sample -> logits (labels, voxels) and label ids (voxels) on the network's grid.
        judge: A case as it is or spoilt -> its labels, judged, or that nothing was found; it takes
            the temperature, too.
    """

    cases: Sequence[_Case]
    logits: Callable[[Sample], tuple[Array, Array]]
    judge: Callable[[_Case, Sample, bool, float], Iterator[JudgedMask | NoMask]]


def main(config: QualityConfig) -> None:
    """Fit, print the section, write the figures."""
    with measured_model(config.model, config.variant, config.weights) as (spec, weights):
        model = _model(config, spec, weights)
        calibration = _calibrate(model)
        answers = list(_judged(config, spec, model, calibration["temperature"]))
    masks = [each for each in answers if isinstance(each, JudgedMask)]
    wrong_below = WRONG_BELOW[spec.task]
    dice, figures = fit_dice(masks, wrong_below)
    ratios = _ratios(masks) if spec.task is Task.VOLUMES else {}
    absent_below, without_masks = fit_absence([e for e in answers if isinstance(e, NoMask)])
    quality = QualitySpec(
        calibration["temperature"], dice, {k: v[0] for k, v in ratios.items()}, absent_below
    )
    content = {
        "model": spec.name, "version": spec.version, "wrong_below": wrong_below,
        "calibration": calibration, "predicted_dice": figures,
        "covered": {label: covered for label, (_, covered) in ratios.items()},
        "without_masks": without_masks,
        "quality": msgspec.to_builtins(quality),
    }  # fmt: skip
    write_json(config.out_dir / "quality.json", content)
    text = section(content, config)
    (config.out_dir / "quality.md").write_text(text, encoding="utf-8")
    _log.info("%s", text)
    yaml.safe_dump({"quality": content["quality"]}, sys.stdout, sort_keys=False,
                   default_flow_style=None, width=96)  # fmt: skip
    if config.install:
        card = models.room(config.model, config.variant) / "README.md"
        told = with_section(card.read_text(encoding="utf-8"), text, _HEADING)
        card.write_text(told, encoding="utf-8")


def fit_temperature(logits: Array, label_ids: Array) -> float:
    """Return the divisor of logits (labels, N) with the least cross-entropy (arXiv:1706.04599)."""
    rows = np.arange(label_ids.size)

    def loss(log_temperature: float) -> float:
        scaled = log_softmax(logits / np.exp(log_temperature), axis=0)
        return -float(scaled[label_ids, rows].mean())

    found = minimize_scalar(loss, bounds=np.log([0.05, 20.0]), method="bounded")
    return round(float(np.exp(found.x)), 3)


def expected_calibration_error(logits: Array, label_ids: Array, temperature: float) -> float:
    """Return the mean distance of confidence to accuracy over bins of confidence (15 of one width).

    Args:
        logits: (labels, N).
        label_ids: (N,).
        temperature: Divides the logits.
    """
    probabilities = np.exp(log_softmax(logits / temperature, axis=0))
    confidence = probabilities.max(axis=0).astype(np.float64)
    is_right = probabilities.argmax(axis=0) == label_ids
    place = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gap = np.bincount(place, confidence - is_right, minlength=_BINS)
    return float(np.abs(gap).sum() / label_ids.size)


def fit_dice(masks: Sequence[JudgedMask], wrong_below: float) -> tuple[DiceSpec, dict[str, Any]]:
    """Return the regression of Dice, and its figures by cross-validation over patients.

    The limit of a review flags masks that are right in 5 % of the unchanged cases, or fewer.

    Raises:
        ConfigError: too few patients, no wrong mask of any case, or no right one of an unchanged
            case.
    """
    values = np.array([each.predictors for each in masks])
    dice = np.array([each.dice for each in masks])
    patients = np.array([each.patient for each in masks])
    is_clean = ~np.array([each.is_changed for each in masks])
    is_wrong = dice < wrong_below
    wrong, right = int(is_wrong.sum()), int((is_clean & ~is_wrong).sum())
    if len(set(patients)) < _FOLDS or not wrong or not right:
        raise ConfigError(
            f"expected {_FOLDS} patients or more, wrong masks (Dice below {wrong_below}) and right "
            f"ones of unchanged cases, got {len(set(patients))} patients, {wrong} wrong masks and "
            f"{right} such right ones; add cases"
        )
    # All spoilt masks together count as much as the unchanged ones, which are what is mostly asked.
    weights = np.where(is_clean, 1.0, is_clean.sum() / max(1, (~is_clean).sum()))
    predicted = np.empty(len(masks))
    for train, test in GroupKFold(_FOLDS).split(values, groups=patients):
        fitted = _regression(values[train], dice[train], weights[train])
        predicted[test] = _apply(fitted, values[test])
    is_right = is_clean & ~is_wrong
    cases = [each.case for each, right in zip(masks, is_right, strict=True) if right]
    limit = _limit(cases, predicted[is_right])
    share = round(float((predicted[is_clean] < limit).mean()), 3)
    figures = {
        name: _figures(predicted[chosen], dice[chosen], patients[chosen], (wrong_below, limit))
        for name, chosen in (("unchanged", is_clean), ("all", np.ones_like(is_clean)))
    }
    coefficients = _regression(values, dice, weights)
    return DiceSpec(*coefficients, review_below=limit, review_share=share), figures


def _figures(
    predicted: Array, dice: Array, patients: Array, limits: tuple[float, float]
) -> dict[str, Any]:
    """Return how well a Dice is predicted; None for what takes wrong masks, where there are none.

    Args:
        predicted: Of each mask.
        dice: With its reference.
        patients: Whose it is.
        limits: The Dice below which a mask is wrong, and the predicted one of a review.
    """
    wrong_below, review_below = limits
    is_wrong, is_flagged = dice < wrong_below, predicted < review_below
    found: dict[str, Any] = {
        "n": len(dice),
        "patients": len(set(patients)),
        "wrong": int(is_wrong.sum()),
        "auroc": None,
        "auroc_interval": None,
        "mean_error": round(float(np.abs(predicted - dice).mean()), 4),
        "wrong_flagged": None,
        "right_flagged": round(float(is_flagged[~is_wrong].mean()), 4),
    }
    if is_wrong.any():
        low, high = auroc_interval(is_wrong, -predicted, patients)
        found |= {
            "auroc": round(auroc(is_wrong, -predicted), 4),
            "auroc_interval": (round(low, 4), round(high, 4)),
            "wrong_flagged": round(float(is_flagged[is_wrong].mean()), 4),
        }
    return found


def _limit(cases: Sequence[str], predicted: Array) -> float:
    """Return the predicted Dice below which an answer asks for a review, from masks that are right.

    A case with several structures asks where any is doubtful, so cases are counted.
    """
    lowest: dict[str, float] = {}
    for case, value in zip(cases, predicted, strict=True):
        lowest[case] = min(value, lowest.get(case, 1.0))
    flagged = int(_FALSE_ALARMS * len(lowest))
    return math.floor(1000 * sorted(lowest.values())[flagged]) / 1000


def fit_absence(answers: Sequence[NoMask]) -> tuple[float | None, dict[str, int]]:
    """Return the promised pixels below which a frame without a mask asks for no review.

    The limit with the largest sum of two shares: of frames that missed the structure, unchanged or
    spoilt, those at or above it, and of frames that show none those below (Youden, Cancer 3, 1950).
    None where either are too few to tell.

    Returns:
        The limit, and the counts of unchanged frames without a mask: how many are right, how many
        missed the structure, and how many of either ask for a review.
    """
    promised = np.array([each.promised for each in answers])
    is_missed = np.array([each.is_missed for each in answers], dtype=np.bool_)
    is_clean = ~np.array([each.is_changed for each in answers], dtype=np.bool_)
    missed, absent = np.sort(promised[is_missed]), promised[~is_missed]
    limit = None
    if len(missed) >= _LEAST_MISSED and (is_clean & ~is_missed).sum() >= _LEAST_ABSENT:
        told = [np.mean(missed >= each) + np.mean(absent < each) for each in missed]
        limit = math.floor(100 * missed[int(np.argmax(told))]) / 100
    asks = promised >= (0.0 if limit is None else limit)
    return limit, {
        "right": int((is_clean & ~is_missed).sum()),
        "right_flagged": int((is_clean & ~is_missed & asks).sum()),
        "missed": int((is_clean & is_missed).sum()),
        "missed_flagged": int((is_clean & is_missed & asks).sum()),
    }


def volume_ratio(ratios: Array) -> tuple[float, float]:
    """Return the range that holds the next ratio in 90 % of draws, by split conformal prediction.

    The score is the absolute logarithm, whose k-th least of n bounds it, k = 0.9 (n + 1) rounded up
    (Lei et al., arXiv:1604.04173).
    """
    scores = np.sort(np.abs(np.log(ratios)))
    rank = min(int(np.ceil(_COVERED * (len(scores) + 1))), len(scores))
    bound = float(scores[rank - 1])
    return round(float(np.exp(-bound)), 3), round(float(np.exp(bound)), 3)


def section(content: Mapping[str, Any], config: QualityConfig) -> str:
    """Return the part of a card: the figures and the command."""
    fitted, figures = content["calibration"], content["predicted_dice"]
    dice, limit = content["quality"]["dice"], content["wrong_below"]
    table = Table.of(
        {
            "masks": lambda row: row[0],
            "n (patients)": lambda row: f"{row[1]['n']} ({row[1]['patients']})",
            f"Dice below {limit}": lambda row: str(row[1]["wrong"]),
            "AUROC (95 %)": lambda row: _told(
                row[1]["auroc"], "{:.3f} ({:.3f} to {:.3f})", row[1]["auroc_interval"]
            ),
            "error of the prediction": lambda row: f"{row[1]['mean_error']:.3f}",
            "flagged of these": lambda row: _told(row[1]["wrong_flagged"], "{:.0%}"),
            "flagged of the others": lambda row: f"{100 * row[1]['right_flagged']:.0f} %",
        },
        [("of unchanged inputs", figures["unchanged"]), ("of spoilt ones, too", figures["all"])],
    ).markdown()
    covered = "".join(
        f"\n`volume_interval_ml` holds the volume of `{label}` in the reference in "
        f"{100 * share:.0f} % of unchanged cases, each left out in turn.\n"
        for label, share in content["covered"].items()
    )
    flags = [f"--data-dir {config.data_dir}"] + [f"--variant {config.variant}"] * bool(
        config.variant
    )
    flags += [f"--spoil-every {config.spoil_every}"] * (config.spoil_every > 1)
    return (
        f"Logits are divided by {fitted['temperature']} (fitted on the validation part) before "
        f"they become probabilities:\nthe expected calibration error on the test part falls from "
        f"{fitted['error_before']:.4f} to {fitted['error_after']:.4f}. No mask moves.\n\n"
        "`predicted_dice` is a logistic regression on the Dice that a mask's own scores promise "
        "and on its size, fitted on the\nvalidation and test part and on spoilt copies "
        "(`training.robustness`); the table is its five-fold cross-validation over\npatients. "
        f"Below {dice['review_below']}, as are {100 * dice['review_share']:.0f} % of unchanged "
        "masks, an answer asks for a review. A structure that is\nnot found has no prediction, and "
        f"is told apart.\n{_absence(content)}{covered}\n{table}\n"
        f"```bash\npython -m training.quality {config.model} {' '.join(flags)}\n```\n"
    )


def _told(value: float | None, form: str, further: Sequence[float] | None = None) -> str:
    """Return a figure of wrong masks, or a dash where none is wrong."""
    if value is None:
        return "\N{EN DASH}"
    return form.format(value, *(further or ())).replace("%", " %")


def _absence(content: Mapping[str, Any]) -> str:
    """Return the paragraph about frames without a mask, where they need not ask for a review."""
    if (below := content["quality"]["absent_below"]) is None:
        return ""
    counts = content["without_masks"]
    return (
        "\nA frame without a mask asks for a review unless its probabilities add up to less than "
        f"{below} pixels: of unchanged frames\nwithout a mask that nothing else flags, "
        f"{counts['right_flagged']} of {counts['right']} that show none ask, and "
        f"{counts['missed_flagged']} of {counts['missed']} in which it was missed. The\nlimit was "
        "chosen by these frames and by spoilt copies.\n"
    )


def _calibrate(model: _Model) -> dict[str, float]:
    """Return the temperature of the validation part and what it does on the test part."""
    parts = {}
    for part in ("validation", "test"):
        chosen = [case.sample for case in model.cases if case.part == part]
        pairs = [model.logits(sample) for sample in track(chosen, f"Calibrating, {part}")]
        logits, label_ids = zip(*pairs, strict=True)
        parts[part] = np.concatenate(logits, axis=1), np.concatenate(label_ids)
    temperature = fit_temperature(*parts["validation"])
    return {
        "temperature": temperature,
        "error_before": round(expected_calibration_error(*parts["test"], 1.0), 5),
        "error_after": round(expected_calibration_error(*parts["test"], temperature), 5),
    }


def _judged(
    config: QualityConfig, spec: ModelSpec, model: _Model, temperature: float
) -> Iterator[JudgedMask | NoMask]:
    for change in track(changes_of(spec.task), "Spoiling inputs"):
        draws = np.random.default_rng(config.seed)
        is_changed = change.kind != "none"
        for case in model.cases[:: config.spoil_every if is_changed else 1]:
            sample = change.apply(case.sample, draws)
            try:
                yield from model.judge(case, sample, is_changed, temperature)
            except MedserveError:  # refused: there is no mask
                continue


def _ratios(masks: Sequence[JudgedMask]) -> dict[str, tuple[tuple[float, float], float]]:
    """Return the range of each label, and the share that it holds with each case left out."""
    found = {}
    for label in dict.fromkeys(each.label for each in masks):
        ratios = np.array([m.ratio for m in masks if m.label == label and not m.is_changed])
        held = []
        for place, ratio in enumerate(ratios):
            low, high = volume_ratio(np.delete(ratios, place))
            held.append(low <= ratio <= high)
        found[label] = volume_ratio(ratios), round(float(np.mean(held)), 4)
    return found


def _regression(values: Array, dice: Array, weights: Array) -> tuple[float, float, float]:
    """Return intercept and coefficients of a logistic regression of shares between 0 and 1."""
    mean, spread = values.mean(axis=0), values.std(axis=0) + 1e-9
    rows = np.tile((values - mean) / spread, (2, 1))  # each once as hit and once as miss
    hits, shares = np.repeat([1, 0], len(dice)), np.concatenate([dice, 1.0 - dice])
    regression = LogisticRegression(C=1.0 / _PENALTY)
    regression.fit(rows, hits, sample_weight=shares * np.tile(weights, 2))
    overlap, size = regression.coef_[0] / spread
    intercept = regression.intercept_[0] - overlap * mean[0] - size * mean[1]
    return round(float(intercept), 4), round(float(overlap), 4), round(float(size), 4)


def _apply(coefficients: Sequence[float], values: Array) -> Array:
    intercept, overlap, size = coefficients
    score = intercept + overlap * values[:, 0] + size * values[:, 1]
    return np.asarray(1.0 / (1.0 + np.exp(-score)))


def _model(config: QualityConfig, spec: ModelSpec, weights: Path) -> _Model:
    engine = load_engine(
        spec.engine.name, weights, precision=spec.engine.precision, threads=config.threads
    )
    split = split_of(RobustnessConfig(config.model, variant=config.variant), weights)
    if split is None:
        raise ConfigError(
            f"{config.model} has no split.csv that tells its validation and test part apart; only "
            "models that were trained here are measured so"
        )
    request = EvaluationRequest(spec, weights, config.data_dir, config.out_dir, split=split)
    parts = {part: dataclasses.replace(request, part=part) for part in ("validation", "test")}
    if spec.task is Task.FRAMES:
        return _of_frames(spec, predict_by(engine), parts)
    if spec.task is Task.VOLUMES:
        return _of_volumes(spec, predict_by(engine), parts)
    raise ConfigError(f"{spec.name}: expected a model of volumes or frames, got {spec.task}")


def _of_frames(spec: ModelSpec, predict: Any, parts: Mapping[str, EvaluationRequest]) -> _Model:
    cases = []
    for part, request in parts.items():
        for each in frames.chosen_cases(request):
            image = read_frame(each.image, spec.input)
            mask = read_mask(each, (image.height, image.width))
            cases.append(_Case(each.name, each.patient, part, Sample(image.array, mask)))

    @functools.cache
    def pipeline(temperature: float) -> FramePipeline:
        assert spec.frame is not None
        quality = QualitySpec(temperature, _UNFITTED)
        frame = msgspec.structs.replace(spec.frame, quality=quality)
        return FramePipeline(msgspec.structs.replace(spec, frame=frame))

    def logits(sample: Sample) -> tuple[Array, Array]:
        own = pipeline(1.0)
        prepared = own.prepare(Image(sample.array))
        inner = prepared.inverse.inner.slices
        scores = own.logits(prepared.plane[np.newaxis], predict, own.defaults.flips)[0, 0][inner]
        label_ids = own.prepare_mask(sample.truth, prepared.inverse)[inner]
        return np.stack([np.zeros_like(scores), scores]).reshape(2, -1), label_ids.ravel()

    def judge(
        case: _Case, sample: Sample, is_changed: bool, temperature: float
    ) -> Iterator[JudgedMask | NoMask]:
        own, image = pipeline(temperature), Image(sample.array)
        [found] = own.segment([image], predict)
        assert found.sums is not None
        if not found.mask.any():
            reasons = {each.reason for each in own.doubts(found, None)}
            if reasons == {DoubtReason.EMPTY} and not own.is_unlike_ultrasound(image):
                yield NoMask(is_changed, bool(sample.truth.any()), found.sums.promised)
            return
        if found.predicted_dice is None:
            return
        score = compare_frame("", "", found.mask, sample.truth)
        yield JudgedMask(case.name, case.patient, is_changed, spec.labels[1],
                         found.sums.predictors(1), score.dice,
                         score.reference / score.found)  # fmt: skip

    return _Model(cases, logits, judge)


def _of_volumes(spec: ModelSpec, predict: Any, parts: Mapping[str, EvaluationRequest]) -> _Model:
    if spec.volume is not None and spec.volume.channels:
        raise ConfigError(f"{spec.name} sees several channels; only models of one are measured")
    cases = []
    for part, request in parts.items():
        for each in volume_evaluation.chosen_cases(request):
            [volume] = volumes.read_volumes(each, spec)
            mask = volumes.read_mask(each, volume, len(spec.labels))
            sample = Sample(volume.array.astype(np.float32), mask, volume.geometry)
            cases.append(_Case(each.name, each.subject, part, sample))
    own = VolumePipeline(spec)

    def logits(sample: Sample) -> tuple[Array, Array]:
        assert sample.geometry is not None
        prepared = own.prepare(Volume(sample.array, sample.geometry))
        scores = own.scores(prepared, predict)
        label_ids = own.prepare_labels(sample.truth, prepared.inverse)
        return scores.reshape(len(scores), -1), label_ids.ravel()

    def judge(
        case: _Case, sample: Sample, is_changed: bool, temperature: float
    ) -> Iterator[JudgedMask]:
        assert sample.geometry is not None
        assert spec.volume is not None
        quality = QualitySpec(temperature, _UNFITTED)
        volume = msgspec.structs.replace(spec.volume, quality=quality)
        pipeline = VolumePipeline(msgspec.structs.replace(spec, volume=volume))
        prepared = pipeline.prepare(Volume(sample.array, sample.geometry))
        answer = pipeline.infer(prepared, predict)
        assert isinstance(answer.sums, MaskSums)
        mask = pipeline.restore(answer, prepared.inverse).segmentation.mask
        scores = compare_masks(mask, sample.truth, sample.geometry, spec.labels)
        for number, score in enumerate(scores, start=1):
            if score.found_ml:
                yield JudgedMask(case.name, case.patient, is_changed, score.label,
                                 answer.sums.predictors(number), score.dice,
                                 score.reference_ml / score.found_ml)  # fmt: skip

    return _Model(cases, logits, judge)


if __name__ == "__main__":
    sys.exit(run(main, QualityConfig))
