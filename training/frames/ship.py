"""From trained networks to everything that a room of frames ships, proven equal on the way."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as pillow
from torch import nn

import models
from medserve.imaging.codecs import raster
from medserve.inference.engines import load_engine
from medserve.inference.frame_pipeline import FramePipeline, PredictFrames
from medserve.spec import EngineName, Precision
from simulation.simulate import simulate_frame
from training.core import export
from training.core.files import write_json
from training.core.fit import Fitted
from training.core.ship import install_files
from training.frames.data import LoadedFrame
from training.frames.ensemble import FrameEnsemble
from training.frames.evaluation import predict_by
from training.frames.module import predict_with

__all__ = ["EXAMPLE", "Agreement", "Shipment", "agreement", "install", "ship"]

_log = logging.getLogger(__name__)

EXAMPLE = "simulated.png"
# Settings that name folders of the machine that trained.
_LOCAL = frozenset(
    {"data_dir", "out_dir", "model_config", "encoder_weights", "resume", "install", "variant"}
)
_EXAMPLE_SEED = 1_000_003  # far from the seeds that sets count up from 0
_TOLERANCE = 2e-3  # of logits up to 20; what counts is the mask, which is compared too
_PROVEN = 16  # frames of at least 65,000 pixels
_TIMED = 5  # of them; the median counts


@dataclass(frozen=True)
class Shipment:
    """What is shipped, and where it is gathered.

    Attributes:
        pipeline: Of the model.
        members: Trained networks, averaged in this order.
        frames: Of the training, on which engines are compared; none of the test part.
        model_config: The file that describes the model.
        out_dir: Has `config.json` and `split.csv`; receives `artifact/` and `examples/`.
        fp16_weights: Whether kernels are stored in 16 bits.
    """

    pipeline: FramePipeline
    members: Sequence[Fitted]
    frames: Sequence[LoadedFrame]
    model_config: Path
    out_dir: Path
    fp16_weights: bool = False


@dataclass(frozen=True)
class Agreement:
    """How far one engine's masks are from eager torch's, on the network's pixels.

    Attributes:
        engine: Which; None is eager torch itself.
        pixels: Compared.
        differing: Of these, inside for one and outside for the other, where eager torch's logit was
            no tie: further from 0 than engines may differ.
        largest: Difference of two logits.
        milliseconds: A frame alone through the network, on the threads that were given.
    """

    engine: EngineName | None
    pixels: int
    differing: int
    largest: float
    milliseconds: float

    @property
    def share(self) -> float:
        """Of pixels that are alike."""
        return 1.0 - self.differing / self.pixels

    def to_json(self) -> dict[str, Any]:
        """A row of the parity report."""
        return {
            "engine": "eager torch" if self.engine is None else self.engine.value,
            "pixels": self.pixels,
            "differing": self.differing,
            "largest_logit_difference": float(f"{self.largest:.2g}"),
            "ms_per_frame": round(self.milliseconds, 1),
        }


def ship(shipment: Shipment, threads: int = 0) -> Path:
    """Export, prove and describe; returns the folder of the artifact.

    Whether its engines agree stands in `training.json`; `export.require_agreement` judges it.

    Raises:
        ArchiveError: an exported form gives other logits than eager torch.
    """
    folder, pipeline = shipment.out_dir / "artifact", shipment.pipeline
    network: nn.Module = FrameEnsemble([each.network for each in shipment.members]).eval()
    if shipment.fp16_weights:
        network = export.stored_in_fp16(network)
    golden = _write_example(shipment)
    planes = np.concatenate([golden, golden[..., ::-1]])
    exported = export.export_network(
        network, folder, torch.from_numpy(planes), ("logits",), _TOLERANCE
    )
    shutil.copyfile(shipment.out_dir / "examples" / EXAMPLE, folder / "golden_input.png")
    logits = predict_with(network)(golden)
    np.savez_compressed(
        folder / "golden_output.npz", logits=logits, tolerance=np.float32(_TOLERANCE)
    )
    shutil.copyfile(shipment.out_dir / "split.csv", folder / "split.csv")
    settings = json.loads((shipment.out_dir / "config.json").read_text(encoding="utf-8"))
    shipped = {name: value for name, value in settings.items() if name not in _LOCAL}
    write_json(folder / "config.json", shipped)
    shutil.copyfile(shipment.model_config, folder / "model-config.yaml")
    proofs = agreement(
        network, folder, shipment.frames[:: max(1, len(shipment.frames) // _PROVEN)], threads
    )
    described = {
        "network_size": list(pipeline.size),
        "members": [
            {
                "parameters": sum(p.numel() for p in each.network.parameters()),
                "best_epoch": each.epoch,
                "validation_iou": round(each.score, 5),
            }
            for each in shipment.members
        ],
        "parameters": sum(each.numel() for each in network.parameters()),
        "largest_export_difference": exported.largest_difference,
        "parity": [each.to_json() for each in proofs],
    }
    write_json(folder / "training.json", described)
    return folder


def agreement(
    network: nn.Module, folder: Path, frames: Sequence[LoadedFrame], threads: int = 0
) -> list[Agreement]:
    """Masks of some frames by eager torch and by every engine, and how long each takes."""
    planes = np.stack([each.plane for each in frames]).astype(np.float32)[:, np.newaxis]
    expected, milliseconds = _timed(predict_with(network), planes)
    proofs = [Agreement(None, expected.size, 0, 0.0, milliseconds)]
    for name in EngineName:
        engine = load_engine(name, folder, precision=Precision.F32, threads=threads)
        logits, milliseconds = _timed(predict_by(engine), planes)
        differs = ((logits >= 0) != (expected >= 0)) & (np.abs(expected) > _TOLERANCE)
        differing = int(np.count_nonzero(differs))
        largest = float(np.abs(logits - expected).max())
        proofs.append(Agreement(name, expected.size, differing, largest, milliseconds))
        _log.info("%s: %d of %d pixels differ", name.value, differing, expected.size)
    return proofs


def _timed(
    predict: PredictFrames, planes: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], float]:
    """Logits of planes one by one, and the median milliseconds of the last few."""
    answers, seconds = [], []
    for plane in planes:
        started = time.perf_counter()
        answers.append(predict(plane[np.newaxis]))
        seconds.append(time.perf_counter() - started)
    return np.concatenate(answers), 1000.0 * float(np.median(seconds[-_TIMED:]))


def install(folder: Path, out_dir: Path, name: str, variant: str = "") -> None:
    """Copy artifact and example into the room, where packaging takes them from.

    The model's own configuration stays as it is: a folder becomes a room by it, once card and
    weights are there. A variant has the examples of its room.
    """
    room = Path(models.__file__).parent / name
    left_out = {"model-config.yaml", "training.json"}
    weights = [each for each in folder.iterdir() if each.name not in left_out]
    if variant:
        install_files({room / "variants" / variant / "weights": weights})
        return
    install_files({room / "weights": weights, room / "examples": [out_dir / "examples" / EXAMPLE]})


def _write_example(shipment: Shipment) -> npt.NDArray[np.float32]:
    """A simulated frame, which is nobody's, as a picture and as the network sees it."""
    folder = shipment.out_dir / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    frame = simulate_frame(_EXAMPLE_SEED)
    pillow.fromarray(frame.image, mode="L").save(folder / EXAMPLE, optimize=True)
    payload = (folder / EXAMPLE).read_bytes()
    image = raster.decode(payload, shipment.pipeline.spec.input)
    return shipment.pipeline.prepare(image).plane[np.newaxis]
