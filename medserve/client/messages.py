"""What goes over the wire and comes from it, as values of the client and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.json_format import MessageToDict

from medserve.client.results import ModelStatus
from medserve.errors import MedserveError, ServerFailedError
from medserve.spec import Task
from medserve.tasks.classification import Classification
from medserve.tasks.options import Options
from medserve.tasks.regression import Regression
from medserve.tasks.result import error_of
from medserve.wire import inference_pb2
from medserve.wire.v1 import imaging_pb2

__all__ = [
    "Asked",
    "Understood",
    "classification_of",
    "error_in",
    "regression_of",
    "request_of",
    "status_of",
]

Found = TypeVar("Found")
Understood = Callable[[Mapping[str, Any] | MedserveError], Found | MedserveError]


@dataclass(frozen=True)
class Asked:
    """What the calls for one method have in common."""

    model: str
    version: str | None
    options: Options

    def request(self, files: Mapping[str, bytes]) -> inference_pb2.PredictionsRequest:
        """Return the message that asks about these files."""
        return request_of(self.model, self.version, files, self.options.to_params() or None)


def request_of(
    model: str,
    version: str | None,
    files: Mapping[str, bytes],
    params: Mapping[str, Any] | None,
) -> inference_pb2.PredictionsRequest:
    """Return the message of one call; `params` are options as JSON has them."""
    content = dict(files)
    if params is not None:
        content["params"] = json.dumps(params).encode()
    return inference_pb2.PredictionsRequest(
        model_name=model, model_version=version or "", input=content
    )


def classification_of(item: Mapping[str, Any] | MedserveError) -> Classification | MedserveError:
    """Return the classification of one item of an answer, or why there is none."""
    found = _read(item, Classification.from_json)
    is_empty = isinstance(found, Classification) and not found.labels
    return ServerFailedError("no labels in the answer") if is_empty else found


def regression_of(item: Mapping[str, Any] | MedserveError) -> Regression | MedserveError:
    """Return the numbers of one item of an answer, or why there are none."""
    return _read(item, Regression.from_json)


def _read(
    item: Mapping[str, Any] | MedserveError, from_json: Callable[[Mapping[str, Any]], Found]
) -> Found | MedserveError:
    if isinstance(item, MedserveError):
        return item
    try:
        return from_json(item)
    except ServerFailedError as error:
        return error


def error_in(answer: bytes) -> MedserveError | None:
    """Return the error where the answer is one in JSON; any other answer is the model's own."""
    if b'"error"' not in answer or answer.lstrip()[:1] != b"{":
        return None
    try:
        content = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return error_of(content["error"]) if isinstance(content, dict) and "error" in content else None


_TASKS = {
    imaging_pb2.TASK_CLASSIFICATION: Task.CLASSIFICATION,
    imaging_pb2.TASK_REGRESSION: Task.REGRESSION,
    imaging_pb2.TASK_VOLUMES: Task.VOLUMES,
    imaging_pb2.TASK_FRAMES: Task.FRAMES,
    imaging_pb2.TASK_GENERATION: Task.GENERATION,
}


def status_of(model: imaging_pb2.Model) -> ModelStatus:
    """Return what a gateway says of one version of a model."""
    return ModelStatus(
        name=model.name,
        version=model.version,
        default=model.default_version,
        ready=model.ready,
        task=_TASKS.get(model.task),
        title=model.title,
        labels=tuple(model.labels),
        values=tuple((each.name, each.unit) for each in model.values),
        input_kinds=tuple(model.input_kinds),
        channels=tuple(model.channels),
        archive_digest=model.archive_digest,
        card=model.card_markdown,
        metrics=MessageToDict(model.metrics),
    )
