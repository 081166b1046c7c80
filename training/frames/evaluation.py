"""Run an artifact over frames with reference masks, exactly as serving would, and judge it.

    python -m training.evaluate trus_prostate --data-dir DIR --out DIR

Masks are compared on the frames' own pixels. `metrics.json` has `dice`, `iou` and `n` (frames that
show the structure), apart from them `false_positive_rate` and `n_empty`, and a row for each frame.
Of several structures it has the same for each of them, and means over all of their masks.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.progress import track

from medserve.inference.frame_pipeline import FramePipeline
from training.core.evaluation import (
    EvaluationRequest,
    Predict,
    artifact_digests,
    engine_of,
    part_of,
    predict_by,
    refuse_foreign,
)
from training.core.files import require_folder, write_json
from training.frames import report
from training.frames.data import FrameCase, find_frames, read_frame, read_mask
from training.frames.scores import FrameScore, compare_frame, summarise

__all__ = ["MeasuredFrame", "chosen_cases", "evaluate_frames", "measure_frames"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class MeasuredFrame:
    """One structure of a frame that was segmented and compared.

    Attributes:
        case: Which frame.
        label_id: Which structure.
        score: Its pixels.
        seconds: From the decoded frame to the mask on its pixels.
    """

    case: FrameCase
    label_id: int
    score: FrameScore
    seconds: float


def evaluate_frames(request: EvaluationRequest) -> dict[str, Any]:
    """Write `metrics.json` and `report.html`; return the metrics.

    Raises:
        ConfigError: nothing to measure, half a pair, or no artifact.
    """
    refuse_foreign(request)
    spec, pipeline = request.spec, FramePipeline(request.spec)
    cases = chosen_cases(request)
    predict = predict_by(engine_of(request))
    measured = measure_frames(pipeline, predict, cases, progress="Evaluating")
    scores = [each.score for each in measured]
    summary = summarise(scores)
    content = {
        "model": spec.name,
        "version": spec.version,
        "target": ", ".join(spec.labels[1:]),
        "artifact_sha256": artifact_digests(request.weights),
        "settings": _settings(request, pipeline),
        **summary.to_json(),
        "ms_per_frame": round(1000 * statistics.median(each.seconds for each in measured), 1),
        "frames": [score.to_json() for score in scores],
    }
    structures = {} if len(spec.labels) == 2 else {
        label: summarise([each.score for each in measured if each.label_id == number])
        for number, label in enumerate(spec.labels[1:], start=1)
    }  # fmt: skip
    if structures:
        content["structures"] = {label: each.to_json() for label, each in structures.items()}
        content["frames"] = [
            {"label": spec.labels[each.label_id], **each.score.to_json()} for each in measured
        ]
    request.out_dir.mkdir(parents=True, exist_ok=True)
    write_json(request.out_dir / "metrics.json", content)
    pictures = report.gallery(pipeline, predict, report.worst(measured))
    findings = report.Findings(summary, scores, pictures, content, structures)
    path = report.write(request.out_dir, spec, findings)
    _log.info("Dice %s on %d frames; %s", content["dice"], summary.n, path)
    return content


def measure_frames(
    pipeline: FramePipeline,
    predict: Predict,
    cases: Sequence[FrameCase],
    progress: str = "",
) -> list[MeasuredFrame]:
    """Segment each case by the code of serving and compare it on its own pixels.

    Returns:
        An entry for each structure of each case.
    """
    measured, labels = [], len(pipeline.spec.labels)
    shown = track(cases, progress, transient=True) if progress else cases
    for case in shown:
        image = read_frame(case.image, pipeline.spec.input)
        started = time.perf_counter()
        [found] = pipeline.segment([image], predict)
        seconds = time.perf_counter() - started
        reference = read_mask(case, (image.height, image.width), labels)
        for number in range(1, labels):
            own = (found.mask == number, reference == number)
            score = compare_frame(case.name, case.patient, *own)
            measured.append(MeasuredFrame(case, number, score, seconds))
    return measured


def chosen_cases(request: EvaluationRequest) -> Sequence[FrameCase]:
    """Return all frames of the data, or one part of a training's split.

    Raises:
        ConfigError: no pairs.
    """
    return part_of(request, find_frames(require_folder(request.data_dir, "--data-dir")))


def _settings(request: EvaluationRequest, pipeline: FramePipeline) -> dict[str, Any]:
    frame = pipeline.frame
    return {
        "engine": str(request.engine_name),
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
