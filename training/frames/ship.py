"""From trained networks to everything that a room of frames ships, proven equal on the way."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as pillow
from torch import nn

from medserve.imaging.codecs import raster
from medserve.inference.engines import load_engine
from medserve.inference.frame_pipeline import FramePipeline
from medserve.spec import EngineName, Precision
from simulation.simulate import simulate_frame
from training.core.evaluation import Predict, predict_by, predict_with
from training.core.files import write_json
from training.core.ship import TOLERANCE, Shipment, describe, export_masks, shipped_settings
from training.frames.data import LoadedFrame
from training.frames.module import SCORE

__all__ = ["EXAMPLE", "Agreement", "FrameShipment", "agreement", "ship"]

_log = logging.getLogger(__name__)

EXAMPLE = "simulated.png"
_EXAMPLE_SEED = 1_000_003  # far from the seeds that sets count up from 0
_EXAMPLES = 24  # frames that are looked at
_PROVEN = 16  # frames of at least 65,000 pixels
_TIMED = 5  # of them; the median counts

FrameShipment = Shipment[FramePipeline, LoadedFrame]


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


def ship(shipment: FrameShipment, model_config: Path, threads: int = 0) -> dict[str, Any]:
    """Export, prove and describe; returns what `training.json` says of the artifact.

    Whether its engines agree stands there; `export.require_agreement` judges it.

    Raises:
        ArchiveError: an exported form gives other logits than eager torch.
    """
    folder = shipment.out_dir / "artifact"
    network = shipment.as_shipped(shipment.members)
    plane = _write_example(shipment, predict_with(network))
    exported = export_masks(network, folder, plane, shipment.out_dir / "split.csv")
    shutil.copyfile(shipment.out_dir / "examples" / EXAMPLE, folder / "golden_input.png")
    write_json(folder / "config.json", shipped_settings(shipment.out_dir))
    shutil.copyfile(model_config, folder / "model-config.yaml")
    proofs = agreement(network, folder, shipment.proven(_PROVEN), threads)
    return describe(
        folder, network, shipment.members, SCORE.name,
        network_size=list(shipment.pipeline.size),
        largest_export_difference=exported.largest_difference,
        parity=[each.to_json() for each in proofs],
    )  # fmt: skip


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
        differs = ((logits >= 0) != (expected >= 0)) & (np.abs(expected) > TOLERANCE)
        differing = int(np.count_nonzero(differs))
        largest = float(np.abs(logits - expected).max())
        proofs.append(Agreement(name, expected.size, differing, largest, milliseconds))
        _log.info("%s: %d of %d pixels differ", name.value, differing, expected.size)
    return proofs


def _timed(
    predict: Predict, planes: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], float]:
    """Logits of planes one by one, and the median milliseconds of the last few."""
    answers, seconds = [], []
    for plane in planes:
        started = time.perf_counter()
        answers.append(predict(plane[np.newaxis]))
        seconds.append(time.perf_counter() - started)
    return np.concatenate(answers), 1000.0 * float(np.median(seconds[-_TIMED:]))


def _write_example(shipment: FrameShipment, predict: Predict) -> npt.NDArray[np.float32]:
    """A simulated frame, which is nobody's, as a picture and as the network sees it.

    The first in which the network finds something, as an empty mask would prove little; of a few
    that are all empty, the first of all.
    """
    path = shipment.out_dir / "examples" / EXAMPLE
    path.parent.mkdir(parents=True, exist_ok=True)
    for seed in (*range(_EXAMPLE_SEED, _EXAMPLE_SEED + _EXAMPLES), _EXAMPLE_SEED):
        pillow.fromarray(simulate_frame(seed).image, mode="L").save(path, optimize=True)
        image = raster.decode(path.read_bytes(), shipment.pipeline.spec.input)
        plane = shipment.pipeline.prepare(image).plane[np.newaxis]
        if (predict(plane) >= 0).any():
            break
    return plane
