"""Measure a segmentation artifact on labelled volumes, exactly as serving would answer them.

    python -m training.evaluate segmentation_3d --data-dir Task04_Hippocampus --out evaluation

Every volume is decoded, prepared, segmented and brought back by the code of serving
(`medserve.inference.volume_pipeline`), with the engine, its precision and the options of the room's
`model-config.yaml`, and compared with its reference on the volume's own grid.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import track

from medserve.cores import available_cores
from medserve.errors import ConfigError, MedserveError
from medserve.imaging.volume import Volume
from medserve.inference import volume_memory
from medserve.inference.volume_pipeline import VolumePipeline
from training.core.evaluation import (
    EvaluationRequest,
    Predict,
    artifact_digests,
    engine_of,
    part_of,
    predict_by,
    refuse_foreign,
)
from training.core.files import write_csv, write_json
from training.volumes import report
from training.volumes.curves import read_runs
from training.volumes.data import Case, read_mask, read_volumes
from training.volumes.metrics import TOLERANCE_MM, LabelScore, compare_masks, summarise
from training.volumes.pictures import Picture
from training.volumes.references import find_references

__all__ = [
    "MeasuredCase",
    "chosen_cases",
    "evaluate_segmentation",
    "measure_cases",
    "segment_case",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeasuredCase:
    """One volume that was segmented and compared.

    Attributes:
        case: Which.
        scores: One for each label but the background.
        seconds: From the file's bytes to the mask on its grid.
    """

    case: Case
    scores: tuple[LabelScore, ...]
    seconds: float

    @property
    def mean_dice(self) -> float:
        """Over the labels."""
        return statistics.fmean(each.dice for each in self.scores)


def evaluate_segmentation(request: EvaluationRequest) -> dict[str, Any]:
    """Write `metrics.json`, `cases.csv` and `report.html` of an artifact; return the metrics.

    Raises:
        ConfigError: nothing to measure, half a pair, a reference on another grid, or an artifact
            of another room.
    """
    refuse_foreign(request)
    spec, weights = request.spec, request.weights
    references = find_references(request.data_dir, spec.labels)
    for remark in references.remarks:
        _log.warning("%s", remark)
    cases = part_of(request, references.cases)
    pipeline = VolumePipeline(spec)
    predict = predict_by(engine_of(request))
    measured = measure_cases(pipeline, predict, cases, progress="Evaluating")
    scores = [score for each in measured for score in each.scores]
    summary = summarise(scores)
    digests = artifact_digests(weights)
    content = {
        "model": spec.name,
        "version": spec.version,
        "artifact_sha256": next(iter(digests.values())),
        "artifacts": {
            name: {"bytes": (weights / name).stat().st_size, "sha256": digest}
            for name, digest in digests.items()
        },
        "settings": _settings(pipeline, request),
        **summary.to_json(),
        "seconds_per_volume": round(statistics.median(each.seconds for each in measured), 4),
        "remarks": list(references.remarks),
        "cases": [score.to_json() for score in scores],
    }
    request.out_dir.mkdir(parents=True, exist_ok=True)
    write_json(request.out_dir / "metrics.json", content)
    write_csv(request.out_dir / "cases.csv", content["cases"])
    worst = sorted(measured, key=lambda each: each.mean_dice)[: report.GALLERY]
    pictures = [_picture(pipeline, predict, each) for each in worst]
    runs = read_runs(weights.parent)  # of a training's own artifact
    findings = report.Findings(summary, tuple(scores), tuple(pictures), content, runs)
    page = report.write(request.out_dir, spec, findings)
    means = ", ".join(f"{label} {value:.4f}" for label, value in summary.means["dice"].items())
    _log.info("Dice of %d volumes: %s; %s", summary.n, means, page)
    return content


def measure_cases(
    pipeline: VolumePipeline, predict: Predict, cases: Sequence[Case], *, progress: str = ""
) -> list[MeasuredCase]:
    """Segment and compare every case; `progress` is the title of a bar."""
    shown: Iterable[Case] = track(cases, description=progress) if progress else cases
    return [_measure(pipeline, predict, case) for case in shown]


def _measure(pipeline: VolumePipeline, predict: Predict, case: Case) -> MeasuredCase:
    started = time.perf_counter()
    volume, mask = segment_case(pipeline, predict, case)
    seconds = time.perf_counter() - started
    reference = read_mask(case, volume, len(pipeline.spec.labels))
    scores = compare_masks(
        mask, reference, volume.geometry, pipeline.spec.labels, (case.name, case.subject)
    )
    return MeasuredCase(case, tuple(scores), seconds)


def segment_case(
    pipeline: VolumePipeline, predict: Predict, case: Case
) -> tuple[Volume, npt.NDArray[np.uint8]]:
    """The first volume of a case and the mask that serving would answer with, on its grid."""
    spec = pipeline.spec
    try:
        volumes = read_volumes(case, spec, volume_memory.limits(spec))
        prepared = pipeline.prepare(volumes)
    except (OSError, MedserveError) as error:
        raise ConfigError(f"{case.images[0]}: serving would refuse it ({error})") from error
    return volumes[0], pipeline.segment(prepared, predict).segmentation.mask


def chosen_cases(request: EvaluationRequest) -> Sequence[Case]:
    """Return all cases of the data, or one part of a training's split."""
    return part_of(request, find_references(request.data_dir, request.spec.labels).cases)


def _settings(pipeline: VolumePipeline, request: EvaluationRequest) -> dict[str, Any]:
    defaults, volume = pipeline.defaults(), pipeline.volume
    return {
        "engine": str(request.engine_name),
        "precision": str(request.precision),
        "threads": request.threads or available_cores(),
        "window": list(pipeline.window.size),
        "overlap": pipeline.window.overlap,
        "spacing_mm": list(volume.spacing_mm),
        "flips": defaults.flips,
        "flip_axes": list(volume.flip_axes),
        "largest_component": defaults.largest_component,
        "fill_holes": defaults.fill_holes,
        "part": request.part if request.split is not None else "all",
        "surface_dice_tolerance_mm": TOLERANCE_MM,
        "grid": "native",
        "interval": "95 % of the mean, bootstrap over subjects",
    }


def _picture(pipeline: VolumePipeline, predict: Predict, measured: MeasuredCase) -> Picture:
    """Segment once more: keeping every mask until the worst are known would cost memory."""
    volume, mask = segment_case(pipeline, predict, measured.case)
    reference = read_mask(measured.case, volume, len(pipeline.spec.labels))
    return Picture(measured.case.name, volume, mask, reference, measured.scores)
