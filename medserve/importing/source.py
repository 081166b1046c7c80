"""A model that was read and understood, whatever tool trained it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from medserve.errors import ConfigError
from medserve.spec import ModelSpec, Task

__all__ = ["Described", "Source"]

_SERVING = {
    "minWorkers": 1,
    "maxWorkers": 8,
    "batchSize": 1,
    "maxBatchDelay": 1,
    "responseTimeout": 1800,  # one large volume on a CPU takes minutes
    "startupTimeout": 600,
    "jobQueueSize": 64,
    "deviceType": "cpu",
}
_MAX_PAYLOAD_BYTES = 1024 * 2**20


@dataclass(frozen=True, eq=False)
class Source:
    """A model of volumes that was read, before it is exported.

    Attributes:
        name: Under which it is to be served.
        title: What it finds.
        labels: Names by id, the background's first.
        size: Sides of the network's input, without channels.
        channels: Images that it sees.
        volume: The section `volume` of its configuration.
        network: In eval mode, on the CPU; or the ONNX file that is to be served as it is.
        origin: Where it comes from, in one sentence without a verb.
        licence: As its files state it.
        modalities: DICOM modalities that it takes; all where it is empty.
        typical_shape: Sides of a usual volume on the network's grid.
        serving: Keys of TorchServe, where the model's description has its own.
        input: Values of the section `input` that the description has beside those above.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    size: tuple[int, ...]
    channels: int
    volume: Mapping[str, Any]
    network: nn.Module | Path = field(repr=False)
    origin: str
    licence: str
    modalities: list[str]
    typical_shape: tuple[int, ...]
    serving: Mapping[str, Any] = field(default_factory=dict)
    input: Mapping[str, Any] = field(default_factory=dict)

    def config(self, version: str, engine: str, **measured: int) -> dict[str, Any]:
        """Return the content of `model-config.yaml`, with what was measured of the network.

        Raises:
            ConfigError: it is no description that the platform can read.
        """
        kinds = ["nifti", "dicom"] + (["npy"] if self.channels == 1 else [])
        content = {
            **_SERVING,
            **self.serving,
            "medserve": {
                "name": self.name,
                "version": version,
                "title": self.title,
                "task": "volumes",
                "labels": list(self.labels),
                "input": {
                    "kinds": kinds,
                    "size": list(self.size),
                    "channels": self.channels,
                    "max_payload_bytes": _MAX_PAYLOAD_BYTES,
                    "min_side": 1,
                    **self.input,
                },
                "volume": {
                    "modalities": self.modalities,
                    **measured,
                    **self.volume,
                    "snomed": _codes(self.name, self.labels, self.volume.get("snomed", {})),
                },
                "engine": {"name": engine, "precision": "f32"},
            },
        }
        check_name(self.name)
        ModelSpec.from_mapping(content)
        return content


@dataclass(frozen=True, eq=False)
class Described:
    """A network for pictures that was read with its description, before it is exported.

    Attributes:
        description: The content of its `model-config.yaml`.
        network: In eval mode, on the CPU; or the ONNX file that is to be served as it is.
        origin: Where it comes from, in one sentence without a verb.
        licence: As its files state it.
    """

    description: Mapping[str, Any]
    network: nn.Module | Path = field(repr=False)
    origin: str
    licence: str = "not stated"

    def config(self, version: str, engine: str) -> dict[str, Any]:
        """Return the content of `model-config.yaml` with the engine that was chosen.

        Nobody measured how far an image may be from the training data of a foreign network, so
        a classifier tells no novelty.

        Raises:
            ConfigError: it is no description that the platform can read.
        """
        own = dict(self.description["medserve"])
        own |= {"version": version, "engine": {"name": engine, "precision": "f32"}}
        serving = _SERVING | {"responseTimeout": 120}
        if own["task"] == Task.CLASSIFICATION:
            own["output"] = {**(own.get("output") or {}), "novelty": False}
        if Task(own["task"]).packs:
            serving |= {"batchSize": 16, "jobQueueSize": 512}
        elif own["task"] == Task.FRAMES:
            frame = dict(own.get("frame") or {})
            codes = _codes(own["name"], own["labels"], frame.get("snomed", {}))
            own["frame"] = frame | {"snomed": codes}
        content = {**serving, **self.description, "medserve": own}
        check_name(ModelSpec.from_mapping(content).name)
        return content


def _codes(name: str, labels: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the code of each label for DICOM-SEG: a private one where none is given."""
    private = {
        label: {
            "kind": {
                "value": sha256(f"{name}\n{label}".encode()).hexdigest()[:16].upper(),
                "meaning": label[:64],
                "scheme": "99MEDSERVE",
            }
        }
        for label in labels[1:]
    }
    return private | dict(given)


def check_name(name: str) -> None:
    """Refuse a name that cannot be served."""
    if not (name.isidentifier() and name.isascii() and name[0].isalpha()):
        raise ConfigError(
            f"expected a name of letters, digits and _ that begins with a letter, got {name!r}"
        )
