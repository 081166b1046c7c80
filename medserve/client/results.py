"""The status of a model, and the result of one file among several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from medserve.errors import MedserveError
from medserve.spec import Task
from medserve.tasks.result import Provenance, as_html
from medserve.tasks.volumes import LabelMeasure

__all__ = ["FileResult", "ModelStatus", "SegmentedFile"]

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class ModelStatus:
    """One version of one model behind a gateway.

    Attributes:
        default: Whether a request without a version comes here.
        ready: Whether it has proven itself and answers.
        task: Its kind of work; None for one that this client does not know.
        labels: What it tells apart, by number.
        values: Names and UCUM units of the numbers that it tells; empty but for regression.
        input_kinds: The families of file formats that it reads.
        channels: Names of the images that make one case, in its order; empty where one file is.
        archive_digest: Of the archive's manifest.
        card: Its card in Markdown.
        metrics: The figures that its archive states.
    """

    name: str
    version: str
    default: bool
    ready: bool
    task: Task | None
    title: str
    labels: tuple[str, ...]
    values: tuple[tuple[str, str], ...]
    input_kinds: tuple[str, ...]
    channels: tuple[str, ...]
    archive_digest: str
    card: str = field(repr=False)
    metrics: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class SegmentedFile:
    """The mask of a volume that was sent in pieces, in the format that was asked for.

    Attributes:
        provenance: The archive that answered.
        labels: Names by number in the mask, the background's first.
        measures: Every label but the background.
        mask: The file: NIfTI (.nii.gz), or a DICOM Segmentation.
        review: Whether a person should look.
        unlike_training: Whether the volume is unlike the training data.
    """

    provenance: Provenance
    labels: tuple[str, ...]
    measures: tuple[LabelMeasure, ...]
    mask: bytes = field(repr=False)
    review: bool = False
    unlike_training: bool = False


@dataclass(frozen=True, eq=False)
class FileResult(Generic[Answer]):
    """What became of one of several files.

    Attributes:
        outcome: The answer, or the error that stands in its place.
        provenance: Which archive answered; without version and digest where none did.
    """

    outcome: Answer | MedserveError
    provenance: Provenance

    @property
    def result(self) -> Answer | None:
        """The answer, or None where the file failed."""
        return None if isinstance(self.outcome, MedserveError) else self.outcome

    @property
    def error(self) -> MedserveError | None:
        """Why the file failed, or None where it did not."""
        return self.outcome if isinstance(self.outcome, MedserveError) else None

    def _repr_html_(self) -> str:
        """Return the answer as a notebook shows it, or why there is none."""
        if isinstance(self.outcome, MedserveError):
            return as_html(f"{self.outcome.code}: {self.outcome.message}", (), ())
        shown: str = self.outcome._repr_html_()  # type: ignore[attr-defined] # every answer has it
        return shown

    def unwrap(self) -> Answer:
        """Return the answer; raises the error where the file failed."""
        if isinstance(self.outcome, MedserveError):
            raise self.outcome
        return self.outcome
