"""What the REST calls take and give, as OpenAPI describes it; answers are built as plain JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from medserve.gateway.core.calls import ModelInfo
from medserve.gateway.faces.options import describe_option, options_of
from medserve.spec import Task
from medserve.spec.values import ValueSpec
from medserve.tasks import OPTIONS, Option, declared

__all__ = [
    "ClassifiedFiles",
    "ClassifyQuery",
    "Error",
    "EstimateQuery",
    "EstimatedFiles",
    "ModelDescription",
    "ModelList",
    "OptionsQuery",
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
    label: str | None = Field(None, description="absent where labels are independent")
    label_id: int | None = None
    probability: float | None = None
    present: list[str] | None = Field(
        None, description="labels that are present, where they are independent; else absent"
    )
    probabilities: dict[str, float] | None = None
    top: list[LabelProbability] | None = None
    review: bool | None = Field(None, description="let a person look")
    novelty: float | None = Field(
        None, description="above 1 the class means little; absent where the model cannot tell"
    )
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


class FileEstimate(BaseModel):
    """One number that the network tells of a file."""

    name: str
    value: float = Field(description="in the unit; it is not cut to a range")
    unit: str = Field(description="UCUM code; 1 stands for none")
    unit_name: str
    doubt: str = Field(description="why a person should look; empty where it is plausible")


class EstimatedFile(BaseModel):
    """What became of one file: its numbers, or an error."""

    index: int = Field(description="place among the files of the request, from 0")
    name: str = Field(description="what its sender calls the file, without folders")
    status: Literal["ok", "error"]
    values: list[FileEstimate] | None = None
    review: bool | None = Field(None, description="let a person look")
    error: ErrorContent | None = None


class EstimatedFiles(BaseModel):
    """The answer to a form: one item per file, in the order of the form.

    A request with one file as its body is answered with the members of that file alone.
    """

    model: str
    version: str
    archive_digest: str
    items: list[EstimatedFile]


class VersionQuery(BaseModel):
    """Which version of a model; a misspelt parameter is refused."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field("", description="the default version if empty")


class OptionsQuery(VersionQuery):
    """The version, and options of the task; what is left out is up to the model."""

    def params(self) -> dict[str, Any]:
        """Return the options that the caller gave."""
        return self.model_dump(exclude={"version"}, exclude_unset=True, exclude_none=True)


def _fields(*tasks: Task) -> dict[str, Any]:
    """Return a field for every option that one of the tasks declares."""
    found: dict[str, dict[Task, Option]] = {}
    for task in tasks:
        for option in declared(OPTIONS[task]):
            found.setdefault(option.key, {})[task] = option
    return {key: _field(by_task) for key, by_task in found.items()}


def _field(by_task: Mapping[Task, Option]) -> tuple[Any, Any]:
    """Return type and description of an option that several tasks may declare."""
    first = next(iter(by_task.values()))
    choices = tuple({word: None for each in by_task.values() for word in each.choices})
    helps = {option.help: task for task, option in by_task.items()}
    described = " ".join(helps)
    if len(helps) > 1:
        described = " ".join(f"{task.capitalize()}: {text}" for text, task in helps.items())
    kind: Any = Literal[choices] if choices else first.kind
    if first.count > 1:
        kind, described = str, f"{described} Numbers with commas between them."
    limits: dict[str, Any] = {}
    if kind is not str:
        limits = {"ge": first.least, "le": first.most, "gt": first.above}
    default = getattr(first.default, "value", first.default)
    return (
        kind if default is not None else kind | None,
        Field(default, description=described, **limits),
    )


# What the queries and the body of a call take, as the tasks declare it.
ClassifyQuery = create_model("ClassifyQuery", __base__=OptionsQuery, **_fields(Task.CLASSIFICATION))
EstimateQuery = create_model("EstimateQuery", __base__=OptionsQuery, **_fields(Task.REGRESSION))
SegmentQuery = create_model(
    "SegmentQuery", __base__=OptionsQuery, **_fields(Task.VOLUMES, Task.FRAMES)
)
SampleBody = create_model(
    "SampleBody",
    __doc__="What to draw; what is left out is up to the model, what it cannot do is refused.",
    __config__=ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"n": 4, "class": "T1", "seed": 7, "steps": 20}},
    ),
    **_fields(Task.GENERATION),
)


class OptionDescription(BaseModel):
    """One option of a model."""

    name: str
    type: Literal["bool", "int", "float", "str"] = Field(description="of each value")
    count: int = Field(description="how many values; in a query with commas between them")
    choices: list[str] = Field(description="the words that are allowed; empty: any value")
    least: float | None = Field(description="smallest number")
    most: float | None = Field(description="largest number")
    above: float | None = Field(description="a number that the value must exceed")
    default: bool | int | float | str | None = Field(description="null: the model decides")
    help: str


class ModelValue(BaseModel):
    """One number that a model tells of an image."""

    name: str
    unit: str = Field(description="UCUM code; 1 stands for none")
    unit_name: str
    range: list[float] | None = Field(description="least and most that is plausible, in the unit")


class ModelDescription(BaseModel):
    """One version of one model."""

    name: str
    version: str
    default: bool = Field(description="answers when a request names no version")
    task: Task
    title: str
    labels: list[str]
    values: list[ModelValue] = Field(description="of the task regression; else empty")
    input_kinds: list[str]
    channels: list[str] = Field(
        description="images of one grid that make one case, in order: a form with a file for each, "
        "in a field data.NAME or named …_0000, …_0001; empty where a single file is a case"
    )
    max_payload_bytes: int = Field(description="of one file")
    ready: bool
    reason: str = Field(description="why it is not ready; empty where it is")
    metrics: dict[str, Any] = Field(description="the figures that its archive states")
    archive_digest: str
    card: str = Field(description="address of its card")
    options: list[OptionDescription] = Field(description="what a caller may ask of it")


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
        values=[_value(each) for each in info.spec.values],
        input_kinds=[kind.value for kind in info.input_kinds],
        channels=list(info.channels),
        max_payload_bytes=info.spec.input.max_payload_bytes,
        ready=info.ready,
        reason=info.health.reason,
        metrics=dict(info.metrics),
        archive_digest=info.digest,
        card=f"/v1/models/{info.name}/card?version={info.version}",
        options=[OptionDescription(**describe_option(each)) for each in options_of(info)],
    ).model_dump()


def _value(spec: ValueSpec) -> ModelValue:
    span = None if spec.range is None else list(spec.range)
    return ModelValue(name=spec.name, unit=spec.unit, unit_name=spec.unit_name, range=span)
