"""Measure what a model does with spoilt inputs: `python -m training.robustness mednist`.

    python -m training.robustness mednist --data-dir data/MedNIST --n 300 --install
    python -m training.robustness liver --data-dir UNSEEN --no-held-out

Images or volumes that no training saw are changed in ways that scanners, exports and people change
them, and answered by the code that serves. What counts is how many answers are wrong, and how many
of these nothing flags: not `review`, not `unlike`, no refusal. Writes `robustness.json` and
`robustness.md`; `--install` puts the table into the card of the room.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import logging
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from PIL import Image as pillow
from rich.progress import track
from scipy import ndimage

import models
from medserve.errors import ConfigError, MedserveError
from medserve.imaging.geometry import Geometry
from medserve.imaging.image import Image
from medserve.imaging.volume import Volume
from medserve.inference.engines import Engine, load_engine
from medserve.inference.fit import fit_image
from medserve.inference.frame_pipeline import FramePipeline
from medserve.inference.scores import classified
from medserve.inference.volume_pipeline import VolumePipeline
from medserve.spec import Precision, Task
from training.classification import evaluation as images
from training.classification.data import decode_file
from training.core.config import Setting, run
from training.core.evaluation import MODEL, EvaluationRequest, measured_model, predict_by
from training.core.export import sha256
from training.core.files import write_json
from training.core.report import Table
from training.evaluate import folders_of
from training.frames import evaluation as frames
from training.frames.data import read_frame, read_mask
from training.frames.scores import compare_frame
from training.volumes import data as volumes
from training.volumes import evaluation as volume_evaluation
from training.volumes.metrics import compare_masks

__all__ = [
    "CHANGES",
    "WRONG_BELOW",
    "Answer",
    "Change",
    "RobustnessConfig",
    "Sample",
    "answered",
    "changes_of",
    "main",
    "split_of",
    "totals",
    "with_section",
]

_log = logging.getLogger(__name__)

Array = npt.NDArray[Any]
_HEADING = "## Robustness"
_OF_LABELS = "Accuracy is the share of labels told rightly; wrong is an image with any other. "
WRONG_BELOW = {Task.VOLUMES: 0.85, Task.FRAMES: 0.5}  # Dice of an answer that misleads


@dataclass(frozen=True)
class RobustnessConfig:
    """Measure a model on inputs that are spoilt in known ways."""

    model: Annotated[str, Setting(MODEL, positional=True)]
    data_dir: Annotated[Path, Setting("labelled data, as for training.evaluate")] = Path("data")
    out_dir: Annotated[Path, Setting("receives robustness.json and robustness.md")] = Path(
        "outputs/robustness"
    )
    n: Annotated[int, Setting("inputs, spread evenly over the data", minimum=1)] = 100
    held_out: Annotated[
        bool, Setting("take the test part of the artifact's split.csv; else all, never trained on")
    ] = True
    weights: Annotated[Path | None, Setting("folder of another artifact than the shipped")] = None
    variant: Annotated[str, Setting("of the room, such as svm of mednist")] = ""
    seed: Annotated[int, Setting("of the noise", minimum=0)] = 0
    threads: Annotated[int, Setting("of the engine; 0 takes every core", minimum=0)] = 0
    install: Annotated[bool, Setting("put the table into the card of the room")] = False


@dataclass(frozen=True, eq=False)
class Sample:
    """One input with its truth.

    Attributes:
        array: float32 (H, W) or (H, W, 3) in [0, 1], or a volume (I, J, K).
        truth: Whether the image has each label (K,): 1, 0, or NaN where nobody knows; or mask uint8
            on the pixels or voxels of the array.
        geometry: Of a volume; None of an image.
        others: The further channels of a volume, on its grid.
    """

    array: npt.NDArray[np.float32]
    truth: Array
    geometry: Geometry | None = None
    others: tuple[Sample, ...] = ()

    @property
    def shows_mask(self) -> bool:
        """Whether the truth lies on the pixels or voxels, and changes with them."""
        return self.truth.ndim > 1

    def changed(self, array: Array, truth: Array | None = None, **other: Any) -> Sample:
        """Return the sample with another array, images within [0, 1]."""
        values = array if self.geometry is not None else np.clip(array, 0.0, 1.0)
        return dataclasses.replace(
            self, array=values.astype(np.float32), truth=self.truth if truth is None else truth,
            **other,
        )  # fmt: skip

    @property
    def limits(self) -> tuple[float, float]:
        """Darkest and brightest: 0 and 1, or percentiles of a volume."""
        if self.geometry is None:
            return 0.0, 1.0
        low, high = np.percentile(self.array, (1, 99))
        return float(low), float(max(high, low + 1e-6))


@dataclass(frozen=True)
class Answer:
    """What a model made of a sample, and its flags.

    Attributes:
        score: 1 for the right label, the share of independent labels told rightly, or a mean Dice.
    """

    score: float
    is_wrong: bool
    is_flagged: bool


@dataclass(frozen=True)
class Change:
    """One way to spoil an input.

    Attributes:
        kind: Noise, blur and so on.
        strength: In words.
        apply: Returns the spoilt sample.
    """

    kind: str
    strength: str
    apply: Callable[[Sample, np.random.Generator], Sample]

    def spoil(self, sample: Sample, draws: np.random.Generator) -> Sample:
        """Return the spoilt sample, every channel of it in the same way."""
        others = tuple(self.apply(each, draws) for each in sample.others)
        return dataclasses.replace(self.apply(sample, draws), others=others)


def _noise(sample: Sample, draws: np.random.Generator, deviation: float) -> Sample:
    low, high = sample.limits
    noise = draws.standard_normal(sample.array.shape, dtype=np.float32)
    return sample.changed(sample.array + deviation * (high - low) * noise)


def _blur(sample: Sample, _: np.random.Generator, share: float) -> Sample:
    """A Gaussian of a share of the shortest side."""
    sides = sample.array.shape[: 2 if sample.geometry is None else 3]
    sigma = share * min(sides)
    depth = [sigma] * len(sides) + [0.0] * (sample.array.ndim - len(sides))
    return sample.changed(ndimage.gaussian_filter(sample.array, depth))


def _jpeg(sample: Sample, _: np.random.Generator, quality: int) -> Sample:
    low, high = sample.limits
    scaled = np.clip((sample.array - low) / (high - low), 0.0, 1.0)
    pixels = np.rint(255.0 * scaled).astype(np.uint8)
    planes = [pixels] if sample.geometry is None else list(np.moveaxis(pixels, 2, 0))
    packed = [_through_jpeg(plane, quality) for plane in planes]
    read = packed[0] if sample.geometry is None else np.stack(packed, axis=2)
    return sample.changed(low + (high - low) * (read.astype(np.float32) / 255.0))


def _through_jpeg(plane: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    stream = io.BytesIO()
    pillow.fromarray(np.ascontiguousarray(plane)).save(stream, "JPEG", quality=quality)
    return np.asarray(pillow.open(stream))


def _brightness(sample: Sample, _: np.random.Generator, gamma: float) -> Sample:
    low, high = sample.limits
    scaled = np.clip((sample.array - low) / (high - low), 0.0, 1.0)
    return sample.changed(low + (high - low) * scaled**gamma)


def _turn(sample: Sample, _: np.random.Generator, degrees: float) -> Sample:
    how = {"axes": (0, 1), "reshape": False, "mode": "constant"}
    array = ndimage.rotate(sample.array, degrees, order=1, cval=float(sample.array.min()), **how)
    if not sample.shows_mask:
        return sample.changed(array)
    return sample.changed(array, ndimage.rotate(sample.truth, degrees, order=0, **how))


def _scale(sample: Sample, _: np.random.Generator, factor: float) -> Sample:
    """What is shown grows by a factor: in the picture, or by the size that a volume states."""
    if sample.geometry is not None:
        affine = sample.geometry.affine @ np.diag([factor, factor, factor, 1.0])
        return dataclasses.replace(sample, geometry=Geometry(sample.geometry.shape, affine))
    array = _enlarged(sample.array, factor, order=1)
    truth = _enlarged(sample.truth, factor, order=0) if sample.shows_mask else sample.truth
    return sample.changed(array, truth)


def _enlarged(array: Array, factor: float, order: int) -> Array:
    """The array about its middle, on as many pixels; its darkest value lies outside."""
    middle = (np.array(array.shape[:2]) - 1) / 2
    scales = np.array([1 / factor, 1 / factor, *[1.0] * (array.ndim - 2)])
    offset = np.array([*(middle - middle / factor), *[0.0] * (array.ndim - 2)])
    return np.asarray(
        ndimage.affine_transform(array, scales, offset, order=order, cval=float(array.min()))
    )


def _mirror(sample: Sample, _: np.random.Generator, axis: int) -> Sample:
    """The picture or the voxels mirrored, without a word in the header."""
    truth = np.flip(sample.truth, axis).copy() if sample.shows_mask else sample.truth
    return sample.changed(np.flip(sample.array, axis).copy(), truth)


def _resolution(sample: Sample, _: np.random.Generator, share: float) -> Sample:
    spatial = 2 if sample.geometry is None else 3
    factors = [share] * spatial + [1.0] * (sample.array.ndim - spatial)
    array = ndimage.zoom(sample.array, factors, order=1)
    if not sample.shows_mask:
        return sample.changed(array)
    truth = ndimage.zoom(sample.truth, share, order=0)
    if sample.geometry is None:
        return sample.changed(array, truth)
    steps = [old / new for old, new in zip(sample.geometry.shape, array.shape, strict=True)]
    affine = sample.geometry.affine @ np.diag([*steps, 1.0])
    return sample.changed(array, truth, geometry=Geometry(array.shape, affine))


def _pad(sample: Sample, _: np.random.Generator, share: float) -> Sample:
    """A volume with its darkest value around it, a share of each side before and behind."""
    assert sample.geometry is not None  # `changes_of` pads volumes alone
    width = [(round(share * side),) * 2 for side in sample.array.shape]
    array = np.pad(sample.array, width, constant_values=float(sample.array.min()))
    shift = np.eye(4)
    shift[:3, 3] = [-before for before, _ in width]
    geometry = Geometry(array.shape, sample.geometry.affine @ shift)
    return sample.changed(array, np.pad(sample.truth, width), geometry=geometry)


def _unchanged(sample: Sample, _: np.random.Generator) -> Sample:
    return sample


def _each(
    kind: str, apply: Callable[..., Sample], strengths: dict[str, float]
) -> tuple[Change, ...]:
    return tuple(
        Change(kind, text, functools.partial(_with, apply, value))
        for text, value in strengths.items()
    )


def _with(
    apply: Callable[..., Sample], value: float, sample: Sample, draws: np.random.Generator
) -> Sample:
    return apply(sample, draws, value)


CHANGES = (
    Change("none", "", _unchanged),
    *_each("noise", _noise, {"5 %": 0.05, "15 %": 0.15, "30 %": 0.3}),
    *_each("blur", _blur, {"1 % of the side": 0.01, "3 %": 0.03, "8 %": 0.08}),
    *_each("JPEG", _jpeg, {"quality 50": 50, "10": 10, "3": 3}),
    *_each("brightness", _brightness, {"gamma 0.5": 0.5, "2": 2.0, "4": 4.0}),
    *_each("turn", _turn, {"10°": 10.0, "30°": 30.0, "90°": 90.0}),
    *_each("scale", _scale, {"0.5": 0.5, "0.8": 0.8, "1.25": 1.25, "2": 2.0}),
    *_each("mirrored", _mirror, {"first axis": 0, "second axis": 1}),
    *_each("resolution", _resolution, {"1/2": 0.5, "1/4": 0.25}),
)  # fmt: skip


_OF_VOLUMES = (
    *_each("mirrored", _mirror, {"third axis": 2}),
    *_each("padded", _pad, {"by half a side": 0.5}),
)


def changes_of(task: Task) -> tuple[Change, ...]:
    """Return the ways to spoil an input of a task, the unchanged one first."""
    return CHANGES + _OF_VOLUMES * (task is Task.VOLUMES)


def main(config: RobustnessConfig) -> None:
    """Answer every sample in every way, and write the table.

    Raises:
        ConfigError: a model of the store has no card to put the table into.
    """
    if config.install and config.model not in models.names():
        raise ConfigError(
            f"{config.model} is no room, so it has no card for the table: leave out --install"
        )
    with measured_model(config.model, config.variant, config.weights) as (spec, weights):
        request = EvaluationRequest(
            spec, weights, config.data_dir, config.out_dir,
            split=_held_out(config, weights) if config.held_out else None, threads=config.threads,
            folders=folders_of(config.model),
        )  # fmt: skip
        samples, judge = _prepared(request, config.n)
        rows = [_row(change, samples, judge, config.seed) for change in
                track(changes_of(spec.task), "Spoiling inputs")]  # fmt: skip
        content = {
            "model": spec.name, "version": spec.version, "n": len(samples),
            "held_out": config.held_out, "artifact_sha256": sha256(_artifact(weights)),
            "wrong_below": WRONG_BELOW.get(spec.task), "rows": rows,
            **totals(rows, len(samples)),
            "independent": spec.has_independent_labels,
        }  # fmt: skip
    write_json(config.out_dir / "robustness.json", content)
    text = section(content, config)
    (config.out_dir / "robustness.md").write_text(text, encoding="utf-8")
    _log.info("%s", text)
    if config.install:
        card = models.room(config.model, config.variant) / "README.md"
        card.write_text(with_section(card.read_text(encoding="utf-8"), text), encoding="utf-8")


def _held_out(config: RobustnessConfig, weights: Path) -> Path:
    split = split_of(config, weights)
    if split is None:
        raise ConfigError(
            f"{config.model} has no split.csv that says what it was trained on: give data that it "
            "never saw, and --no-held-out"
        )
    return split


def split_of(config: RobustnessConfig, weights: Path) -> Path | None:
    """Return the split of the training; of a variant without one that of its room."""
    places = [weights / "split.csv"]
    if config.variant:
        places.append(models.room(config.model) / "weights" / "split.csv")
    return next((path for path in places if path.is_file()), None)


def section(content: dict[str, Any], config: RobustnessConfig) -> str:
    """Return the part of a card: a sentence, the table, and the command.

    Noise is white, its deviation a share of the range of intensities; a blur's is a share of the
    shortest side. `scale` is what is shown, for a volume the size that its header states.
    """
    is_dice = content["wrong_below"] is not None
    score = "Dice" if is_dice else "accuracy"
    table = Table.of(
        {
            "change": lambda row: f"{row['kind']} {row['strength']}".strip(),
            score: lambda row: f"{row['score']:.3f}",
            "flagged": lambda row: f"{100 * row['flagged']:.0f} %",
            "wrong": lambda row: str(row["wrong"]),
            "wrong and not flagged": lambda row: str(row["wrong_unflagged"]),
        },
        content["rows"],
    ).markdown()
    wrong = (
        f"Wrong is a mean Dice below {content['wrong_below']}, which is 1 where nothing is found "
        "and nothing is there. "
        if is_dice
        else _OF_LABELS * content["independent"]
    )
    caught = content["wrong_flagged_share"]
    told = (
        "of no wrong answer, as there was none,"
        if caught is None
        else (f"of {100 * caught:.0f} % of all wrong answers")
    )
    right, alarms = content["unchanged_right"], content["unchanged_right_flagged"]
    share = f" ({100 * alarms / right:.0f} %)" if right else ""
    flags = [f"--data-dir {config.data_dir}", f"--n {config.n}"]
    flags += [f"--variant {config.variant}"] * bool(config.variant)
    flags += ["--no-held-out"] * (not config.held_out)
    return (
        f"{content['n']} inputs that no training saw, each changed in {len(content['rows']) - 1} "
        f"ways and answered as served.\n{wrong}Flagged is what asks for a review, is called "
        f"unlike, or is refused; that is true\n{told} and of "
        f"{alarms} of the {right} right answers to unchanged inputs{share}.\n\n{table}\n"
        f"```bash\npython -m training.robustness {config.model} {' '.join(flags)}\n```\n"
    )


def with_section(card: str, text: str, title: str = _HEADING) -> str:
    """Return a card with this part under its heading, which is made before the limits."""
    found = re.compile(rf"^{title}\n.*?(?=^## )", re.MULTILINE | re.DOTALL)
    part = f"{title}\n\n{text}\n"
    if found.search(card):
        return found.sub(lambda _: part, card, count=1)
    before, heading, after = card.partition("## Limits\n")
    if not heading:
        raise ConfigError(f"expected the heading {title} or ## Limits in the card, found none")
    return before + part + heading + after


def _row(
    change: Change, samples: Sequence[Sample], judge: Callable[[Sample], Answer], seed: int
) -> dict[str, Any]:
    draws = np.random.default_rng(seed)
    answers = [answered(change.spoil(sample, draws), judge) for sample in samples]
    return {
        "kind": change.kind,
        "strength": change.strength,
        "score": round(float(np.mean([each.score for each in answers])), 4),
        "flagged": round(float(np.mean([each.is_flagged for each in answers])), 4),
        "wrong": sum(each.is_wrong for each in answers),
        "wrong_unflagged": sum(each.is_wrong and not each.is_flagged for each in answers),
    }


def answered(sample: Sample, judge: Callable[[Sample], Answer]) -> Answer:
    """Return what the model made of a sample; a refusal is a flag."""
    try:
        return judge(sample)
    except MedserveError:  # refused: nobody is misled
        return Answer(0.0, is_wrong=True, is_flagged=True)


def totals(rows: Sequence[dict[str, Any]], count: int) -> dict[str, float | None]:
    """Return the share of wrong answers that are flagged, and what is flagged of right ones.

    Args:
        rows: Of the table, unchanged inputs first.
        count: Inputs of each row.

    Returns:
        `wrong_flagged_share` over all rows, None without a wrong answer; of unchanged inputs how
        many were answered rightly, and how many of these ask for a look all the same.
    """
    wrong = sum(row["wrong"] for row in rows)
    unseen = sum(row["wrong_unflagged"] for row in rows)
    unchanged = rows[0]
    wrong_flagged = unchanged["wrong"] - unchanged["wrong_unflagged"]
    return {
        "wrong_flagged_share": round(1 - unseen / wrong, 4) if wrong else None,
        "unchanged_right": count - unchanged["wrong"],
        "unchanged_right_flagged": round(count * unchanged["flagged"]) - wrong_flagged,
    }


def _artifact(weights: Path) -> Path:
    return next(path for name in ("model.onnx", "model.pt") if (path := weights / name).is_file())


def _prepared(
    request: EvaluationRequest, count: int
) -> tuple[list[Sample], Callable[[Sample], Answer]]:
    """Return the samples and what answers one, by the task of the model."""
    spec = request.spec
    makers = {Task.CLASSIFICATION: _of_images, Task.FRAMES: _of_frames, Task.VOLUMES: _of_volumes}
    if spec.task not in makers:
        raise ConfigError(
            f"{spec.name}: expected a model that classifies or segments, got one of {spec.task}"
        )
    precision = Precision.F32 if spec.task is Task.CLASSIFICATION else spec.engine.precision
    engine = load_engine(
        spec.engine.name, request.weights, precision=precision, threads=request.threads
    )
    return makers[spec.task](request, engine, count)


def _spread(cases: Sequence[Any], count: int) -> list[Any]:
    places = np.linspace(0, len(cases) - 1, min(count, len(cases))).round().astype(int)
    return [cases[place] for place in np.unique(places)]


def _of_images(
    request: EvaluationRequest, engine: Engine, count: int
) -> tuple[list[Sample], Callable[[Sample], Answer]]:
    spec = request.spec
    samples = []
    for path, truth in _spread(_known_images(request), count):
        samples.append(Sample(decode_file(path, spec).array, truth))

    def judge(sample: Sample) -> Answer:
        outputs = engine.run(fit_image(Image(sample.array), spec.input)[np.newaxis])
        outputs = {**outputs, "logits": images.logits_of(outputs, spec)}
        found = classified({name: array[0] for name, array in outputs.items()}, spec)
        told = [label in (found.present or (found.label,)) for label in spec.labels]
        is_known = ~np.isnan(sample.truth)
        share = float((np.array(told) == sample.truth)[is_known].mean())
        score = share if spec.has_independent_labels else float(share == 1)
        return Answer(score, share < 1, found.review or found.unlike_training)

    return samples, judge


def _known_images(request: EvaluationRequest) -> list[tuple[Path, Array]]:
    """Return each image with its truth: whether it has each label, 1, 0, or NaN."""
    spec = request.spec
    if not spec.has_independent_labels:
        ids = np.eye(len(spec.labels))
        chosen = images.chosen_files(request).items()
        return [(path, ids[spec.labels.index(label)]) for path, label in chosen]
    if request.split is not None:
        raise ConfigError("expected no split for independent labels, got one; give --no-held-out")
    known = [(path, np.array(each.answers)) for path, each in images.references_of(request).items()]
    return [(path, truth) for path, truth in known if not np.isnan(truth).all()]


def _of_frames(
    request: EvaluationRequest, engine: Engine, count: int
) -> tuple[list[Sample], Callable[[Sample], Answer]]:
    pipeline, predict = FramePipeline(request.spec), predict_by(engine)
    samples, labels = [], request.spec.labels
    for case in _spread(frames.chosen_cases(request), count):
        image = read_frame(case.image, request.spec.input)
        reference = read_mask(case, (image.height, image.width), len(labels))
        samples.append(Sample(image.array, reference))

    def judge(sample: Sample) -> Answer:
        image = Image(sample.array)
        [found] = pipeline.segment([image], predict)
        dice = statistics.fmean(
            compare_frame("", "", found.mask == number, sample.truth == number).dice
            for number in range(1, len(labels))
        )
        is_wrong = dice < WRONG_BELOW[Task.FRAMES]
        is_flagged = pipeline.is_unlike_ultrasound(image) or bool(pipeline.doubts(found, None))
        return Answer(dice, is_wrong, is_flagged)

    return samples, judge


def _of_volumes(
    request: EvaluationRequest, engine: Engine, count: int
) -> tuple[list[Sample], Callable[[Sample], Answer]]:
    spec, pipeline = request.spec, VolumePipeline(request.spec)
    predict = predict_by(engine)
    samples = []
    for case in _spread(volume_evaluation.chosen_cases(request), count):
        read = volumes.read_volumes(case, spec)
        mask = volumes.read_mask(case, read[0], len(spec.labels))
        first, *others = [
            Sample(each.array.astype(np.float32), mask, each.geometry) for each in read
        ]
        samples.append(dataclasses.replace(first, others=tuple(others)))

    def judge(sample: Sample) -> Answer:
        assert sample.geometry is not None
        prepared = pipeline.prepare(
            [Volume(each.array, sample.geometry) for each in (sample, *sample.others)]
        )
        found = pipeline.segment(prepared, predict)
        mask = found.segmentation.mask
        scores = compare_masks(mask, sample.truth, sample.geometry, spec.labels)
        dice = float(np.mean([each.dice for each in scores]))
        is_wrong = dice < WRONG_BELOW[Task.VOLUMES]
        return Answer(dice, is_wrong, bool(pipeline.doubts(prepared, found)))

    return samples, judge


if __name__ == "__main__":
    sys.exit(run(main, RobustnessConfig))
