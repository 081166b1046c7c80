"""Read a MONAI bundle: `configs/metadata.json`, `configs/inference.json` and its weights.

What the transforms of its inference workflow say becomes a model description under which the
pipeline of volumes answers as MONAI's own workflow does on a CPU (MONAI 1.6.1). What cannot be
said is refused by the name of the transform, the key and the file. Nothing of it is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from medserve.errors import ConfigError
from medserve.importing import bundle_networks
from medserve.importing.bundle_config import BundleConfig, Component
from medserve.importing.bundle_transforms import Postprocessing, Preprocessing
from medserve.importing.source import Source
from medserve.importing.untrusted import plain_text, read_json

__all__ = ["read_bundle"]

_CONFIGS = ("inference.json", "inference.yaml", "inference.yml")
_METADATA = "configs/metadata.json"
_HINT = "give the folder of a MONAI bundle, which holds configs/ and models/"
_USUAL_SIDE = 192  # voxels of a usual volume, where the window is smaller
_MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR"}
_EVALUATOR = (
    "device", "val_data_loader", "network", "inferer", "postprocessing", "val_handlers", "amp",
    "mode", "epoch_length", "non_blocking", "decollate", "to_kwargs", "amp_kwargs",
    "key_val_metric", "additional_metrics",
)  # fmt: skip


@dataclass(frozen=True)
class _Windows:
    """What an inferer says of the network's windows.

    Attributes:
        size: Sides; two of a network for planes.
        volume: Keys of the section `volume`.
        across: The axis of the volume that planes lie across.
    """

    size: tuple[int, ...]
    volume: Mapping[str, Any]
    across: int | None = None


@dataclass(frozen=True)
class _Described:
    """Names of what goes into the network and comes out, from the metadata of a bundle."""

    content: Mapping[str, Any]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> _Described:
        """Read `configs/metadata.json`; what it does not say is left empty."""
        content = read_json(folder / _METADATA, _HINT)
        data = content.get("network_data_format")
        inputs, outputs = (_part(data, side) for side in ("inputs", "outputs"))
        only = next(iter(inputs)) if len(inputs) == 1 else "image"
        return cls(content, _part(inputs, only), _part(outputs, "pred"))

    def names(self, side: Mapping[str, Any], count: int, instead: str) -> tuple[str, ...]:
        """Return the names of channels, all different."""
        given = _part(side, "channel_def")
        if given and sorted(given) != sorted(map(str, range(count))):
            raise ConfigError(
                f"{_METADATA}: channel_def: expected the channels 0 to {count - 1} of the "
                f"network, got {len(given)} others"
            )
        names: list[str] = []
        for number in range(count):
            name = plain_text(given.get(str(number)), f"{instead} {number}")
            names.append(f"{name} {number}" if name in names else name)
        return tuple(names)


def read_bundle(folder: Path, name: str, *, with_weights: bool = True) -> Source:
    """Map a bundle to a model description and a network.

    Args:
        folder: With `configs/` and `models/`.
        name: Under which the model is to be served.
        with_weights: Whether the weights are read, too; a network without them says nothing.

    Raises:
        ConfigError: the bundle is incomplete, or holds what cannot be served as MONAI would.
    """
    config, described = _read_config(folder), _Described.read(folder)
    evaluator = _evaluator(config)
    _refuse_pictures(config, evaluator, described)
    before, after = _transforms(config, evaluator)
    windows = _windows(_child(evaluator, "inferer"), described)
    network = _child(evaluator, "network")
    channels = _count(network, described.inputs, "in_channels")
    classes = _count(network, described.outputs, "out_channels", "num_classes")
    outputs = described.names(described.outputs, classes, "label")
    labels, rules = after.labels(before, outputs)
    steps = before.normalisation(channels)
    images = described.names(described.inputs, channels, "image")
    content = described.content
    return Source(
        name=name,
        title=f"{plain_text(content.get('name'), name)}: {', '.join(labels[1:])}"[:200],
        labels=labels,
        size=windows.size,
        channels=channels,
        volume={
            **before.volume(windows.across),
            **({"channels": dict(zip(images, steps, strict=True))} if channels > 1 else {}),
            **({"normalisation": steps[0]} if channels == 1 else {}),
            **windows.volume,
            **rules,
        },
        network=_network(config, folder, network, with_weights=with_weights),
        origin=(
            f"MONAI bundle {plain_text(content.get('name'), 'unnamed')}, version "
            f"{plain_text(content.get('version'), 'not stated')}, network {network.target}"
        ),
        licence=_licence(folder),
        modalities=[
            kind
            for given, kind in _MODALITIES.items()
            if str(described.inputs.get("modality")).upper() == given
        ],
        typical_shape=tuple(
            side if windows.volume["blending"]["placement"] == "whole" else max(side, _USUAL_SIDE)
            for side in windows.size
        ),
    )


def _read_config(folder: Path) -> BundleConfig:
    if not folder.is_dir():
        raise ConfigError(f"expected the folder of a MONAI bundle, got {folder}, which is none")
    there = [name for name in _CONFIGS if (folder / "configs" / name).is_file()]
    if not there:
        raise ConfigError(f"expected configs/inference.json in {folder}, there is none; {_HINT}")
    return BundleConfig(folder, folder / "configs" / there[0])


def _evaluator(config: BundleConfig) -> Component:
    evaluator = config.component("evaluator")
    if evaluator.target != "SupervisedEvaluator":
        raise ConfigError(
            f"{config.path}: {evaluator.where}: expected a SupervisedEvaluator, got "
            f"{evaluator.target}; a bundle with it cannot be imported"
        )
    evaluator.only(*_EVALUATOR)
    return evaluator


def _refuse_pictures(config: BundleConfig, evaluator: Component, described: _Described) -> None:
    """Say first what no transform would tell: the network does not see volumes."""
    sides = described.inputs.get("spatial_shape")
    is_flat = isinstance(sides, list) and len(sides) == 2
    inferer = evaluator.get("inferer")
    is_slices = isinstance(inferer, Component) and inferer.target == "SliceInferer"
    if is_flat and not is_slices:
        raise ConfigError(
            f"{config.path}: expected a network for volumes, got one for pictures of two sides "
            f"(spatial_shape in {_METADATA}); a bundle with it cannot be imported"
        )


def _child(parent: Component, key: str) -> Component:
    value = parent.get(key)
    if not isinstance(value, Component):
        raise parent.refused(key, "an object with a _target_", value)
    return value


def _transforms(config: BundleConfig, evaluator: Component) -> tuple[Preprocessing, Postprocessing]:
    chains: list[Component] = []
    listed: list[list[Component]] = []
    for owner, key in ((config.component("dataset"), "transform"), (evaluator, "postprocessing")):
        chain = _child(owner, key)
        if chain.target != "Compose":
            raise owner.refused(key, "a Compose of transforms", chain)
        chain.only("transforms")
        raw = chain.get("transforms")
        many = raw if isinstance(raw, list) else [raw]
        if not all(isinstance(each, Component) for each in many):
            raise chain.refused("transforms", "objects with a _target_", raw)
        chains.append(chain)
        listed.append(many)
    before = Preprocessing.read(chains[0], listed[0])
    return before, Postprocessing.read(chains[1], listed[1], chains[0].where)


def _windows(inferer: Component, described: _Described) -> _Windows:
    blending = {"placement": "stride"}
    if inferer.target == "SimpleInferer":
        inferer.only()
        size = described.inputs.get("spatial_shape")
        if not isinstance(size, list) or not _is_size(size, 3):
            raise ConfigError(
                f"{inferer.name}: expected network_data_format.inputs.image.spatial_shape with "
                f"three sides in {_METADATA}, for the network sees a whole volume at once, got "
                f"{str(size)[:100]}"
            )
        whole = {"weights": "uniform", "placement": "whole"}
        return _Windows(tuple(size), {"blending": whole, "window_batch": 1})
    is_planes = inferer.target == "SliceInferer"
    if not is_planes and inferer.target != "SlidingWindowInferer":
        raise ConfigError(
            f"{inferer.config.path}: {inferer.where}: expected a SlidingWindowInferer, "
            f"SliceInferer or SimpleInferer, got {inferer.target}; a bundle with it cannot be "
            f"imported"
        )
    inferer.only(
        "roi_size", "sw_batch_size", "overlap", "mode", "sigma_scale", "padding_mode", "cval",
        "sw_device", "device", "progress", "cache_roi_weight_map", "cpu_thresh", "buffer_steps",
        "buffer_dim", "with_coord", *(("spatial_dim",) if is_planes else ()),
    )  # fmt: skip
    inferer.must("mode", "constant", "gaussian")
    inferer.must("sigma_scale", 0.125)
    inferer.must("cval", 0.0, 0)
    inferer.must("padding_mode", "constant", "replicate")
    inferer.must("buffer_steps", None)
    inferer.must("with_coord", False)
    size, overlap = inferer.get("roi_size"), inferer.get("overlap", 0.25)
    dimensions = 2 if is_planes else 3
    if not _is_size(size, dimensions):
        raise inferer.refused("roi_size", f"{dimensions} sides", size)
    if isinstance(overlap, list) and len(set(map(repr, overlap))) == 1:
        overlap = overlap[0]
    if isinstance(overlap, bool) or not isinstance(overlap, int | float) or not 0 <= overlap < 1:
        raise inferer.refused("overlap", "one share from 0 to below 1", overlap)
    is_gaussian = inferer.get("mode", "constant") == "gaussian"
    blending["weights"] = "gaussian" if is_gaussian else "uniform"
    if inferer.get("padding_mode", "constant") == "replicate":
        blending["padding"] = "edge"
    inferer.must("spatial_dim", 0, 1, 2)
    across = inferer.get("spatial_dim", 0) if is_planes else None
    rules = {"blending": blending, "overlap": float(overlap), "window_batch": 1}
    return _Windows(tuple(size), rules, across)


def _is_size(value: Any, dimensions: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == dimensions
        and all(type(side) is int and 1 <= side <= 4096 for side in value)
    )


def _count(network: Component, described: Mapping[str, Any], *keys: str) -> int:
    """Return a number of channels: of the network's arguments, else of the metadata."""
    stated = described.get("num_channels")
    for key in keys:
        if key in network.arguments:
            stated = network.get(key)
    if type(stated) is not int or not 1 <= stated <= 255:
        raise ConfigError(
            f"{network.name}: expected {keys[0]} from 1 to 255 there or as num_channels in "
            f"{_METADATA}, got {str(stated)[:100]}"
        )
    return stated


def _network(
    config: BundleConfig, folder: Path, description: Component, *, with_weights: bool
) -> nn.Module:
    is_known = description.target in bundle_networks.NETWORKS
    loaders = config.components_of("CheckpointLoader")
    path, key = folder / "models" / "model.pt", "model"
    if is_known and loaders:
        stated = loaders[0].get("load_path")
        if not isinstance(stated, str):
            raise loaders[0].refused("load_path", "a file of the bundle", stated)
        path = config.inside(stated, loaders[0].where)
        key = next(iter(loaders[0].arguments.get("load_dict") or {}), key)
    if not with_weights:
        return bundle_networks.build(description, None) if is_known else nn.Identity()
    if is_known and path.is_file():
        return bundle_networks.filled(description, path, key)
    return bundle_networks.scripted(folder, description)


def _licence(folder: Path) -> str:
    """Return the first lines of the licence; that of the data may be another one."""
    try:
        with (folder / "LICENSE").open(encoding="utf-8", errors="replace") as file:
            lines = [plain_text(line, "") for line in file.read(4096).splitlines()]
    except OSError:
        return "not stated"
    stated = ", ".join([line for line in lines if line][:2]) or "not stated"
    has_own = (folder / "docs" / "data_license.txt").is_file()
    return f"{stated}; for the data see docs/data_license.txt of the bundle" if has_own else stated


def _part(content: Any, key: str) -> Mapping[str, Any]:
    value = content.get(key) if isinstance(content, Mapping) else None
    return value if isinstance(value, Mapping) else {}
