"""From trained members to everything that a room of volumes ships."""

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
from msgspec import structs
from scipy import ndimage
from torch import nn

import models
from medserve.imaging.codecs import nifti
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from medserve.importing import golden
from medserve.inference.engines import load_engine
from medserve.inference.sliding_window import Predict
from medserve.inference.volume_pipeline import Prepared, VolumePipeline, VolumeSettings
from medserve.spec import EngineName, Precision
from training.core import export
from training.core.files import write_json
from training.core.fit import Fitted
from training.core.ship import install_files
from training.volumes.data import Case, LoadedCase
from training.volumes.ensemble import Ensemble
from training.volumes.evaluation import measure_cases, predict_by
from training.volumes.exemplar import LEAST_CASES, average_volume
from training.volumes.metrics import summarise
from training.volumes.module import predict_with

__all__ = [
    "EXAMPLE",
    "Agreement",
    "Shipment",
    "agreement",
    "install",
    "ship",
    "what_parts_add",
]  # fmt: skip

_log = logging.getLogger(__name__)

EXAMPLE, PHANTOM = "average.nii.gz", "phantom.nii.gz"
_LOCAL = frozenset({"data_dir", "out_dir", "init_from", "resume", "install"})
# Of logits up to 20; what counts is the label, which is compared too. Two probabilities move by no
# more than their logits, so a label may change only where the two largest lie this near: a tie.
_TOLERANCE = 2e-3
_EXAMPLE_SHAPE = (40, 56, 40)
_GOLDEN_ZOOM = (0.8, 0.75, 0.85)  # voxels of the golden input a voxel of the example
_PROVEN = 10  # volumes of about 80,000 voxels: one in a million would be seen


@dataclass(frozen=True)
class Shipment:
    """What is shipped, and where it is gathered.

    Attributes:
        pipeline: Of the room.
        members: Trained networks, averaged in this order.
        train: Cases that any of them was trained on or validated with; none of the test part.
        out_dir: Has `config.json` and `split.csv`; receives `artifact/` and `examples/`.
        fp16_weights: Whether kernels are stored in 16 bits.
    """

    pipeline: VolumePipeline
    members: Sequence[Fitted]
    train: Sequence[LoadedCase]
    out_dir: Path
    fp16_weights: bool = False

    def as_shipped(self, members: Sequence[Fitted]) -> nn.Module:
        """The network of these members whose every form is exported, compared and measured."""
        network = Ensemble([each.network for each in members]).eval()
        return export.stored_in_fp16(network) if self.fp16_weights else network


@dataclass(frozen=True)
class Agreement:
    """How far one engine's masks are from eager torch's.

    Attributes:
        engine: Which.
        voxels: Compared.
        differing: Of these with another label, where eager torch's was no tie.
        ties: Of these with another label, where the two likeliest of eager torch were alike.
        milliseconds: A volume, window by window, on the threads that were given.
    """

    engine: EngineName
    voxels: int
    differing: int
    ties: int
    milliseconds: float

    @property
    def share(self) -> float:
        """Of voxels with the same label, or with a label as likely."""
        return 1.0 - self.differing / self.voxels

    def to_json(self) -> dict[str, Any]:
        """A row of `training.json`."""
        return {
            "engine": self.engine.value,
            "voxels": self.voxels,
            "differing": self.differing,
            "ties": self.ties,
            "agreement": round(self.share, 6),
            "ms_per_volume": round(self.milliseconds, 1),
        }


def ship(shipment: Shipment, threads: int = 0) -> Path:
    """Export, prove and describe; returns the folder of the artifact.

    Whether its engines agree stands in `training.json`; `export.require_agreement` judges it.

    Raises:
        ArchiveError: an exported form gives other logits than eager torch.
    """
    folder = shipment.out_dir / "artifact"
    network = shipment.as_shipped(shipment.members)
    path = folder / "golden_input.nii.gz"
    _write_golden_input(_write_example(shipment), path)
    spec = shipment.pipeline.spec
    prepared = shipment.pipeline.prepare(golden.read_example([path], spec).volumes)
    window = shipment.pipeline.golden_window(prepared)
    windows = torch.from_numpy(np.concatenate([window, window[:, :, ::-1]]))
    exported = export.export_network(network, folder, windows, ("logits",), _TOLERANCE)
    _write_golden(network, window, folder)
    shutil.copyfile(shipment.out_dir / "split.csv", folder / "split.csv")
    _write_config(shipment, folder / "config.json")
    # Whole volumes: what counts is the label of a voxel, not the seventh digit of a logit.
    proofs = agreement(
        shipment.pipeline,
        network,
        folder,
        shipment.train[:: max(1, len(shipment.train) // _PROVEN)],
        threads,
    )
    for each in proofs:
        _log.info("%s agrees in %.4f %% of voxels", each.engine.value, 100 * each.share)
    described = {
        "members": [
            {
                "network": type(each.network).__name__,
                "parameters": sum(p.numel() for p in each.network.parameters()),
                "best_epoch": each.epoch,
                "validation_dice": round(each.score, 5),
            }
            for each in shipment.members
        ],
        "parameters": sum(each.numel() for each in network.parameters()),
        "largest_export_difference": exported.largest_difference,
        "agreement_with_eager": [each.to_json() for each in proofs],
    }
    write_json(folder / "training.json", described)
    return folder


def agreement(
    pipeline: VolumePipeline,
    network: nn.Module,
    folder: Path,
    cases: Sequence[LoadedCase],
    threads: int = 0,
) -> list[Agreement]:
    """Masks of the cases by every engine against those of eager torch, without flips."""
    options = VolumeSettings()
    prepared = [Prepared(case.image.numpy(), case.inverse) for case in cases]

    def masks(predict: Predict) -> tuple[list[npt.NDArray[np.uint8]], float]:
        started = time.perf_counter()
        found = [pipeline.segment(each, predict, options).segmentation.mask for each in prepared]
        return found, (time.perf_counter() - started) / len(cases) * 1000.0

    expected, _ = masks(predict_with(network))
    sure = [_is_no_tie(pipeline, network, each) for each in prepared]
    proofs = []
    for name in EngineName:
        engine = load_engine(name, folder, precision=Precision.F32, threads=threads)
        found, milliseconds = masks(predict_by(engine))
        others = [one != other for one, other in zip(found, expected, strict=True)]
        changed = sum(int(each.sum()) for each in others)
        differing = sum(
            int((each & no_tie).sum()) for each, no_tie in zip(others, sure, strict=True)
        )
        voxels = sum(mask.size for mask in expected)
        proofs.append(Agreement(name, voxels, differing, changed - differing, milliseconds))
    return proofs


def _is_no_tie(
    pipeline: VolumePipeline, network: nn.Module, prepared: Prepared
) -> npt.NDArray[np.bool_]:
    """Where (I, J, K) the likeliest label leads by more than engines may differ."""
    found = pipeline.segment(prepared, predict_with(network), VolumeSettings(probabilities=True))
    assert found.probabilities is not None
    second, first = np.partition(found.probabilities, -2, axis=0)[-2:]
    lead: npt.NDArray[np.bool_] = first - second > _TOLERANCE
    return lead


def what_parts_add(
    shipment: Shipment, folder: Path, cases: Sequence[Case], threads: int = 0
) -> list[dict[str, Any]]:
    """Mean Dice of the cases for each member and for all, with and without mirrored windows."""
    spec = shipment.pipeline.spec
    assert spec.volume is not None  # the pipeline was built from it
    windows = torch.rand(
        2, spec.input.channels, *spec.input.size, generator=torch.Generator().manual_seed(0)
    )
    folders = {"all members": folder}
    for n, member in enumerate(shipment.members if len(shipment.members) > 1 else ()):
        folders[f"member {n}"] = shipment.out_dir / f"member_{n}" / "artifact"
        export.export_network(
            shipment.as_shipped([member]), folders[f"member {n}"], windows, ("logits",), _TOLERANCE
        )
    rows = []
    for name, artifact in sorted(folders.items()):
        engine = load_engine(
            spec.engine.name, artifact, precision=spec.engine.precision, threads=threads
        )
        for flips in (False, True):
            volume = structs.replace(spec.volume, flips=flips)
            pipeline = VolumePipeline(structs.replace(spec, volume=volume))
            measured = measure_cases(pipeline, predict_by(engine), cases)
            dice = summarise([score for each in measured for score in each.scores]).means["dice"]
            rounded = {label: round(value, 5) for label, value in dice.items()}
            rows.append({"network": name, "flips": flips, "dice": rounded})
            _log.info("%s, flips %s: %s", name, flips, rounded)
    return rows


def install(folder: Path, out_dir: Path, name: str) -> None:
    """Copy artifact and example into the room, where packaging takes them from."""
    room = models.room(name)
    weights = [each for each in folder.iterdir() if each.is_file()]
    examples = (out_dir / "examples").glob("*.nii.gz")
    install_files({room / "weights": weights, room / "examples": examples})


def _write_example(shipment: Shipment) -> golden.GoldenVolume:
    """Write a volume that is nobody's: the average of many of one channel, or a computed one."""
    folder = shipment.out_dir / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    spec, rules = shipment.pipeline.spec, shipment.pipeline.volume
    if len(shipment.train) < LEAST_CASES or rules.channels:
        _log.warning(
            "the example is computed: an average needs %d volumes or more, of one channel",
            LEAST_CASES,
        )
        phantom = golden.computed(spec)
        (folder / PHANTOM).write_bytes(phantom.payload)
        return phantom
    volume = average_volume(shipment.train, _EXAMPLE_SHAPE, rules.spacing_mm)
    payload = nifti.encode(volume)
    (folder / EXAMPLE).write_bytes(payload)
    return golden.GoldenVolume(payload, (volume,), is_computed=False)


def _write_config(shipment: Shipment, path: Path) -> None:
    """The members' resolved settings, without the folders of the machine that trained."""
    members = []
    for member in range(len(shipment.members)):
        source = shipment.out_dir / f"member_{member}" / "config.json"
        settings = json.loads(source.read_text(encoding="utf-8"))
        members.append({name: settings[name] for name in settings if name not in _LOCAL})
    path.write_text(json.dumps({"members": members}, indent=2) + "\n", encoding="utf-8")


def _write_golden_input(example: golden.GoldenVolume, path: Path) -> None:
    """Write the example at another spacing than the network's, so that serving has to resample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if len(example.volumes) > 1:  # computed, and of another spacing already
        path.write_bytes(example.payload)
        return
    [volume] = example.volumes
    coarse = ndimage.zoom(volume.array, _GOLDEN_ZOOM, order=1)
    sides = zip(volume.geometry.shape, coarse.shape, volume.geometry.spacing_mm, strict=True)
    spacing_mm = [mm * side / fewer for side, fewer, mm in sides]
    path.write_bytes(nifti.encode(Volume(coarse, Geometry.from_spacing(coarse.shape, spacing_mm))))


def _write_golden(network: nn.Module, window: npt.NDArray[np.float32], folder: Path) -> None:
    logits = predict_with(network)(window)
    np.savez_compressed(
        folder / "golden_output.npz", logits=logits, tolerance=np.float32(_TOLERANCE)
    )
