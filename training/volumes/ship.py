"""From trained members to everything that a room of volumes ships."""

from __future__ import annotations

import logging
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

from medserve.imaging.codecs import nifti
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from medserve.importing import golden
from medserve.inference.engines import load_engine
from medserve.inference.volume_pipeline import Prepared, VolumePipeline, VolumeSettings
from medserve.spec import EngineName, Precision
from training.core.evaluation import Predict, predict_by, predict_with
from training.core.export import export_network
from training.core.files import write_json
from training.core.ship import TOLERANCE, Shipment, describe, export_masks, shipped_settings
from training.volumes.data import Case, LoadedCase
from training.volumes.evaluation import measure_cases
from training.volumes.exemplar import LEAST_CASES, average_volume
from training.volumes.metrics import summarise
from training.volumes.module import SCORE

__all__ = ["EXAMPLE", "Agreement", "VolumeShipment", "agreement", "ship", "what_parts_add"]

_log = logging.getLogger(__name__)

EXAMPLE, PHANTOM = "average.nii.gz", "phantom.nii.gz"
_EXAMPLE_SHAPE = (40, 56, 40)
_GOLDEN_ZOOM = (0.8, 0.75, 0.85)  # voxels of the golden input a voxel of the example
_PROVEN = 10  # volumes of about 80,000 voxels: one in a million would be seen

VolumeShipment = Shipment[VolumePipeline, LoadedCase]


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


def ship(shipment: VolumeShipment, threads: int = 0) -> dict[str, Any]:
    """Export, prove and describe; returns what `training.json` says of the artifact.

    Whether its engines agree stands there; `export.require_agreement` judges it.

    Raises:
        ArchiveError: an exported form gives other logits than eager torch.
    """
    folder, pipeline = shipment.out_dir / "artifact", shipment.pipeline
    network = shipment.as_shipped(shipment.members)
    path = folder / "golden_input.nii.gz"
    _write_golden_input(_write_example(shipment), path)
    window = pipeline.golden_window(
        pipeline.prepare(golden.read_example([path], pipeline.spec).volumes)
    )
    exported = export_masks(network, folder, window, shipment.out_dir / "split.csv")
    members = [shipment.out_dir / f"member_{n}" for n in range(len(shipment.members))]
    settings = [shipped_settings(each) for each in members]
    write_json(folder / "config.json", {"members": settings})
    # Whole volumes: what counts is the label of a voxel, not the seventh digit of a logit.
    proofs = agreement(pipeline, network, folder, shipment.proven(_PROVEN), threads)
    for each in proofs:
        _log.info("%s agrees in %.4f %% of voxels", each.engine.value, 100 * each.share)
    return describe(
        folder, network, shipment.members, SCORE.name,
        largest_export_difference=exported.largest_difference,
        agreement_with_eager=[each.to_json() for each in proofs],
    )  # fmt: skip


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
    lead: npt.NDArray[np.bool_] = first - second > TOLERANCE
    return lead


def what_parts_add(
    shipment: VolumeShipment, cases: Sequence[Case], threads: int = 0
) -> list[dict[str, Any]]:
    """Mean Dice of the cases for each member and for all, with and without mirrored windows."""
    spec = shipment.pipeline.spec
    assert spec.volume is not None  # the pipeline was built from it
    windows = torch.rand(
        2, spec.input.channels, *spec.input.size, generator=torch.Generator().manual_seed(0)
    )
    folders = {"all members": shipment.out_dir / "artifact"}
    for n, member in enumerate(shipment.members if len(shipment.members) > 1 else ()):
        folders[f"member {n}"] = shipment.out_dir / f"member_{n}" / "artifact"
        network = shipment.as_shipped([member])
        export_network(network, folders[f"member {n}"], windows, ("logits",), TOLERANCE)
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


def _write_example(shipment: VolumeShipment) -> golden.GoldenVolume:
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
