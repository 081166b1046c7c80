"""What an evaluation measures: an artifact with its description, and the data it is shown."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import models
from medserve.archive.read import verify_archive
from medserve.errors import ConfigError
from medserve.inference.engines.engine import ONNX_FILE, TORCHSCRIPT_FILE
from medserve.spec import EngineName, ModelSpec

__all__ = ["ARCHIVE_SUFFIX", "EvaluationRequest", "measured_model"]

ARCHIVE_SUFFIX = ".mar"
_CONFIG = "model-config.yaml"


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


@contextmanager
def measured_model(
    name: str, variant: str = "", weights: Path | None = None
) -> Iterator[tuple[ModelSpec, Path]]:
    """Yield the description and the folder of an artifact.

    Args:
        name: Of a room, or the path of an archive.
        variant: Of the room.
        weights: Folder of another artifact than the room's; a `model-config.yaml` in it counts.

    Raises:
        ArchiveError: the archive is damaged or altered.
        ConfigError: an archive has no variants and no other weights.
    """
    if not name.endswith(ARCHIVE_SUFFIX):
        folder = weights or models.room(name, variant) / "weights"
        own = folder / _CONFIG
        yield ModelSpec.from_file(own) if own.is_file() else _spec(name, variant), folder
        return
    if variant or weights is not None:
        raise ConfigError(f"{name} is an archive, which is measured as it is: leave out --variant "
                          "and --weights")  # fmt: skip
    spec = verify_archive(Path(name)).spec
    with tempfile.TemporaryDirectory(prefix="medserve-evaluate-") as unpacked:
        with zipfile.ZipFile(name) as packed:
            for member in {ONNX_FILE, TORCHSCRIPT_FILE} & set(packed.namelist()):
                packed.extract(member, unpacked)
        yield spec, Path(unpacked)


def _spec(name: str, variant: str) -> ModelSpec:
    return models.spec(name, variant) if variant else models.spec(name)
