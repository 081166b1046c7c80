"""From trained networks to what a room ships: exported, proven, described, installed."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import models
from medserve.archive.read import NETWORK
from medserve.archive.reference import REFERENCE
from medserve.spec import ModelSpec
from training.core.ensemble import Ensemble
from training.core.evaluation import EvaluationRequest, predict_with
from training.core.export import Exported, export_network, sha256, stored_in_fp16
from training.core.files import write_json
from training.core.fit import Fitted
from training.core.segmentation import SegmentationConfig

__all__ = [
    "TOLERANCE",
    "Shipment",
    "describe",
    "export_masks",
    "install",
    "install_files",
    "report_on",
    "shipped_settings",
]

_log = logging.getLogger(__name__)

Pipeline = TypeVar("Pipeline")
Loaded = TypeVar("Loaded")

# Of logits up to 20; what counts is the label, which is compared too. Two probabilities move by no
# more than their logits, so a label may change only where the two largest lie this near: a tie.
TOLERANCE = 2e-3
# Settings that name folders of the machine that trained, or are of one run alone.
_LOCAL = frozenset(
    {"data_dir", "out_dir", "model_config", "init_from", "encoder_weights", "resume", "install",
     "variant"}
)  # fmt: skip
_NOT_INSTALLED = frozenset({"model-config.yaml", "training.json"})


@dataclass(frozen=True)
class Shipment(Generic[Pipeline, Loaded]):
    """What a training of masks ships, and where it is gathered.

    Attributes:
        pipeline: Of the room.
        members: Trained networks, averaged in this order.
        train: Cases that any of them was trained on or validated with; none of the test part.
        out_dir: Has `config.json` and `split.csv`; receives `artifact/` and `examples/`.
        fp16_weights: Whether kernels are stored in 16 bits.
        exclusive: Whether one label excludes the others.
    """

    pipeline: Pipeline
    members: Sequence[Fitted]
    train: Sequence[Loaded]
    out_dir: Path
    fp16_weights: bool = False
    exclusive: bool = True

    def as_shipped(self, members: Sequence[Fitted]) -> nn.Module:
        """Return the network of these members whose every form is exported and measured."""
        network = Ensemble([each.network for each in members], exclusive=self.exclusive).eval()
        return stored_in_fp16(network) if self.fp16_weights else network

    def proven(self, count: int) -> Sequence[Loaded]:
        """Return so many cases, or a few more, from all over the data."""
        return self.train[:: max(1, len(self.train) // count)]


def export_masks(
    network: nn.Module, folder: Path, golden: npt.NDArray[np.float32], split: Path
) -> Exported:
    """Write both forms of a network of masks, what it answers to the golden input, and the split.

    Args:
        network: As it is shipped.
        folder: Of the artifact.
        golden: The golden input as the network sees it, float32 (1, C, ...).
        split: The `split.csv` of the training.

    Raises:
        ArchiveError: an exported form gives other logits than eager torch.
    """
    both = torch.from_numpy(np.concatenate([golden, golden[:, :, ::-1]]))
    exported = export_network(network, folder, both, ("logits",), TOLERANCE)
    np.savez_compressed(
        folder / "golden_output.npz", logits=predict_with(network)(golden),
        tolerance=np.float32(TOLERANCE),
    )  # fmt: skip
    shutil.copyfile(split, folder / "split.csv")
    return exported


def shipped_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of the training in a folder that do not name its machine's folders."""
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {name: value for name, value in settings.items() if name not in _LOCAL}


def describe(
    folder: Path, network: nn.Module, members: Sequence[Fitted], score: str, **further: object
) -> dict[str, Any]:
    """Write `training.json`: the members, and whatever else is known of the artifact."""
    described = {
        "members": [
            {
                "network": type(each.network).__name__,
                "parameters": sum(p.numel() for p in each.network.parameters()),
                "best_epoch": each.epoch,
                score: round(each.score, 5),
            }
            for each in members
        ],
        "parameters": sum(each.numel() for each in network.parameters()),
        **further,
    }
    write_json(folder / "training.json", described)
    return described


def report_on(
    config: SegmentationConfig, spec: ModelSpec, part: str, described: Mapping[str, object],
    evaluate: Callable[[EvaluationRequest], dict[str, Any]],
) -> None:  # fmt: skip
    """Measure the artifact of a training on a part of its data; write `metrics.json` and a page.

    Args:
        config: Of the training.
        spec: Of the model.
        part: Of the split; test where there is one.
        described: What the metrics say of the training.
        evaluate: Measures artifacts of the task.
    """
    folder = config.out_dir / "artifact"
    request = EvaluationRequest(
        spec, folder, config.data_dir, config.out_dir / "report",
        split=config.out_dir / "split.csv", part=part, threads=config.threads,
    )  # fmt: skip
    measured = evaluate(request)
    write_json(folder / "metrics.json", measured | {"training": described})


def install(out_dir: Path, name: str, variant: str = "") -> None:
    """Copy artifact and example of a training into its room, where packaging takes them from.

    The model's own configuration stays as it is: a folder becomes a room by it, once card and
    weights are there. A variant has the examples of its room.
    """
    folder = models.room(name) / "variants" / variant if variant else models.room(name)
    artifact = (out_dir / "artifact").iterdir()
    copies = {folder / "weights": [each for each in artifact if each.name not in _NOT_INSTALLED]}
    if not variant:
        copies[folder / "examples"] = list((out_dir / "examples").iterdir())
    install_files(copies)


def install_files(copies: Mapping[Path, Iterable[Path]]) -> None:
    """Copy files into the folders of a room: all of them, or none where one cannot be copied.

    Args:
        copies: Folder, made where it is missing -> the files that go there under their names. The
            digest of each is logged. A new network takes away the reference for drift, which is
            of the network before.
    """
    staged: dict[Path, Path] = {}  # copy beside its place -> place
    try:
        for target, sources in copies.items():
            target.mkdir(parents=True, exist_ok=True)
            for source in sorted(sources):
                beside = target / f".{source.name}.installing"
                staged[beside] = target / source.name
                shutil.copyfile(source, beside)
    except OSError:
        for beside in staged:
            beside.unlink(missing_ok=True)
        raise
    for beside, place in staged.items():
        if place.name == NETWORK:
            place.with_name(REFERENCE).unlink(missing_ok=True)
        os.replace(beside, place)
        _log.info("%s  %s", sha256(place), place)
