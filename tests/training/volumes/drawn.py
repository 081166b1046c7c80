"""Labelled volumes that are computed: two touching bodies in a cloud, and a model that is tiny."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medserve.imaging.codecs import nifti
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from medserve.spec import ModelSpec

LABELS = ("background", "head", "tail")


CHANNELS = {"t1": {"kind": "z_score"}, "flair": {"kind": "percentile"}}


def tiny_spec(**volume: object) -> ModelSpec:
    """A model of volumes whose window is 16 x 24 x 16; `channels` names several."""
    channels = {"channels": 2} if "channels" in volume else {}
    return ModelSpec.from_mapping(
        {
            "minWorkers": 1,
            "maxWorkers": 1,
            "medserve": {
                "name": "segmentation_3d",
                "version": "1.0",
                "title": "Two bodies",
                "task": "volumes",
                "labels": list(LABELS),
                "input": {"kinds": ["nifti"], "size": [16, 24, 16], "min_side": 8, **channels},
                "volume": {"spacing_mm": [1.0, 1.0, 1.0], "window_batch": 2, **volume},
                "engine": {"name": "onnxruntime"},
            },
        }
    )


def case(
    seed: int, spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> tuple[Volume, npt.NDArray[np.uint8]]:
    """A volume of about 18 x 25 x 17 mm with a head before a tail, and their mask."""
    generator = np.random.default_rng(seed)
    shape = [round(mm / step) for mm, step in zip((18, 25, 17), spacing_mm, strict=True)]
    geometry = Geometry.from_spacing(shape, spacing_mm)
    places = geometry.to_world(np.moveaxis(np.indices(geometry.shape), 0, -1))
    centre = np.array((8.5, 12.0, 8.0)) + generator.uniform(-1.0, 1.0, 3)
    radii = np.array((5.0, 8.0, 5.0)) * generator.uniform(0.9, 1.1)
    inside = (((places - centre) / radii) ** 2).sum(axis=-1) < 1.0
    in_front = places[..., 1] > centre[1]
    mask = np.where(inside, np.where(in_front, 1, 2), 0).astype(np.uint8)
    bright = np.array((10.0, 70.0, 40.0))[mask] + generator.normal(0.0, 4.0, mask.shape)
    return Volume((bright * generator.uniform(1, 100)).astype(np.float32), geometry), mask


def write_channels(folder: Path, count: int, *, in_one_file: bool = False) -> Path:
    """Write cases of two channels, of which only both together tell head from tail."""
    for role in ("imagesTr", "labelsTr"):
        (folder / role).mkdir(parents=True)
    for n in range(count):
        volume, mask = case(n)
        generator = np.random.default_rng(100 + n)
        shown = [(mask == label) * 80.0 for label in (1, 2)]
        maps = np.stack([each + generator.normal(20.0, 4.0, mask.shape) for each in shown])
        maps = maps.astype(np.float32)
        (folder / f"labelsTr/case_{n:02d}.nii.gz").write_bytes(
            nifti.encode(Volume(mask, volume.geometry))
        )
        if in_one_file:
            payload = nifti.encode_maps(maps, ("t1", "flair"), volume)
            (folder / f"imagesTr/case_{n:02d}.nii.gz").write_bytes(payload)
            continue
        for number, each in enumerate(maps):
            payload = nifti.encode(Volume(each, volume.geometry))
            (folder / f"imagesTr/case_{n:02d}_{number:04d}.nii.gz").write_bytes(payload)
    listed = {"channel_names": {"0": "t1", "1": "flair"}, "file_ending": ".nii.gz",
              "labels": {"background": 0, "head": 1, "tail": 2}, "numTraining": count}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(listed), encoding="utf-8")
    return folder


def write_folder(
    folder: Path,
    count: int,
    *,
    names: tuple[str, str] = ("imagesTr", "labelsTr"),
    suffix: str = ".nii.gz",
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Path:
    """`count` cases in a pair of folders, with a `dataset.json` where these are a Decathlon's."""
    for role in names:
        (folder / role).mkdir(parents=True)
    for n in range(count):
        volume, mask = case(n, spacing_mm)
        masks = mask.astype(np.float32 if n % 2 else np.uint8)  # sets have both
        compress = suffix.endswith(".gz")
        for role, array in zip(names, (volume.array, masks), strict=True):
            payload = nifti.encode(Volume(array, volume.geometry), compress=compress)
            (folder / role / f"case_{n:02d}{suffix}").write_bytes(payload)
    if names[0] == "imagesTr":
        listed = [
            {
                role: f"./{names[k]}/case_{n:02d}{suffix}"
                for k, role in enumerate(("image", "label"))
            }
            for n in range(count)
        ]
        content = {"labels": {"0": "background", "1": "Head", "2": "Tail"}, "training": listed}
        (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
