"""Tiny folders as nnU-Net v2 leaves them after training, with seeded weights, and volumes for them.

Nothing is trained: a network of random weights tells grids, orders and roundings apart better than
a good one, for its scores lie close together everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from medserve.imaging.codecs import nifti
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from medserve.importing.nnunet_networks import build_network
from tests.volume_phantoms import oblique

__all__ = ["CASES", "TrainedCase", "write_case", "write_folder"]

_CLASSES = "dynamic_network_architectures.architectures.unet."


@dataclass(frozen=True)
class TrainedCase:
    """What a folder was trained for, and a volume that shows its rules.

    Attributes:
        shape: Voxels (i, j, k) of the volume, as stored.
        spacing_mm: Of the volume, along its axes.
        spacing: Of the configuration, in the order of nnU-Net's axes.
        patch: Sides of the network's input, in that order.
        channels: Name -> scheme of normalisation.
        labels: As in `dataset.json`.
        regions_class_order: As in `dataset.json`; empty for labels that exclude each other.
        by_mask: Whether the z-score counts the voxels that are not 0.
        mirror_axes: As in the checkpoint.
        folds: Which were trained.
        residual: Whether the encoder is residual.
        transpose: As in the plans.
        is_oblique: Whether the volume's grid is.
        rim: Voxels of 0 around the image.
        features: Of each stage of the network.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    spacing: Sequence[float]
    patch: Sequence[int]
    channels: Mapping[str, str] = field(default_factory=lambda: {"MR": "ZScoreNormalization"})
    labels: Mapping[str, Any] = field(
        default_factory=lambda: {"background": 0, "liver": 1, "tumour": 2}
    )
    regions_class_order: Sequence[int] = ()
    by_mask: bool = False
    mirror_axes: tuple[int, ...] | None = None
    folds: Sequence[str] = ("0",)
    residual: bool = False
    transpose: Sequence[int] = (0, 1, 2)
    is_oblique: bool = False
    rim: int = 0
    features: Sequence[int] = (6, 12, 16)


CASES: Mapping[str, TrainedCase] = {
    "isotropic": TrainedCase(
        (44, 40, 36), (1.1, 1.1, 1.1), (1.5, 1.5, 1.5), (24, 24, 24), mirror_axes=(0, 1, 2)
    ),
    "thick slices of CT": TrainedCase(
        (50, 46, 14), (0.8, 0.8, 5.0), (4.5, 1.0, 1.0), (8, 24, 24), {"CT": "CTNormalization"},
        mirror_axes=(0, 1, 2),
    ),
    "two channels, cropped": TrainedCase(
        (40, 44, 38), (1.2, 1.0, 1.4), (1.2, 1.2, 1.2), (24, 24, 24),
        {"T1": "ZScoreNormalization", "T2": "ZScoreNormalization"}, by_mask=True, rim=5,
    ),
    "regions": TrainedCase(
        (36, 34, 30), (1.3, 1.3, 1.3), (1.5, 1.5, 1.5), (24, 24, 24),
        labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
        regions_class_order=(1, 2, 3), mirror_axes=(1, 2),
    ),
    "planes": TrainedCase((46, 42, 9), (1.0, 1.2, 3.0), (1.5, 1.5), (24, 24), mirror_axes=(0, 1)),
    "five folds, transposed, oblique": TrainedCase(
        (34, 30, 38), (1.4, 1.2, 1.1), (1.6, 1.5, 1.4), (16, 24, 24), mirror_axes=(0, 1, 2),
        folds=("0", "1", "2", "3", "4"), residual=True, transpose=(2, 0, 1), is_oblique=True,
    ),
    "fold all": TrainedCase(
        (40, 36, 32), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (24, 24, 24), folds=("all",)
    ),
}  # fmt: skip


def write_folder(path: Path, case: TrainedCase) -> Path:
    """Write `plans.json`, `dataset.json` and the checkpoints; return the folder."""
    path.mkdir(parents=True)
    configuration = "2d" if len(case.patch) == 2 else "3d_fullres"
    plans, dataset = _plans(case, configuration), _dataset(case)
    (path / "plans.json").write_text(json.dumps(plans, indent=1))
    (path / "dataset.json").write_text(json.dumps(dataset, indent=1))
    classes = len(case.labels) - bool(case.regions_class_order)
    architecture = plans["configurations"][configuration]["architecture"]
    for number, fold in enumerate(case.folds):
        torch.manual_seed(11 + number)
        network = build_network(architecture, len(case.channels), classes)
        content = {
            "network_weights": network.state_dict(),
            "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
            "grad_scaler_state": None,
            "logging": {"mean_fg_dice": [np.float64(0.5)], "ema_fg_dice": [np.float32(0.5)]},
            "_best_ema": np.float64(0.5),
            "current_epoch": 1000,
            "init_args": {
                "plans": plans, "configuration": configuration, "fold": number,
                "dataset_json": dataset,
            },
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": case.mirror_axes,
        }  # fmt: skip
        (path / f"fold_{fold}").mkdir()
        torch.save(content, path / f"fold_{fold}" / "checkpoint_final.pth")
    return path


def write_case(folder: Path, case: TrainedCase) -> list[Path]:
    """Write a volume as nnU-Net wants it: one file a channel, `_0000` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    geometry = (
        oblique(case.shape, case.spacing_mm)
        if case.is_oblique
        else Geometry.from_spacing(case.shape, case.spacing_mm)
    )
    files = []
    for number in range(len(case.channels)):
        volume = Volume(_image(case, seed=number), geometry)
        files.append(folder / f"case_{number:04d}.nii.gz")
        files[-1].write_bytes(nifti.encode(volume))
    return files


def _image(case: TrainedCase, seed: int) -> npt.NDArray[np.int16]:
    """Smooth blobs with noise on them, and a rim of 0."""
    random = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in case.shape), indexing="ij"))
    image = np.zeros(case.shape)
    for _ in range(6):
        centre = random.uniform(-0.7, 0.7, (3, 1, 1, 1))
        image += random.uniform(-300, 500) * np.exp(-(((places - centre) / 0.35) ** 2).sum(axis=0))
    image += random.normal(100, 40, case.shape)
    image[image == 0] = 1
    stored = np.asarray(image.round(), dtype=np.int16)
    if case.rim:
        rim = case.rim
        inner = np.zeros_like(stored)
        inner[rim:-rim, rim + 1 : -rim, rim:] = stored[rim:-rim, rim + 1 : -rim, rim:]
        inner[rim + 4 : rim + 6, rim + 6 : rim + 8, rim + 8 : rim + 10] = 0  # a hole inside
        stored = inner
    return stored


def _dataset(case: TrainedCase) -> dict[str, Any]:
    content: dict[str, Any] = {
        "channel_names": {str(number): name for number, name in enumerate(case.channels)},
        "labels": dict(case.labels),
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    if case.regions_class_order:
        content["regions_class_order"] = list(case.regions_class_order)
    return content


def _plans(case: TrainedCase, configuration: str) -> dict[str, Any]:
    dimensions = len(case.patch)
    stages = len(case.features)
    strides = [[1] * dimensions, [1 if side < 16 else 2 for side in case.patch]]
    strides += [[2] * dimensions] * (stages - 2)
    depth = "n_blocks_per_stage" if case.residual else "n_conv_per_stage"
    arguments = {
        "n_stages": stages,
        "features_per_stage": list(case.features),
        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
        "kernel_sizes": [[3] * dimensions] * stages,
        "strides": strides,
        depth: [1] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    network = "ResidualEncoderUNet" if case.residual else "PlainConvUNet"
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    name = "resample_data_or_seg_to_shape"
    back = [list(case.transpose).index(axis) for axis in range(3)]
    figures = {
        "mean": 120.0, "median": 100.0, "std": 90.0, "min": -900.0, "max": 1500.0,
        "percentile_00_5": -80.0, "percentile_99_5": 420.0,
    }  # fmt: skip
    return {
        "dataset_name": "Dataset007_Tiny",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [40, 40, 40],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(case.transpose),
        "transpose_backward": back,
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(number): figures for number in range(len(case.channels))
        },
        "configurations": {
            configuration: {
                "data_identifier": f"nnUNetPlans_{configuration}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(case.patch),
                "median_image_size_in_voxels": [float(side) for side in case.patch],
                "spacing": list(case.spacing),
                "normalization_schemes": list(case.channels.values()),
                "use_mask_for_norm": [case.by_mask] * len(case.channels),
                "resampling_fn_data": name,
                "resampling_fn_seg": name,
                "resampling_fn_data_kwargs": resampling,
                "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
                "resampling_fn_probabilities": name,
                "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
                "architecture": {
                    "network_class_name": f"{_CLASSES}{network}",
                    "arch_kwargs": arguments,
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
            }
        },
    }
