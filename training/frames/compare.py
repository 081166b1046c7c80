r"""Train several networks and encoders under one budget and put the results into one table.

    python -m training.trus_prostate compare --data-dir data/trus --epochs 6 \
        --networks fpn:mobilenet_v2,fpn:tu-regnetx_002,fpn:resnet152,unet:resnet18,segformer:mit_b0

Equal for all: frames, split, loss, augmentation, optimiser, schedule, batch, epochs and seed.
Scored on patients that no training saw, through the exported ONNX file and the code of serving,
on the frames' own pixels. Milliseconds are those of the network alone, a frame at a time.

A network that is done is not trained again: the same command goes on after an interruption.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import lightning
import torch

import models
from medserve.errors import ConfigError
from medserve.inference.engines import load_engine
from medserve.inference.frame_pipeline import FramePipeline
from medserve.spec import EngineName, ModelSpec, Precision
from models.trus_prostate.network import ENCODERS, NetworkName, build
from training.core.config import Setting, write
from training.core.export import export_network
from training.core.files import require_folder
from training.core.split import Split, write_split
from training.frames.config import FrameConfig, Schedule
from training.frames.data import (
    FrameCase,
    LoadedFrame,
    find_frames,
    load_frames,
    mask_shares,
    split_frames,
)
from training.frames.ensemble import FrameEnsemble
from training.frames.evaluation import measure_frames, predict_by
from training.frames.fit import fit_frames
from training.frames.module import FrameSegmenter, collate
from training.frames.scores import summarise
from training.frames.ship import agreement

__all__ = ["CompareConfig", "compare"]

_log = logging.getLogger(__name__)

_COLUMNS = (
    "network", "encoder", "parameters", "onnx_mb", "iou", "iou_low", "iou_high", "dice",
    "false_positive_rate", "n", "ms_torch", "ms_onnxruntime", "ms_openvino", "differing_pixels",
)  # fmt: skip
_RESULT = "result.json"
_TOLERANCE = 5e-3  # of the logits of networks that were hardly trained
_PROVEN = 8  # frames


@dataclass(frozen=True)
class CompareConfig(FrameConfig):
    """Compare networks and encoders under one equal budget."""

    data_dir: Annotated[Path, Setting("folder with the folders images and masks")] = Path(
        "data/trus"
    )
    out_dir: Annotated[Path, Setting("folder for a folder per network and the table")] = Path(
        "runs/trus_compare"
    )
    model_config: Annotated[
        Path | None, Setting("model-config.yaml with size, crop and filter, if not the room's")
    ] = None
    networks: Annotated[
        str, Setting("pairs network:encoder, commas between; no encoder: the light one")
    ] = "fpn,unet,segformer"
    schedule: Annotated[Schedule, Setting("of the learning rate")] = Schedule.ONE_CYCLE
    epochs: Annotated[int, Setting("passes over the training frames, for each", minimum=1)] = 10
    threads: Annotated[int, Setting("of training and engines", minimum=1)] = 2


def compare(config: CompareConfig) -> None:
    """Train what is not trained yet, then write the table of all that is."""
    wanted = _networks(config.networks)
    path = config.model_config or models.room("trus_prostate") / "model-config.yaml"
    pipeline = FramePipeline(ModelSpec.from_file(path))
    cases = find_frames(require_folder(config.data_dir, "--data-dir"))
    split = split_frames(cases, mask_shares(cases), config.folds, config.test_share, config.seed)
    if not split.test:
        raise ConfigError("expected a --test-share above 0: networks are scored on unseen patients")
    write(config, config.out_dir / "config.json")
    write_split(config.out_dir / "split.csv", split)
    used = [case for case in cases if case.name not in split.test]
    loaded = {each.case.name: each for each in load_frames(used, pipeline)}
    tested = [case for case in cases if case.name in split.test]
    rows = []
    for name, encoder in wanted:
        one = dataclasses.replace(
            config, network=name, encoder=encoder,
            out_dir=config.out_dir / f"{name.value}_{encoder}".replace("/", "_"),
        )  # fmt: skip
        rows.append(_row(one, pipeline, split, loaded, tested))
        _write_table(config, rows)


def _networks(text: str) -> list[tuple[NetworkName, str]]:
    chosen = []
    for part in text.split(","):
        name, _, encoder = part.strip().partition(":")
        if name not in set(NetworkName):
            raise ConfigError(
                f"expected --networks out of {', '.join(NetworkName)}, each with :ENCODER or "
                f"without, got {part.strip()!r}"
            )
        chosen.append((NetworkName(name), encoder or ENCODERS[NetworkName(name)]))
    return chosen


def _row(
    config: CompareConfig,
    pipeline: FramePipeline,
    split: Split,
    loaded: dict[str, LoadedFrame],
    tested: list[FrameCase],
) -> dict[str, Any]:
    """Train, export and score one network, or read what a run before this found."""
    done = config.out_dir / _RESULT
    if done.is_file():
        row: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return row
    _log.info("%s with %s", config.network.value, config.encoder)
    lightning.seed_everything(config.seed, verbose=False)
    spec = pipeline.spec
    network = build(
        config.network, spec.input.channels, len(spec.labels), config.encoder, config.size,
        config.dropout,
    )  # fmt: skip
    module = FrameSegmenter(network, config, pipeline.frame.threshold)
    parts = split.parts(0)
    fitted = fit_frames(
        module, [loaded[each] for each in parts["train"]],
        [loaded[each] for each in parts["validation"]], config.out_dir,
    )  # fmt: skip
    folder = config.out_dir / "artifact"
    frames = [loaded[name] for name in parts["validation"][:_PROVEN]]
    example, _ = collate([*frames, *frames][:2])  # one frame alone is twice itself
    artifact = FrameEnsemble([fitted.network]).eval()  # the exporter goes by its input's name
    export_network(artifact, folder, example, ("logits",), _TOLERANCE)
    engine = load_engine(
        EngineName.ONNXRUNTIME, folder, precision=Precision.F32, threads=config.threads
    )
    measured = measure_frames(pipeline, predict_by(engine), tested, progress="Scoring")
    summary = summarise([each.score for each in measured]).to_json()
    torch.set_num_threads(config.threads)
    proofs = {each.engine: each for each in agreement(fitted.network, folder, frames,
                                                      config.threads)}  # fmt: skip
    low, high = summary["intervals"]["iou"] or (None, None)
    row = {
        "network": config.network.value,
        "encoder": config.encoder,
        "parameters": sum(each.numel() for each in fitted.network.parameters()),
        "onnx_mb": round((folder / "model.onnx").stat().st_size / 1e6, 2),
        "iou_low": low,
        "iou_high": high,
        **{name: summary[name] for name in ("iou", "dice", "false_positive_rate", "n")},
        "ms_torch": round(proofs[None].milliseconds, 1),
        "ms_onnxruntime": round(proofs[EngineName.ONNXRUNTIME].milliseconds, 1),
        "ms_openvino": round(proofs[EngineName.OPENVINO].milliseconds, 1),
        "differing_pixels": max(each.differing for each in proofs.values()),
    }
    done.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
    return row


def _write_table(config: CompareConfig, rows: list[dict[str, Any]]) -> None:
    """`comparison.json`, `.csv` and `.md`, best IoU first."""
    rows = sorted(rows, key=lambda row: -(row["iou"] or 0.0))
    folder = config.out_dir
    (folder / "comparison.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    with (folder / "comparison.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    lines = [
        "| network | encoder | IoU (95 %) | Dice | parameters | ONNX MB | ms torch | "
        "ms ONNX Runtime | ms OpenVINO |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        interval = "" if row["iou_low"] is None else (
            f" ({row['iou_low']:.3f} to {row['iou_high']:.3f})"
        )  # fmt: skip
        iou, dice = ("-" if row[name] is None else f"{row[name]:.4f}" for name in ("iou", "dice"))
        lines.append(
            f"| `{row['network']}` | `{row['encoder']}` | {iou}{interval} | {dice} | "
            f"{row['parameters'] / 1e6:.2f} M | {row['onnx_mb']:.1f} | {row['ms_torch']:.0f} | "
            f"{row['ms_onnxruntime']:.0f} | {row['ms_openvino']:.0f} |"
        )
    lines.append("")
    lines.append(
        f"{config.epochs} epochs each, batches of {config.batch_size}, {config.schedule.value}, "
        f"seed {config.seed}; frames of unseen patients, on their own pixels, by ONNX Runtime; "
        f"milliseconds of the network alone, one frame, {config.threads} threads."
    )
    (folder / "comparison.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
