r"""Train several networks and encoders under one budget and put the results into one table.

    python -m training.trus_prostate compare --data-dir data/trus --epochs 6 \
        --networks fpn:mobilenet_v2,fpn:tu-regnetx_002,fpn:resnet152,unet:resnet18,segformer:mit_b0

Equal for all: frames, split, loss, augmentation, optimiser, schedule, batch, epochs and seed.
Scored on patients that no training saw, through the exported ONNX file and the code of serving,
on the frames' own pixels. Milliseconds are those of the network alone, a frame at a time.

A network that is done is not trained again: the same command goes on after an interruption.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch

import models
from medserve.errors import ConfigError
from medserve.inference.engines import load_engine
from medserve.inference.frame_pipeline import FramePipeline
from medserve.spec import EngineName, Precision
from training.core.config import Setting
from training.core.ensemble import Ensemble
from training.core.evaluation import predict_by
from training.core.export import export_network
from training.core.files import write_csv, write_json
from training.core.report import Table
from training.core.segmentation import Material
from training.frames.config import FrameConfig, Schedule
from training.frames.data import FrameCase, LoadedFrame
from training.frames.evaluation import measure_frames
from training.frames.module import collate
from training.frames.scores import summarise
from training.frames.ship import agreement
from training.frames.train import read, train_frames

__all__ = ["CompareConfig", "compare"]

_log = logging.getLogger(__name__)

_RESULT = "result.json"
_TOLERANCE = 5e-3  # of the logits of networks that were hardly trained
_PROVEN = 8  # frames
_TABLE = {
    "network": lambda row: f"`{row['network']}`",
    "encoder": lambda row: f"`{row['encoder']}`",
    "IoU (95 %)": lambda row: _score(row["iou"]) + _interval(row["iou_low"], row["iou_high"]),
    "Dice": lambda row: _score(row["dice"]),
    "parameters": lambda row: f"{row['parameters'] / 1e6:.2f} M",
    "ONNX MB": lambda row: f"{row['onnx_mb']:.1f}",
    "ms torch": lambda row: f"{row['ms_torch']:.0f}",
    "ms ONNX Runtime": lambda row: f"{row['ms_onnxruntime']:.0f}",
    "ms OpenVINO": lambda row: f"{row['ms_openvino']:.0f}",
}


@dataclass(frozen=True)
class CompareConfig(FrameConfig):
    """Compare networks and encoders under one equal budget."""

    data_dir: Annotated[Path, Setting("folder with the folders images and masks")] = Path(
        "data/trus"
    )
    out_dir: Annotated[Path, Setting("folder for a folder per network and the table")] = Path(
        "runs/trus_compare"
    )
    room: Annotated[str, Setting("room whose networks are compared")] = "trus_prostate"
    networks: Annotated[
        str, Setting("pairs network:encoder, commas between; no encoder: the light one")
    ] = "fpn,unet,segformer"
    schedule: Annotated[Schedule, Setting("of the learning rate")] = Schedule.ONE_CYCLE
    epochs: Annotated[int, Setting("passes over the training frames, for each", minimum=1)] = 10
    threads: Annotated[int, Setting("of training and engines", minimum=1)] = 2


def compare(config: CompareConfig) -> None:
    """Train what is not trained yet, then write the table of all that is."""
    wanted = _networks(config)
    if not config.test_share:
        raise ConfigError("expected a --test-share above 0: networks are scored on unseen patients")
    pipeline, material = read(config)
    rows = []
    for name, encoder in wanted:
        one = dataclasses.replace(
            config, network=name, encoder=encoder,
            out_dir=config.out_dir / f"{name}_{encoder}".replace("/", "_"),
        )  # fmt: skip
        rows.append(_row(one, pipeline, material))
        _write_table(config, rows)


def _networks(config: CompareConfig) -> list[tuple[str, str]]:
    """Return each network with its encoder: the one that is asked for, or its light one."""
    known = models.networks(config.room)
    light = getattr(importlib.import_module(f"models.{config.room}.network"), "ENCODERS", {})
    chosen = []
    for part in config.networks.split(","):
        name, _, encoder = part.strip().partition(":")
        if name not in known:
            raise ConfigError(
                f"expected --networks out of {', '.join(known)}, each with :ENCODER or "
                f"without, got {part.strip()!r}"
            )
        chosen.append((name, encoder or light.get(name, "")))
    return chosen


def _row(
    config: CompareConfig, pipeline: FramePipeline, material: Material[FrameCase, LoadedFrame]
) -> dict[str, Any]:
    """Train, export and score one network, or read what a run before this found."""
    done = config.out_dir / _RESULT
    if done.is_file():
        row: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return row
    _log.info("%s with %s", config.network, config.encoder)
    network = train_frames(config, 0, pipeline, material).network
    folder = config.out_dir / "artifact"
    frames = material.part(config.fold, "validation")[:_PROVEN]
    example, _ = collate([*frames, *frames][:2])  # one frame alone is twice itself
    artifact = Ensemble([network], exclusive=False).eval()  # the exporter goes by its input's name
    export_network(artifact, folder, example, ("logits",), _TOLERANCE)
    engine = load_engine(
        EngineName.ONNXRUNTIME, folder, precision=Precision.F32, threads=config.threads
    )
    tested = material.named(material.split.test)
    measured = measure_frames(pipeline, predict_by(engine), tested, progress="Scoring")
    summary = summarise([each.score for each in measured]).to_json()
    torch.set_num_threads(config.threads)
    proofs = {each.engine: each for each in agreement(network, folder, frames, config.threads)}
    low, high = summary["intervals"]["iou"] or (None, None)
    row = {
        "network": config.network,
        "encoder": config.encoder,
        "parameters": sum(each.numel() for each in network.parameters()),
        "onnx_mb": round((folder / "model.onnx").stat().st_size / 1e6, 2),
        "iou": summary["iou"],
        "iou_low": low,
        "iou_high": high,
        **{name: summary[name] for name in ("dice", "false_positive_rate", "n")},
        "ms_torch": round(proofs[None].milliseconds, 1),
        "ms_onnxruntime": round(proofs[EngineName.ONNXRUNTIME].milliseconds, 1),
        "ms_openvino": round(proofs[EngineName.OPENVINO].milliseconds, 1),
        "differing_pixels": max(each.differing for each in proofs.values()),
    }
    write_json(done, row)
    return row


def _write_table(config: CompareConfig, rows: Sequence[dict[str, Any]]) -> None:
    """Write `comparison.json`, `.csv` and `.md`, best IoU first."""
    rows = sorted(rows, key=lambda row: -(row["iou"] or 0.0))
    write_json(config.out_dir / "comparison.json", rows)
    write_csv(config.out_dir / "comparison.csv", rows)
    note = (
        f"{config.epochs} epochs each, batches of {config.batch_size}, {config.schedule.value}, "
        f"seed {config.seed}; frames of unseen patients, on their own pixels, by ONNX Runtime; "
        f"milliseconds of the network alone, one frame, {config.threads} threads."
    )
    table = f"{Table.of(_TABLE, rows).markdown()}\n{note}\n"
    (config.out_dir / "comparison.md").write_text(table, encoding="utf-8")


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None else f" ({low:.3f} to {high:.3f})"
