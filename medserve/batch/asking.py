"""Who answers a batch: a gateway, or worker processes that hold an archive.

Either gives the same answers: the members that a receipt keeps, and the files beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import msgspec

from medserve.batch.inputs import Content
from medserve.client import (
    Classification,
    ClassificationOptions,
    Client,
    FileResult,
    FrameOptions,
    FrameResult,
    Regression,
    VolumeOptions,
    VolumeResult,
)
from medserve.errors import ConfigError, MedserveError, UnknownModelError
from medserve.spec import Task
from medserve.tasks.result import Provenance

__all__ = ["Answer", "Asker", "Outcome", "ServerAsker", "Target", "answer_of"]

Found = TypeVar("Found", VolumeResult, FrameResult)

_NAMES = {  # of files, by the member of a result
    "mask_nifti": "mask.nii.gz",
    "mask_png": "mask.png",
    "dicom_seg": "mask.dcm",
    "probabilities_nifti": "probabilities.nii.gz",
    "entropy_nifti": "uncertainty.nii.gz",
    "overlay_png": "overlay.png",
    "heatmap_png": "heatmap.png",
}


@dataclass(frozen=True)
class Target:
    """The model that a batch is for.

    Attributes:
        model: Its name.
        version: Its version.
        archive_digest: Of the archive that answers now.
        task: Its kind of work.
        channels: Names of the images that make one case; empty where it sees one.
    """

    model: str
    version: str
    archive_digest: str
    task: Task
    channels: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer to one study.

    Attributes:
        members: Of the JSON answer, without its files.
        files: Name -> content.
        provenance: The archive that answered.
    """

    members: Mapping[str, Any]
    files: Mapping[str, bytes] = field(repr=False)
    provenance: Provenance


Outcome = Answer | MedserveError


class Asker(Protocol):
    """Answers studies of one model; `ask` may be called from several threads."""

    @property
    def target(self) -> Target:
        """The model."""

    def ask(self, inputs: Sequence[Content], params: Mapping[str, Any]) -> Sequence[Outcome]:
        """Return one outcome an input, in order; one input at a time but of tasks that pack.

        Raises:
            MedserveError: an error that concerns all of them.
        """

    def close(self) -> None:
        """End what answers; calls that are under way fail."""


class ServerAsker:
    """Asks a gateway."""

    def __init__(self, client: Client, model: str, version: str | None = None) -> None:
        self._client, self._version = client, version
        self._target = self._find(model)

    @property
    def target(self) -> Target:
        """The model, as the gateway names it."""
        return self._target

    def _find(self, model: str) -> Target:
        for each in self._client.models():
            wanted = each.version == self._version if self._version else each.default
            if each.name == model and wanted:
                if each.task is None or each.task is Task.GENERATION:
                    raise ConfigError(f"{model}: expected a model that answers studies")
                return Target(model, each.version, each.archive_digest, each.task, each.channels)
        raise UnknownModelError(
            f"the gateway has no model {model}; `medserve models` lists what it has"
        )

    def ask(self, inputs: Sequence[Content], params: Mapping[str, Any]) -> Sequence[Outcome]:
        """Ask in one packed call for images, and in one call for anything else."""
        model, version = self._target.model, self._version
        if self._target.task.packs:
            images = [each for each in inputs if isinstance(each, bytes)]
            return [
                each.outcome
                if isinstance(each.outcome, MedserveError)
                else answer_of(each.outcome, each.provenance)
                for each in self._ask_images(images, params)
            ]
        [content] = inputs
        result: VolumeResult | FrameResult
        if self._target.task is Task.VOLUMES:
            volume = VolumeOptions.from_params(params)
            result = self._client.segment(model, content, options=volume, version=version)
        else:
            assert isinstance(content, bytes)  # only models of volumes see several images
            frames = FrameOptions.from_params(params)
            result = self._client.segment_frame(model, content, options=frames, version=version)
        return [answer_of(result, result.provenance)]

    def _ask_images(
        self, images: Sequence[bytes], params: Mapping[str, Any]
    ) -> Sequence[FileResult[Classification] | FileResult[Regression]]:
        model, version = self._target.model, self._version
        if self._target.task is Task.REGRESSION:
            return self._client.estimate(model, images, version=version)
        asked = ClassificationOptions.from_params(params)
        return self._client.classify(model, images, options=asked, version=version)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def answer_of(
    result: Classification | Regression | VolumeResult | FrameResult, provenance: Provenance
) -> Answer:
    """Return the members and files of a result."""
    if isinstance(result, Regression):
        return Answer(result.to_json(), {}, provenance)
    if isinstance(result, Classification):
        heatmap = {}
        members = result.to_json()
        if result.explanation is not None:
            heatmap = {_NAMES["heatmap_png"]: result.explanation.heatmap_png}
            del members["explanation"]["heatmap_png"]
        return Answer(members, heatmap, provenance)
    files = {
        _NAMES[name]: content
        for name, content in msgspec.structs.asdict(result).items()
        if isinstance(content, bytes)
    }
    return Answer(result.without_files(), files, provenance)
