"""Read a folder that nnU-Net v2 trained: `plans.json`, `dataset.json` and checkpoints of folds.

What the plans say becomes a model description under which the pipeline of volumes answers as
nnU-Net's own predictor does on a CPU (nnunetv2 2.8.1). What cannot be said is refused by its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medserve.errors import ConfigError
from medserve.importing.nnunet_networks import Ensemble, build_network
from medserve.importing.source import Source
from medserve.importing.untrusted import plain_text, read_checkpoint, read_json

__all__ = ["CHECKPOINT", "read_folder"]

CHECKPOINT = "checkpoint_final.pth"
_MAX_SIDE = 10_000.0  # voxels or millimetres
_MAX_VOXELS = 2**27  # of a patch
_LARGEST = "remove_all_but_largest_component_from_segmentation"
_HINT = "give the folder of a trained configuration, such as nnUNetTrainer__nnUNetPlans__3d_fullres"
_RESAMPLING = "resample_data_or_seg_to_shape"
_PREPROCESSORS = ("DefaultPreprocessor",)
# Axes of nnU-Net's arrays: z, y, x of the file as it is stored, or of the volume turned to RAS.
_READERS = {
    "SimpleITKIO": "kji",
    "NibabelIO": "kji",
    "SimpleITKIOWithReorient": "SAR",
    "NibabelIOWithReorient": "SAR",
}
# What a checkpoint of nnU-Net holds beside tensors: figures of its training.
_FIGURES = [
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Float32DType,
    np.dtypes.Int64DType,
]


@dataclass(frozen=True)
class _Folder:
    """What the JSON files of a folder and its first checkpoint say."""

    path: Path
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    configuration_name: str
    configuration: Mapping[str, Any]
    mirror_axes: tuple[int, ...]
    weights: tuple[Mapping[str, torch.Tensor], ...]
    folds: tuple[str, ...]
    trainer: Any


def read_folder(
    path: Path,
    name: str,
    folds: Sequence[str] = (),
    configuration: str = "",
    postprocessing: Path | None = None,
    checkpoint: str = CHECKPOINT,
) -> Source:
    """Map a trained folder to a model description and a network.

    Args:
        path: The folder with `plans.json`, `dataset.json` and `fold_*/checkpoint_final.pth`.
        name: Under which the model is to be served.
        folds: Which to average; by default every numbered fold, or `all` where it is the only one.
        configuration: Checked against the checkpoint's where it is given.
        postprocessing: `postprocessing.json` of nnUNetv2_find_best_configuration, to be applied.
        checkpoint: Name of the file of each fold.

    Raises:
        ConfigError: the folder is incomplete, or holds what cannot be served as nnU-Net would.
    """
    folder = _read(path, folds, configuration, checkpoint)
    channels = _channels(folder)
    labels, regions = _labels(folder.dataset)
    config = _description(folder, channels, labels, regions)
    if postprocessing is not None:
        config |= _postprocessing(postprocessing, labels)
    return Source(
        name=name,
        title=f"{plain_text(folder.plans.get('dataset_name'), name)}: {', '.join(labels[1:])}",
        labels=labels,
        size=tuple(folder.configuration["patch_size"]),
        channels=len(channels),
        volume=config,
        network=_network(folder, checkpoint, len(channels), len(regions) or len(labels)),
        origin=(
            f"nnU-Net v2, dataset {plain_text(folder.plans.get('dataset_name'), 'unnamed')}, plans "
            f"{plain_text(folder.plans.get('plans_name'), 'unnamed')}, configuration "
            f"{folder.configuration_name}, trainer {plain_text(folder.trainer, 'not stated')}, "
            f"folds {', '.join(folder.folds)}"
        ),
        licence=plain_text(
            folder.dataset.get("licence", folder.dataset.get("license")), "not stated"
        ),
        modalities=_modalities(channels),
        typical_shape=_typical_shape(folder.configuration),
    )


def _read(path: Path, folds: Sequence[str], configuration: str, checkpoint: str) -> _Folder:
    if not path.is_dir():
        raise ConfigError(f"expected a folder that nnU-Net v2 trained, got {path}, which is none")
    plans, dataset = (read_json(path / name, _HINT) for name in ("plans.json", "dataset.json"))
    if not isinstance(plans.get("configurations"), Mapping):
        raise ConfigError(
            f"{path / 'plans.json'}: expected the plans of nnU-Net v2 with the key "
            f"'configurations', there is none; models of nnU-Net v1 cannot be imported"
        )
    chosen = _folds(path, folds, checkpoint)
    files = [path / f"fold_{fold}" / checkpoint for fold in chosen]
    checkpoints = [read_checkpoint(file, _FIGURES) for file in files]
    named = _setting(checkpoints[0], "init_args", Mapping, files[0]).get("configuration")
    if configuration and configuration != named:
        raise ConfigError(
            f"expected the configuration {configuration!r}, got a checkpoint of {named!r}; give "
            f"the folder whose name ends with __{configuration}"
        )
    mirror = checkpoints[0].get("inference_allowed_mirroring_axes") or ()
    if not isinstance(mirror, list | tuple) or not {*map(repr, mirror)} <= {"0", "1", "2"}:
        raise ConfigError(
            f"{files[0]}: inference_allowed_mirroring_axes: expected axes out of 0, 1, 2, got "
            f"{str(mirror)[:100]!r}"
        )
    return _Folder(
        path=path,
        plans=plans,
        dataset=dataset,
        configuration_name=str(named),
        configuration=_configuration(plans["configurations"], named, ()),
        mirror_axes=tuple(int(axis) for axis in mirror),
        weights=tuple(
            _setting(each, "network_weights", Mapping, file)
            for each, file in zip(checkpoints, files, strict=True)
        ),
        folds=chosen,
        trainer=checkpoints[0].get("trainer_name"),
    )


def _folds(path: Path, wanted: Sequence[str], checkpoint: str) -> tuple[str, ...]:
    if Path(checkpoint).name != checkpoint:
        raise ConfigError(f"expected the name of a checkpoint, got {checkpoint!r}, a path")
    there = [
        each.name.removeprefix("fold_")
        for each in sorted(path.glob("fold_*"))
        if (each / checkpoint).is_file()
    ]
    if missing := [fold for fold in wanted if fold not in there]:
        raise ConfigError(
            f"expected fold_{missing[0]}/{checkpoint} in {path}, there is none; folds that are "
            f"there: {', '.join(there) or 'none'}"
        )
    if len(set(wanted)) != len(wanted):
        raise ConfigError(f"expected each fold once, got {', '.join(wanted)}")
    chosen = list(wanted) or [fold for fold in there if fold.isdecimal()] or there
    if not chosen:
        others = sorted({each.name for each in path.glob("fold_*/*.pth")})
        hint = f"; give one of these by --checkpoint: {', '.join(others)}" if others else ""
        raise ConfigError(f"expected fold_*/{checkpoint} in {path}, there is none{hint}")
    return tuple(chosen)


def _setting(content: Mapping[str, Any], key: str, kind: type, file: Path) -> Any:
    if not isinstance(content.get(key), kind):
        raise ConfigError(f"{file}: expected {key!r}, there is none of its kind")
    return content[key]


def _configuration(all_of_them: Mapping[str, Any], name: Any, seen: tuple[str, ...]) -> Any:
    """Return a configuration with what it inherits."""
    own = all_of_them.get(name) if isinstance(name, str) else None
    if not isinstance(own, Mapping) or name in seen:
        known = ", ".join(sorted(all_of_them))
        raise ConfigError(f"plans.json: expected a configuration out of {known}, got {name!r}")
    if "inherits_from" not in own:
        return dict(own)
    return _configuration(all_of_them, own["inherits_from"], (*seen, name)) | dict(own)


def _architecture(configuration: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `architecture`; plans of before 2.4 describe it by other keys."""
    if "architecture" in configuration:
        found: Mapping[str, Any] = configuration["architecture"]
        return found
    try:
        depths = configuration["n_conv_per_stage_encoder"]
        dimensions = len(configuration["patch_size"])
        kind = configuration["UNet_class_name"]
        per_stage = "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"
        base, most = configuration["UNet_base_num_features"], configuration["unet_max_num_features"]
        return {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
            "arch_kwargs": {
                "n_stages": len(depths),
                "features_per_stage": [min(base * 2**stage, most) for stage in range(len(depths))],
                "conv_op": f"torch.nn.Conv{dimensions}d",
                "kernel_sizes": configuration["conv_kernel_sizes"],
                "strides": configuration["pool_op_kernel_sizes"],
                per_stage: depths,
                "n_conv_per_stage_decoder": configuration["n_conv_per_stage_decoder"],
                "conv_bias": True,
                "norm_op": f"torch.nn.InstanceNorm{dimensions}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "nonlin": "torch.nn.LeakyReLU",
            },
        }
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"plans.json: expected the key 'architecture' or those of older plans, {error} is "
            f"missing; plan the dataset again with nnU-Net 2.4 or later"
        ) from error


def _channels(folder: _Folder) -> dict[str, Any]:
    """Return the normalisation of each channel by name, in the network's order."""
    named = folder.dataset.get("channel_names", folder.dataset.get("modality"))
    if not isinstance(named, Mapping) or sorted(named) != sorted(map(str, range(len(named)))):
        raise ConfigError(
            'dataset.json: expected channel_names such as {"0": "T1", "1": "T2"} from 0 on, got '
            "something else"
        )
    schemes = folder.configuration.get("normalization_schemes")
    masks = folder.configuration.get("use_mask_for_norm")
    if not isinstance(schemes, list) or not isinstance(masks, list):
        raise ConfigError("plans.json: expected normalization_schemes and use_mask_for_norm")
    if not len(named) == len(schemes) == len(masks):
        raise ConfigError(
            f"expected as many channels in dataset.json as in plans.json, got {len(named)} and "
            f"{len(schemes)}"
        )
    figures = folder.plans.get(
        "foreground_intensity_properties_per_channel",
        folder.plans.get("foreground_intensity_properties_by_modality"),
    )
    of_channel = figures if isinstance(figures, Mapping) else {}
    channels: dict[str, Any] = {}
    for number, (scheme, by_mask) in enumerate(zip(schemes, masks, strict=True)):
        name = plain_text(named[str(number)], f"channel {number}")
        name = f"image {name}" if name.isdecimal() else name  # a number says the place
        name = f"{name} {number}" if name in channels else name
        channels[name] = _normalisation(scheme, bool(by_mask), of_channel.get(str(number)))
    return channels


def _normalisation(scheme: Any, by_mask: bool, figures: Any) -> dict[str, Any]:
    match scheme:
        case "ZScoreNormalization":
            return {"kind": "z_score_body" if by_mask else "z_score"}
        case "CTNormalization":
            try:
                return {
                    "kind": "standard",
                    "low": float(figures["percentile_00_5"]),
                    "high": float(figures["percentile_99_5"]),
                    "mean": float(figures["mean"]),
                    "deviation": max(float(figures["std"]), 1e-8),
                }
            except (KeyError, TypeError, ValueError):
                raise ConfigError(
                    "plans.json: expected foreground_intensity_properties_per_channel with mean, "
                    "std and percentiles for CTNormalization, some are missing"
                ) from None
        case "NoNormalization":
            return {"kind": "none"}
        case "RescaleTo01Normalization":
            return {"kind": "min_max"}
        case "RGBTo01Normalization":
            return {"kind": "window", "low": 0.0, "high": 255.0}
    raise ConfigError(
        f"plans.json: expected a normalisation that nnU-Net brings, got {scheme!r}; custom ones "
        f"cannot be imported"
    )


def _labels(dataset: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return names by label id, and for regions the channel that writes each, in its order."""
    given = dataset.get("labels")
    if not isinstance(given, Mapping) or given.get("background") not in (0, [0]):
        raise ConfigError(
            'dataset.json: expected labels such as {"background": 0, "liver": 1} with background '
            "0, got something else"
        )
    named: dict[str, Any] = {}
    for key, value in given.items():
        name = plain_text(key, f"label {len(named)}")
        if key != "ignore":  # it is no output of the network
            named[f"{name} {len(named)}" if name in named else name] = value
    if not any(isinstance(value, list) and len(value) > 1 for value in named.values()):
        by_value = {_single(value, name): name for name, value in named.items()}
        if sorted(by_value) != list(range(len(named))):
            raise ConfigError(
                f"dataset.json: expected labels 0 to {len(named) - 1} without a gap, got "
                f"{sorted(by_value)}"
            )
        return tuple(by_value[value] for value in range(len(named))), {}
    regions = [name for name, value in named.items() if value not in (0, [0])]
    order = dataset.get("regions_class_order")
    if (
        not isinstance(order, list)
        or len(order) != len(regions)
        or not all(type(each) is int and 1 <= each <= 255 for each in order)
        or len(set(order)) != len(order)
    ):
        raise ConfigError(
            f"dataset.json: expected regions_class_order with {len(regions)} different labels, got "
            f"{order!r}"
        )
    by_value = dict(zip(order, regions, strict=True))
    labels = [by_value.get(value, f"unused {value}") for value in range(1, max(order) + 1)]
    return ("background", *labels), {name: channel for channel, name in enumerate(regions)}


def _single(value: Any, name: str) -> int:
    single = value[0] if isinstance(value, list) and len(value) == 1 else value
    if type(single) is not int:
        raise ConfigError(f"dataset.json: label {name!r}: expected a whole number, got {value!r}")
    return single


def _description(
    folder: _Folder, channels: Mapping[str, Any], labels: Sequence[str], regions: Mapping[str, int]
) -> dict[str, Any]:
    """Return the section `volume` of the model's configuration."""
    plans, configuration = folder.plans, folder.configuration
    if configuration.get("previous_stage"):
        raise ConfigError(
            f"plans.json: expected a configuration that stands alone, got "
            f"{folder.configuration_name!r}, the second stage of a cascade; import 3d_fullres, "
            f"2d or 3d_lowres"
        )
    _one_of("preprocessor_name", configuration.get("preprocessor_name"), _PREPROCESSORS)
    reader = _one_of("image_reader_writer", plans.get("image_reader_writer"), tuple(_READERS))
    forward = plans.get("transpose_forward")
    if not isinstance(forward, list) or sorted(map(repr, forward)) != ["0", "1", "2"]:
        raise ConfigError(f"plans.json: transpose_forward: expected 0, 1, 2, got {forward!r}")
    size, spacing = _sides(configuration, "patch_size"), _sides(configuration, "spacing")
    if len(size) != len(spacing) or math.prod(size) > _MAX_VOXELS:
        raise ConfigError(
            f"plans.json: expected a patch_size of at most {_MAX_VOXELS} voxels and a spacing for "
            f"each of its sides, got {size} and {spacing}"
        )
    is_flat = len(size) == 2
    normalisation = (
        {"channels": dict(channels)}
        if len(channels) > 1
        else {"normalisation": next(iter(channels.values()))}
    )
    return {
        "spacing_mm": [0.0, *map(float, spacing)] if is_flat else [float(mm) for mm in spacing],
        "orientation": "".join(_READERS[reader][axis] for axis in forward),
        **normalisation,
        "roi": {"kind": "nonzero"},
        "resampling": _resampling(configuration),
        "blending": {"weights": "peak", "placement": "even", "sums": "f16"},
        "overlap": 0.5,
        "window_batch": 1,
        "ensemble": len(folder.folds),
        "flips": bool(folder.mirror_axes),
        "flip_axes": [axis + is_flat for axis in folder.mirror_axes],
        **({"regions": dict(regions)} if regions else {}),
    }


def _postprocessing(path: Path, labels: Sequence[str]) -> dict[str, Any]:
    """Return the steps that nnU-Net found to help, as the section `volume` has them.

    The pickled file beside the JSON says the same and is not read.
    """
    if path.suffix != ".json":
        raise ConfigError(
            f"{path}: expected postprocessing.json; the pickled file beside it would run code"
        )
    content = read_json(path, "give the file that nnUNetv2_find_best_configuration wrote")
    functions: Any = content.get("postprocessing_fns")
    kwargs: Any = content.get("postprocessing_kwargs")
    are_lists = isinstance(functions, list) and isinstance(kwargs, list)
    if not are_lists or len(functions) != len(kwargs):
        raise ConfigError(
            f"{path}: expected postprocessing_fns and postprocessing_kwargs, lists of one length"
        )
    groups = []
    for function, arguments in zip(functions, kwargs, strict=True):
        _one_of("postprocessing_fns", function, (_LARGEST,))
        values = arguments.get("labels_or_regions") if isinstance(arguments, Mapping) else None
        numbers = _flat(values)
        if not numbers or not numbers <= set(range(1, len(labels))):
            raise ConfigError(
                f"{path}: labels_or_regions: expected labels from 1 to {len(labels) - 1}, got "
                f"{values!r}"
            )
        if arguments.get("background_label", 0) != 0:
            raise ConfigError(f"{path}: expected the background_label 0, got another one")
        groups.append([labels[number] for number in sorted(numbers)])
    return {"largest_component": True, "largest_of": groups} if groups else {}


def _flat(values: object) -> set[int]:
    """Return the labels in a label, a region, or a list of both; none of anything else."""
    if isinstance(values, int):
        return {values}
    if not isinstance(values, list):
        return set()
    return {number for each in values for number in _flat(each)}


def _sides(configuration: Mapping[str, Any], key: str) -> list[float]:
    value = configuration.get(key)
    if (
        not isinstance(value, list)
        or len(value) not in (2, 3)
        or not all(isinstance(side, int | float) and 0 < side < _MAX_SIDE for side in value)
    ):
        raise ConfigError(f"plans.json: {key}: expected 2 or 3 numbers above 0, got {value!r}")
    return value


def _resampling(configuration: Mapping[str, Any]) -> dict[str, Any]:
    for use in ("data", "probabilities"):
        key = f"resampling_fn_{use}"
        _one_of(key, configuration.get(key, _RESAMPLING), (_RESAMPLING,))
    there = _degrees(configuration, "resampling_fn_data_kwargs", 3)
    back = _degrees(configuration, "resampling_fn_probabilities_kwargs", 1)
    if there[2] != back[2]:
        raise ConfigError(
            "plans.json: expected the same force_separate_z for data and probabilities, got two"
        )
    return {
        "kind": "spline",
        "order": there[0],
        "order_through": there[1],
        "inverse_order": back[0],
        "inverse_order_through": back[1],
        "thick_slices": {None: "by_spacing", True: "always", False: "never"}[there[2]],
        "normalise_first": True,
    }


def _degrees(
    configuration: Mapping[str, Any], key: str, usual: int
) -> tuple[int, int, bool | None]:
    given = configuration.get(key, {})
    force = given.get("force_separate_z", False) if isinstance(given, Mapping) else False
    known = {"is_seg", "order", "order_z", "force_separate_z"}
    if (
        not isinstance(given, Mapping)
        or set(given) - known
        or given.get("is_seg")
        or not all(type(given.get(name, 0)) is int for name in ("order", "order_z"))
        or not (force is None or isinstance(force, bool))
    ):
        raise ConfigError(
            f"plans.json: {key}: expected order, order_z and force_separate_z of "
            f"{_RESAMPLING}, got {given!r}"
        )
    return given.get("order", usual), given.get("order_z", 0), force


def _one_of(key: str, value: Any, known: Sequence[str]) -> str:
    """Return the value if it is a known one; ConfigError names it otherwise."""
    if not isinstance(value, str) or value not in known:
        raise ConfigError(
            f"plans.json: {key}: expected {' or '.join(known)}, got {value!r}; a model with it "
            f"cannot be imported"
        )
    return str(value)


def _network(folder: _Folder, checkpoint: str, channels: int, classes: int) -> nn.Module:
    """Return the network of a fold with its weights, or those of all folds as one."""
    networks: list[nn.Module] = []
    for weights, fold in zip(folder.weights, folder.folds, strict=True):
        network = build_network(_architecture(folder.configuration), channels, classes)
        _fit(network, weights, f"fold_{fold}/{checkpoint}")
        networks.append(network.eval())
    return networks[0] if len(networks) == 1 else Ensemble(networks).eval()


def _fit(network: nn.Module, weights: Mapping[str, Any], file: str) -> None:
    try:
        network.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        first = next((line for line in str(error).splitlines()[1:] if line.strip()), str(error))
        raise ConfigError(
            f"{file}: expected the weights of the network in plans.json, got "
            f"those of another one ({first.strip()[:200]}); the trainer may have changed it"
        ) from error


def _modalities(channels: Mapping[str, Any]) -> list[str]:
    return ["CT"] if [name.upper() for name in channels] == ["CT"] else []


def _typical_shape(configuration: Mapping[str, Any]) -> tuple[int, ...]:
    median = configuration.get("median_image_size_in_voxels")
    size = configuration["patch_size"]
    if not isinstance(median, list) or len(median) != len(size):
        median = size
    are_sides = all(isinstance(side, int | float) and 0 < side < _MAX_SIDE for side in median)
    return tuple(max(1, round(side)) for side in (median if are_sides else size))
