"""Tiny MONAI bundles with seeded weights, and volumes for them, after the shapes of the model zoo.

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
import yaml

from medserve.imaging.codecs import nifti
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from tests.volume_phantoms import oblique

__all__ = ["CASES", "BundleCase", "monai_mask", "write_bundle", "write_case"]

_Transform = dict[str, Any]


def _before(name: str, **arguments: Any) -> _Transform:
    return {"_target_": name, "keys": "@image_key", **arguments}


def _after(name: str, **arguments: Any) -> _Transform:
    return {"_target_": name, "keys": "pred", **arguments}


def _invert(*, nearest: bool = False) -> _Transform:
    return _after(
        "Invertd", transform="@preprocessing", orig_keys="@image_key", nearest_interp=nearest,
        to_tensor=True,
    )  # fmt: skip


def _windows(*size: int, **arguments: Any) -> dict[str, Any]:
    return {
        "_target_": "SlidingWindowInferer", "roi_size": list(size), "sw_batch_size": 2,
        "overlap": 0.5, **arguments,
    }  # fmt: skip


_SOFTMAX = _after("Activationsd", softmax=True)
_ARGMAX = _after("AsDiscreted", argmax=True)
_PROBABILITIES_BACK = (_SOFTMAX, _invert(), _ARGMAX)
_CHANNELS_FIRST = _before("EnsureChannelFirstd")
_CT_WINDOW = _before("ScaleIntensityRanged", a_min=-57, a_max=164, b_min=0, b_max=1, clip=True)
_TUMOUR_RULES = (
    "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, "
    "torch.where(x[[1]] > 0, 2, 0)))"
)


def _unet(classes: int, dimensions: int = 3) -> dict[str, Any]:
    return {
        "_target_": "UNet", "spatial_dims": dimensions, "in_channels": 1,
        "out_channels": classes, "channels": [4, 8, 16], "strides": [2, 2], "num_res_units": 1,
        "norm": "batch",
    }  # fmt: skip


@dataclass(frozen=True)
class BundleCase:
    """A bundle and a volume that shows its rules.

    Attributes:
        shape: Voxels (i, j, k) of the volume.
        spacing_mm: Of the volume, along its axes.
        before: Transforms after loading.
        after: Transforms of the scores.
        network: Its description.
        inferer: Its description.
        channels: Of the image.
        grid: Whether the volume's grid is `straight`, `oblique` or `sheared`.
        rim: Voxels of 0 around the image.
        labels: Names of the network's channels.
        as_yaml: Whether the configuration is YAML.
        as_script: Whether the weights lie in a file of TorchScript alone.
        extra: Further keys at the top of the configuration.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    before: Sequence[_Transform]
    after: Sequence[_Transform]
    network: Mapping[str, Any]
    inferer: Mapping[str, Any]
    channels: int = 1
    grid: str = "straight"
    rim: int = 0
    labels: Sequence[str] = ("background", "spleen")
    as_yaml: bool = False
    as_script: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


_SPLEEN = BundleCase(
    (60, 50, 24), (0.8, 0.9, 2.5),
    (
        _CHANNELS_FIRST, _before("Orientationd", axcodes="RAS"),
        _before("Spacingd", pixdim=[1.5, 1.5, 2.0], mode="bilinear"), _CT_WINDOW,
        _before("EnsureTyped"),
    ),
    _PROBABILITIES_BACK, _unet(2), _windows(16, 16, 16), grid="oblique",
)  # fmt: skip

CASES: Mapping[str, BundleCase] = {
    "spleen": _SPLEEN,
    "spleen, Gaussian": BundleCase(
        (52, 40, 26), (0.9, 0.8, 3.0),
        (
            _CHANNELS_FIRST, _before("Orientationd", axcodes="LPS"),
            _before("Spacingd", pixdim="$[1.5, 1.5, 2.0] if @fine else [3.0, 3.0, 3.0]"),
            _CT_WINDOW,
        ),
        _PROBABILITIES_BACK, _unet(3), _windows(16, 24, 16, overlap=0.625, mode="gaussian"),
        grid="oblique", labels=("background", "liver", "spleen"), extra={"fine": True},
    ),
    "straight and sheared": BundleCase(
        (40, 44, 20), (1.1, 0.9, 2.4), _SPLEEN.before, _PROBABILITIES_BACK, _unet(2),
        _windows(16, 16, 16), grid="sheared", as_script=True,
    ),
    "tumour": BundleCase(
        (50, 46, 38), (1.0, 1.0, 1.2),
        (_before("NormalizeIntensityd", nonzero=True, channel_wise=True),),
        (
            _after("Activationsd", sigmoid=True), _invert(), _after("AsDiscreted", threshold=0.5),
            _after("Lambdad", func=_TUMOUR_RULES),
        ),
        {
            "_target_": "SegResNet", "in_channels": 4, "out_channels": 3, "init_filters": 8,
            "blocks_down": [1, 1], "blocks_up": [1], "dropout_prob": 0.2,
        },
        _windows(32, 32, 24), channels=4, grid="oblique", rim=4,
        labels=("Tumor core", "Whole tumor", "Enhancing tumor"),
    ),
    "cropped": BundleCase(
        (48, 44, 21), (1.01, 1.03, 2.57),
        (
            *_SPLEEN.before[:3],
            _before("ScaleIntensityRanged", a_min=60, a_max=400, b_min=0, b_max=1, clip=True),
            _before("CropForegroundd", source_key="@image_key", mode=["minimum"]),
            _before("CastToTyped", dtype="$torch.float32"),
        ),
        _PROBABILITIES_BACK,
        {
            "_target_": "monai.networks.nets.DynUNet", "spatial_dims": "$len(@sides)",
            "in_channels": 1, "out_channels": 3, "kernel_size": [3, 3, 3], "strides": [1, 2, 2],
            "upsample_kernel_size": [2, 2], "filters": [4, 8, 8], "norm_name": "instance",
            "res_block": True,
        },
        _windows(16, 16, 16, overlap=0.75), rim=6, labels=("background", "liver", "spleen"),
        as_yaml=True, extra={"sides": [1, 1, 1]},
    ),
    "labels back": BundleCase(
        (40, 38, 18), (0.73, 0.71, 2.13),
        (
            *_SPLEEN.before[:2], _before("Spacingd", pixdim=[1.0, 1.0, 1.0], mode="bilinear"),
            _before("ScaleIntensityd", minv=0, maxv=1), _before("NormalizeIntensityd"),
        ),
        (
            _ARGMAX,
            _after("KeepLargestConnectedComponentd", applied_labels=[1, 2]),
            _invert(),
        ),
        _unet(3), _windows(16, 16, 16), labels=("background", "central gland", "peripheral zone"),
    ),
    "nearest labels back, edges repeated": BundleCase(
        (26, 30, 14), (1.1, 1.2, 2.6),
        (
            *_SPLEEN.before[:2], _before("Spacingd", pixdim=[1.5, 1.5, 1.5], mode="bilinear"),
            _before("NormalizeIntensityd", nonzero=True),
            _before("ScaleIntensityd", minv=-1.0, maxv=1.0),
        ),
        (_SOFTMAX, _ARGMAX, _invert(nearest=True)), _unet(4),
        _windows(32, 24, 32, overlap=0.25, padding_mode="replicate", mode="gaussian"),
        rim=3, labels=("background", "spleen", "kidney", "liver"),
    ),
    "whole": BundleCase(
        (32, 32, 16), (1.0, 1.0, 1.0), (_CHANNELS_FIRST, _before("ScaleIntensityd")),
        (_SOFTMAX, _ARGMAX), _unet(3), {"_target_": "SimpleInferer"},
        labels=("background", "category 1", "category 2"), as_yaml=True,
    ),
    "planes": BundleCase(
        (30, 38, 6), (1.2, 1.2, 8.0), (_CHANNELS_FIRST, _before("ScaleIntensityd")),
        _PROBABILITIES_BACK, _unet(4, 2),
        {"_target_": "SliceInferer", "roi_size": [32, 32], "spatial_dim": 2},
        labels=("background", "pool", "myocardium", "right"),
    ),
}  # fmt: skip


def write_bundle(folder: Path, case: BundleCase) -> Path:
    """Write `configs` and `models` of a bundle; return its folder."""
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True)
    config = _config(case)
    if case.as_yaml:
        (folder / "configs" / "inference.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    else:
        (folder / "configs" / "inference.json").write_text(json.dumps(config, indent=1))
    (folder / "configs" / "metadata.json").write_text(json.dumps(_metadata(case), indent=1))
    (folder / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    network = _network(case)
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    if case.as_script:
        image = torch.zeros(1, case.channels, *case.inferer["roi_size"])
        traced: Any = torch.jit.trace(network, image)  # type: ignore[no-untyped-call]
        traced.save(folder / "models" / "model.ts")
    return folder


def write_case(folder: Path, case: BundleCase) -> list[Path]:
    """Write a file for each channel of the volume."""
    folder.mkdir(parents=True, exist_ok=True)
    geometry = Geometry.from_spacing(case.shape, case.spacing_mm)
    if case.grid == "oblique":
        geometry = oblique(case.shape, case.spacing_mm)
    if case.grid == "sheared":
        affine = geometry.affine.copy()
        affine[1, 2] = 0.6  # mm a slice: the tilt of a gantry
        geometry = Geometry(case.shape, affine)
    files = []
    for number in range(case.channels):
        files.append(folder / f"case_{number:04d}.nii.gz")
        files[-1].write_bytes(nifti.encode(Volume(_image(case, seed=number), geometry)))
    return files


def monai_mask(folder: Path, files: Sequence[Path], out: Path) -> npt.NDArray[np.float32]:
    """Return the mask that MONAI's own inference workflow writes."""
    from monai.bundle.workflows import ConfigWorkflow

    [config] = (folder / "configs").glob("inference.*")
    workflow = ConfigWorkflow(
        workflow_type="inference", config_file=str(config),
        meta_file=str(folder / "configs" / "metadata.json"), logging_file=None,
        bundle_root=str(folder), output_dir=str(out),
        data=[{"image": str(files[0]) if len(files) == 1 else [str(file) for file in files]}],
    )  # fmt: skip
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    [written] = out.rglob("*.nii.gz")
    return np.asarray(nifti.decode(written.read_bytes()).array, dtype=np.float32)


def _config(case: BundleCase) -> dict[str, Any]:
    return {
        "imports": ["$import os"],
        "bundle_root": ".",
        "image_key": "image",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cpu')",
        "data": "$[{'image': each} for each in os.listdir(@bundle_root)]",
        **case.extra,
        "network_def": dict(case.network),
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose", "transforms": [_before("LoadImaged"), *case.before],
        },
        "dataset": {"_target_": "Dataset", "data": "@data", "transform": "@preprocessing"},
        "dataloader": {
            "_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0,
        },
        "inferer": dict(case.inferer),
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [*case.after, _after("SaveImaged", output_dir="@output_dir")],
        },
        "checkpointloader": {
            "_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator", "device": "@device",
            "val_data_loader": "@dataloader", "network": "@network", "inferer": "@inferer",
            "postprocessing": "@postprocessing", "amp": False,
        },
        "initialize": ["$@checkpointloader(@evaluator)"],
        "run": ["$@evaluator.run()"],
    }  # fmt: skip


def _metadata(case: BundleCase) -> dict[str, Any]:
    shape = list(case.inferer.get("roi_size", case.shape))
    images = ["T1c", "T1", "T2", "FLAIR"][: case.channels]
    return {
        "version": "0.1.0",
        "monai_version": "1.6.1",
        "name": "Tiny bundle",
        "network_data_format": {
            "inputs": {
                "image": {
                    "modality": "CT", "num_channels": case.channels, "spatial_shape": shape,
                    "channel_def": {str(n): name for n, name in enumerate(images)},
                }
            },
            "outputs": {
                "pred": {
                    "num_channels": len(case.labels),
                    "channel_def": {str(n): name for n, name in enumerate(case.labels)},
                }
            },
        },
    }  # fmt: skip


def _network(case: BundleCase) -> torch.nn.Module:
    from monai.networks import nets

    torch.manual_seed(11)
    arguments = dict(case.network) | ({"spatial_dims": 3} if "sides" in case.extra else {})
    kind, dimensions = arguments.pop("_target_").rpartition(".")[2], 3
    if "roi_size" in case.inferer:
        dimensions = len(case.inferer["roi_size"])
    network: torch.nn.Module = getattr(nets, kind)(**arguments)
    coarse = torch.rand(4, case.channels, *[4] * dimensions)
    sides = case.inferer.get("roi_size", case.shape)
    image = torch.nn.functional.interpolate(coarse, sides) + 0.05 * torch.randn(1, 1, *sides)
    with torch.no_grad():
        network.train()  # so that a batch norm has figures of its own
        for _ in range(8):
            network(image)
        scores = network.eval()(image).movedim(1, 0).flatten(1)
        last = [each for key, each in network.named_parameters() if key.endswith("bias")][-1]
        last.sub_(scores.median(dim=1).values)  # so that no label is everywhere
    return network


def _image(case: BundleCase, seed: int) -> npt.NDArray[np.int16]:
    """Smooth blobs with noise on them, and a rim of 0."""
    random = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in case.shape), indexing="ij"))
    image = np.zeros(case.shape)
    for _ in range(6):
        centre = random.uniform(-0.7, 0.7, (3, 1, 1, 1))
        image += random.uniform(-300, 500) * np.exp(-(((places - centre) / 0.35) ** 2).sum(axis=0))
    image += random.normal(100, 40, case.shape)
    stored = np.zeros(case.shape, dtype=np.int16)
    inner = tuple(slice(case.rim, side - case.rim) for side in case.shape)
    if case.rim * 2 >= min(case.shape):
        inner = (*inner[:2], slice(None))
    stored[inner] = image[inner].round()
    return stored
