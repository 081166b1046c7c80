"""What the REST calls take and give, as OpenAPI describes it; answers are built as plain JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from medserve.gateway.core.calls import ModelInfo
from medserve.spec import Task

__all__ = [
    "ClassifiedFiles",
    "ClassifyQuery",
    "Error",
    "ModelDescription",
    "ModelList",
    "Readiness",
    "SampleBody",
    "SegmentQuery",
    "VersionQuery",
    "describe",
]

_DIGEST = "sha256:" + 64 * "0"
_CLASSIFICATION: dict[str, Any] = {
    "label": "Hand",
    "label_id": 4,
    "probability": 0.9998,
    "probabilities": {"CXR": 0.0002, "Hand": 0.9998},
    "top": [{"label": "Hand", "probability": 0.9998}],
    "review": False,
    "novelty": 0.41,
    "unlike_training": False,
}
_HEAD = {"model": "mednist", "version": "1.0", "archive_digest": _DIGEST}


class ErrorContent(BaseModel):
    """What went wrong."""

    code: str = Field(description="for programs, such as INVALID_IMAGE")
    message: str = Field(description="for people: what was expected, what came, what to do")


class Error(BaseModel):
    """The body of every answer that is no success."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "error": {
                    "code": "INVALID_IMAGE",
                    "message": "expected PNG, JPEG, TIFF or DICOM, got text; send the content of "
                    "an image file, not its name",
                }
            }
        }
    )

    error: ErrorContent


class LabelProbability(BaseModel):
    """One class."""

    label: str
    probability: float


class FileExplanation(BaseModel):
    """What a class rests on."""

    method: str
    label: str = Field(description="the class that is explained")
    without_warmest: float = Field(
        description="its probability with the quarter of the image covered that speaks most for it"
    )
    without_coolest: float = Field(description="the same with the quarter that speaks least")
    full_colour: float = Field(description="log-odds at a pixel of full colour, in nats")
    heatmap_png: str = Field(description="picture of the file's own size, as base64")


class ClassifiedFile(BaseModel):
    """What became of one file: the members of a classification, or an error."""

    index: int = Field(description="place among the files of the request, from 0")
    name: str = Field(description="what its sender calls the file, without folders")
    status: Literal["ok", "error"]
    label: str | None = None
    label_id: int | None = None
    probability: float | None = None
    probabilities: dict[str, float] | None = None
    top: list[LabelProbability] | None = None
    review: bool | None = Field(None, description="let a person look")
    novelty: float | None = Field(None, description="above 1 the class means little")
    unlike_training: bool | None = None
    explanation: FileExplanation | None = Field(None, description="where it was asked for")
    error: ErrorContent | None = None


class ClassifiedFiles(BaseModel):
    """The answer to a form: one item per file, in the order of the form.

    A request with one file as its body is answered with the members of that file alone.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                **_HEAD,
                "items": [
                    {"index": 0, "name": "hand.png", "status": "ok", **_CLASSIFICATION},
                    {
                        "index": 1,
                        "name": "notes.txt",
                        "status": "error",
                        "error": {"code": "INVALID_IMAGE", "message": "expected PNG, …, got text"},
                    },
                ],
            }
        }
    )

    model: str
    version: str
    archive_digest: str
    items: list[ClassifiedFile]


class VersionQuery(BaseModel):
    """Which version of a model; a misspelt parameter is refused."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field("", description="the default version if empty")


class ClassifyQuery(VersionQuery):
    """What a classifier may be asked."""

    top_k: int | None = Field(None, ge=1, description="labels in `top`")
    explain: bool | None = Field(
        None, description="with a heat map of what each class rests on; takes 131 rows"
    )

    def params(self) -> dict[str, Any]:
        """What of it is for the model."""
        return self.model_dump(exclude={"version"}, exclude_none=True)


class SegmentQuery(VersionQuery):
    """What a model that segments may be asked; what is left out is up to the model."""

    output: Literal["mask", "probabilities", "uncertainty", "overlay", "json"] | None = None
    format: Literal["nifti", "dicom-seg", "png", "json"] | None = None
    channel: int | None = Field(None, ge=0, description="of a file with several")
    spacing_mm: str | None = Field(
        None,
        pattern=r"^\d+(\.\d+)?,\d+(\.\d+)?(,\d+(\.\d+)?)?$",
        description="three numbers, of frames two (rows, columns), where the file does not say it",
        examples=["1,1,2.5"],
    )
    step_mm: float | None = Field(None, gt=0, description="from one frame of a stack to the next")
    length_mm: float | None = Field(None, gt=0, description="of frames: third diameter")
    view: Literal["stored", "swapped", "axial", "coronal", "sagittal"] | None = Field(
        None, description="how frames lie in a NIfTI array"
    )
    flips: bool | None = Field(None, description="average over mirrored copies")
    uncertainty: bool | None = Field(None, description="with `output=json`: entropy of each voxel")
    overlay: bool | None = Field(None, description="with `output=json`: picture with the mask")
    largest_component: bool | None = Field(None, description="keep only that of each label")
    fill_holes: bool | None = None

    def params(self) -> dict[str, Any]:
        """What of it is for the model."""
        given = self.model_dump(exclude={"version"}, exclude_none=True)
        if self.spacing_mm is not None:
            given["spacing_mm"] = [float(size) for size in self.spacing_mm.split(",")]
        return given


class SampleBody(BaseModel):
    """What to draw; what is left out is up to the model, what it cannot do is refused."""

    model_config = ConfigDict(
        extra="forbid",
        populate_by_name=True,
        json_schema_extra={"example": {"n": 4, "class": "T1", "seed": 7, "steps": 20}},
    )

    n: int | None = Field(None, ge=1, description="number of images")
    label: str | None = Field(None, alias="class", description="name of the class")
    seed: int | None = Field(None, description="the same seed draws the same images")
    steps: int | None = Field(None, ge=1, description="calls of the network")
    sampler: str | None = None
    size: int | None = Field(None, ge=1, description="height and width in pixels")


class ModelDescription(BaseModel):
    """One version of one model."""

    name: str
    version: str
    default: bool = Field(description="answers when a request names no version")
    task: Task
    title: str
    labels: list[str]
    input_kinds: list[str]
    max_payload_bytes: int = Field(description="of one file")
    ready: bool
    reason: str = Field(description="why it is not ready; empty where it is")
    metrics: dict[str, Any] = Field(description="the figures that its archive states")
    archive_digest: str
    card: str = Field(description="address of its card")


class ModelList(BaseModel):
    """The models that the caller may use."""

    models: list[ModelDescription]


class Readiness(BaseModel):
    """Whether requests are answered."""

    ready: bool


def describe(info: ModelInfo) -> dict[str, Any]:
    """A model as `ModelDescription` has it."""
    return ModelDescription(
        name=info.name,
        version=info.version,
        default=info.default,
        task=info.task,
        title=info.title,
        labels=list(info.labels),
        input_kinds=[kind.value for kind in info.input_kinds],
        max_payload_bytes=info.spec.input.max_payload_bytes,
        ready=info.ready,
        reason=info.health.reason,
        metrics=dict(info.metrics),
        archive_digest=info.digest,
        card=f"/v1/models/{info.name}/card?version={info.version}",
    ).model_dump()
