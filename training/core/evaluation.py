"""What an evaluation measures: an artifact with its description, and the data it is shown."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import models
from medserve.archive.read import ArchiveInfo, verify_archive
from medserve.archive.store import select_archives, stored_names
from medserve.archive.unpack import unpack_archive
from medserve.errors import ConfigError, UnknownModelError
from medserve.inference.engines import Engine, load_engine
from medserve.inference.engines.engine import ONNX_FILE, TORCHSCRIPT_FILE
from medserve.settings import Settings
from medserve.spec import EngineName, ModelSpec, Precision
from training.core.export import sha256
from training.core.split import PARTS, read_split

__all__ = [
    "ARCHIVE_SUFFIX",
    "MODEL",
    "EvaluationRequest",
    "Predict",
    "artifact_digests",
    "engine_of",
    "measured_model",
    "part_of",
    "predict_by",
    "predict_with",
    "refuse_foreign",
]

Predict = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]

ARCHIVE_SUFFIX = ".mar"
MODEL = "name of a room or of a model in the store, or an archive (.mar)"
_CONFIG = "model-config.yaml"


class Named(Protocol):
    """A case of a data set."""

    @property
    def name(self) -> str:
        """By which splits know it."""


Case = TypeVar("Case", bound=Named)


@dataclass(frozen=True)
class EvaluationRequest:
    """What is evaluated, and on what.

    Attributes:
        spec: Of the model, as its archive states it.
        weights: Folder of the artifact.
        data_dir: Labelled data in the layout of the model's task.
        out_dir: Receives `metrics.json`, `report.html` and the figures.
        split: The `split.csv` of a training, to evaluate one part only.
        part: Which part of `split`, or of a file that holds several.
        foreign_dir: Images that the model should call unlike, one folder per kind.
        engine: What runs the artifact; the spec's choice where None.
        threads: Of the engine; 0 takes every core.
        folders: Label by folder, for folders that carry another name than their label.
    """

    spec: ModelSpec
    weights: Path
    data_dir: Path
    out_dir: Path
    split: Path | None = None
    part: str = "test"
    foreign_dir: Path | None = None
    engine: EngineName | None = None
    threads: int = 0
    folders: Mapping[str, str] = field(default_factory=dict)

    @property
    def engine_name(self) -> EngineName:
        """Which engine runs the artifact."""
        return self.engine or self.spec.engine.name

    @property
    def precision(self) -> Precision:
        """As it is served, or float32 where another engine is asked for."""
        served = self.spec.engine
        return served.precision if self.engine_name is served.name else Precision.F32


@contextmanager
def measured_model(
    name: str, variant: str = "", weights: Path | None = None
) -> Iterator[tuple[ModelSpec, Path]]:
    """Yield the description and the folder of an artifact.

    Args:
        name: Of a room, or of a model in the store (its newest version), or the path of an archive.
        variant: Of the room.
        weights: Folder of another artifact than the room's; a `model-config.yaml` in it counts.

    Raises:
        ArchiveError: the archive is damaged or altered.
        ConfigError: an archive has no variants and no other weights.
        UnknownModelError: neither a room nor a model in the store has the name.
    """
    if name in models.names():
        folder = weights or models.room(name, variant) / "weights"
        own = folder / _CONFIG
        yield ModelSpec.from_file(own) if own.is_file() else _spec(name, variant), folder
        return
    archive = _archive(name)
    if variant or weights is not None:
        raise ConfigError(f"{name} is an archive, which is measured as it is: leave out --variant "
                          "and --weights")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="medserve-evaluate-") as unpacked:
        unpack_archive(archive, Path(unpacked), (ONNX_FILE, TORCHSCRIPT_FILE))
        yield archive.spec, Path(unpacked)


def _archive(name: str) -> ArchiveInfo:
    """Return the archive at a path, or the newest one of a model in the store; verified."""
    if name.endswith(ARCHIVE_SUFFIX):
        return verify_archive(Path(name))
    store = Settings.from_environment().store
    if name not in (stored := stored_names(store)):
        raise UnknownModelError(
            f"expected one of {', '.join([*models.names(), *stored])}, or an archive "
            f"({ARCHIVE_SUFFIX}), got {name!r}; the store is {store}"
        )
    return select_archives(store, [name])[-1]


def _spec(name: str, variant: str) -> ModelSpec:
    return models.spec(name, variant) if variant else models.spec(name)


def refuse_foreign(request: EvaluationRequest) -> None:
    """Refuse foreign images for a model that tells no novelty.

    Raises:
        ConfigError: the request names some.
    """
    if request.foreign_dir is not None:
        raise ConfigError(
            f"expected no --foreign-dir: {request.spec.name} does not tell how far an image is "
            "from its training data"
        )


def part_of(request: EvaluationRequest, cases: Sequence[Case]) -> Sequence[Case]:
    """Return all cases, or one part of a training's split.

    Raises:
        ConfigError: no such part, or none of its cases is there.
    """
    if request.split is None:
        return cases
    if request.part not in PARTS:
        raise ConfigError(f"expected --part to be one of {', '.join(PARTS)}, got {request.part!r}")
    names = set(read_split(request.split).parts(_fold(request.split))[request.part])
    chosen = [case for case in cases if case.name in names]
    if not chosen:
        raise ConfigError(
            f"{request.split}: expected its {request.part} part to name cases in "
            f"{request.data_dir}, found none"
        )
    return chosen


def _fold(split: Path) -> int:
    """Return the fold that the training beside a split left out."""
    config = split.parent / "config.json"
    try:
        return int(json.loads(config.read_text(encoding="utf-8"))["fold"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def engine_of(request: EvaluationRequest) -> Engine:
    """Return what runs the artifact of a request.

    Raises:
        ConfigError: its folder has no artifact.
    """
    if not artifact_digests(request.weights):
        raise ConfigError(
            f"expected the artifact {ONNX_FILE} in {request.weights}; train and export first"
        )
    return load_engine(
        request.engine_name, request.weights, precision=request.precision, threads=request.threads
    )


def artifact_digests(weights: Path) -> dict[str, str]:
    """Return the SHA-256 of each form of an artifact, by the name of its file."""
    forms = (weights / name for name in (ONNX_FILE, TORCHSCRIPT_FILE))
    return {path.name: sha256(path) for path in forms if path.is_file()}


def predict_by(engine: Engine) -> Predict:
    """Return an engine as the pipelines call it: arrays in, logits out."""
    return lambda images: engine.run(images)["logits"]


def predict_with(network: nn.Module, device: torch.device | None = None) -> Predict:
    """Return a network as the pipelines call it: arrays in, float32 logits out."""

    @torch.no_grad()
    def predict(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        logits = cast(Tensor, network(torch.from_numpy(images).to(device or "cpu")))
        return logits.float().cpu().numpy()

    return predict
