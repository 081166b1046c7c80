"""Run an artifact over frames with reference masks, exactly as serving would, and judge it.

    python -m training.evaluate trus_prostate --data-dir DIR --out DIR

Masks are compared on the frames' own pixels. `metrics.json` has `dice`, `iou` and `n` (frames that
show the structure), apart from them `false_positive_rate` and `n_empty`, and a row for each frame.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import track

from medserve.errors import ConfigError
from medserve.inference.engines import Engine, load_engine
from medserve.inference.frame_pipeline import FramePipeline, PredictFrames
from medserve.spec import Precision
from training.core.evaluation import EvaluationRequest
from training.core.export import sha256
from training.core.files import require_folder, write_json
from training.core.split import PARTS, read_split
from training.frames import report
from training.frames.data import FrameCase, find_frames, read_frame, read_mask
from training.frames.scores import FrameScore, compare_frame, summarise

__all__ = ["MeasuredFrame", "chosen_cases", "evaluate_frames", "measure_frames", "predict_by"]

_log = logging.getLogger(__name__)

_FILES = ("model.onnx", "model.pt")


@dataclass(frozen=True, eq=False)
class MeasuredFrame:
    """One frame that was segmented and compared.

    Attributes:
        case: Which.
        score: Its pixels.
        seconds: From the decoded frame to the mask on its pixels.
    """

    case: FrameCase
    score: FrameScore
    seconds: float


def evaluate_frames(request: EvaluationRequest) -> dict[str, Any]:
    """Write `metrics.json` and `report.html`; return the metrics.

    Raises:
        ConfigError: nothing to measure, half a pair, or no artifact.
    """
    if request.foreign_dir is not None:
        raise ConfigError("expected no --foreign-dir: a segmentation has no measure of novelty")
    spec, pipeline = request.spec, FramePipeline(request.spec)
    cases = chosen_cases(request)
    engine = _engine(request)
    measured = measure_frames(pipeline, predict_by(engine), cases, progress="Evaluating")
    scores = [each.score for each in measured]
    summary = summarise(scores)
    content = {
        "model": spec.name,
        "version": spec.version,
        "target": spec.labels[1],
        "artifact_sha256": {
            name: sha256(request.weights / name)
            for name in _FILES
            if (request.weights / name).is_file()
        },
        "settings": _settings(request, pipeline),
        **summary.to_json(),
        "ms_per_frame": round(1000 * statistics.median(each.seconds for each in measured), 1),
        "frames": [score.to_json() for score in scores],
    }
    request.out_dir.mkdir(parents=True, exist_ok=True)
    write_json(request.out_dir / "metrics.json", content)
    pictures = report.gallery(pipeline, predict_by(engine), report.worst(measured))
    path = report.write(request.out_dir, spec, report.Findings(summary, scores, pictures, content))
    _log.info("Dice %s on %d frames; %s", content["dice"], summary.n, path)
    return content


def measure_frames(
    pipeline: FramePipeline,
    predict: PredictFrames,
    cases: Sequence[FrameCase],
    progress: str = "",
) -> list[MeasuredFrame]:
    """Segment each case by the code of serving and compare it on its own pixels."""
    measured = []
    shown = track(cases, progress, transient=True) if progress else cases
    for case in shown:
        image = read_frame(case.image, pipeline.spec.input)
        started = time.perf_counter()
        [found] = pipeline.segment([image], predict)
        seconds = time.perf_counter() - started
        reference = read_mask(case, (image.height, image.width))
        score = compare_frame(case.name, case.patient, found.mask, reference)
        measured.append(MeasuredFrame(case, score, seconds))
    return measured


def predict_by(engine: Engine) -> PredictFrames:
    """An engine as the frame pipeline calls it."""

    def predict(planes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return engine.run(planes)["logits"]

    return predict


def chosen_cases(request: EvaluationRequest) -> list[FrameCase]:
    """Return all frames of the data, or one part of a training's split."""
    cases = find_frames(require_folder(request.data_dir, "--data-dir"))
    if request.split is None:
        return cases
    if request.part not in PARTS:
        raise ConfigError(f"expected --part {', '.join(PARTS)}, got {request.part!r}")
    names = read_split(request.split).parts(0)[request.part]
    chosen = [case for case in cases if case.name in names]
    if not chosen:
        raise ConfigError(
            f"expected frames of the part {request.part} of {request.split} in "
            f"{request.data_dir}, found none"
        )
    return chosen


def _engine(request: EvaluationRequest) -> Engine:
    if not any((request.weights / name).is_file() for name in _FILES):
        raise ConfigError(f"expected {_FILES[0]} in {request.weights}; train and export first")
    return load_engine(
        request.engine or request.spec.engine.name,
        request.weights,
        precision=request.spec.engine.precision if request.engine is None else Precision.F32,
        threads=request.threads,
    )


def _settings(request: EvaluationRequest, pipeline: FramePipeline) -> dict[str, Any]:
    frame = pipeline.frame
    return {
        "engine": str(request.engine or request.spec.engine.name),
        "network_size": list(pipeline.size),
        "crop": frame.crop.kind.value,
        "interpolation": frame.interpolation.value,
        "filter": frame.filter.kind.value,
        "threshold": frame.threshold,
        "flips": frame.flips,
        "largest_component": frame.largest_component,
        "fill_holes": frame.fill_holes,
        "part": request.part if request.split else "all frames",
    }
