"""From answers to typed results."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from itertools import count
from typing import Any

from medserve.client._requests import Chunk
from medserve.client._results import (
    ItemResult,
    ModelStatus,
    SegmentationResult,
    VolumeResult,
)
from medserve.errors import (
    AuthenticationError,
    InvalidRequestError,
    MedserveError,
    ServerFailedError,
    ServerUnreachableError,
    UnknownModelError,
    error_from_code,
)
from medserve.results.segmentation import Segmentation
from medserve.tasks import volumes
from medserve.tasks.classification import Classification
from medserve.tasks.result import Provenance

__all__ = [
    "content_of",
    "default_version",
    "failed",
    "file_in",
    "health",
    "items",
    "model_page",
    "of_one",
    "segmentation",
    "statuses",
    "unsent",
    "volume_result",
    "whole",
]

# Not worth asking for the next image: it would end in the same way.
_OF_THE_WHOLE = (AuthenticationError, ServerUnreachableError, UnknownModelError)


def whole(prediction: bytes) -> bytes:
    """One answer as it came; raises where it is an error in JSON."""
    if prediction.lstrip()[:1] == b"{":
        try:
            content = json.loads(prediction)
        except (ValueError, RecursionError):
            return prediction
        if isinstance(content, dict) and "error" in content:
            raise _error(content["error"])
    return prediction


def items(prediction: bytes, chunk: Chunk, model: str) -> list[ItemResult]:
    """One result per item of the chunk, in order.

    Raises:
        MedserveError: the answer speaks of the whole call, not of single images.
    """
    content = _json(prediction)
    if "error" in content:
        raise _error(content["error"])
    provenance = Provenance.from_json(content)
    by_place = _by_place(content)
    sent = count()
    return [
        ItemResult(item, Provenance(model, "", ""))
        if isinstance(item, MedserveError)
        else ItemResult(_outcome(by_place.get(next(sent))), provenance)
        for item in chunk.items
    ]


def unsent(chunk: Chunk, model: str) -> list[ItemResult]:
    """The errors of a chunk that holds nothing else."""
    nobody = Provenance(model, "", "")
    return [ItemResult(item, nobody) for item in chunk.items if isinstance(item, MedserveError)]


def failed(chunk: Chunk, error: MedserveError, model: str) -> list[ItemResult]:
    """One result per item of a chunk whose call failed; raises what concerns every image."""
    if isinstance(error, _OF_THE_WHOLE) or type(error) is InvalidRequestError:
        # Exactly InvalidRequestError: its subclass speaks of one image.
        raise error
    nobody = Provenance(model, "", "")
    return [
        ItemResult(item if isinstance(item, MedserveError) else error, nobody)
        for item in chunk.items
    ]


def segmentation(prediction: bytes) -> SegmentationResult:
    """The answer to one volume; raises where it is an error in JSON or something else."""
    result = volumes.VolumeResult.decode(prediction)
    return SegmentationResult(
        segmentation=Segmentation.from_result(result),
        provenance=result.provenance,
        mask_nifti=result.mask_nifti,
        overlay_png=result.overlay_png,
        entropy_nifti=result.entropy_nifti,
        dicom_seg=result.dicom_seg,
    )


def volume_result(outcome: bytes | MedserveError) -> VolumeResult:
    """The result of one of several volumes; raises what concerns every volume."""
    if isinstance(outcome, MedserveError):
        return VolumeResult(of_one(outcome))
    try:
        return VolumeResult(segmentation(outcome))
    except MedserveError as error:
        return VolumeResult(of_one(error))


def of_one(error: MedserveError) -> MedserveError:
    """The error of one of several files; raises it where it concerns all of them."""
    if isinstance(error, _OF_THE_WHOLE):
        raise error
    return error


def content_of(prediction: bytes, ability: str) -> dict[str, Any]:
    """The members of a JSON answer; raises where it is an error, or something else.

    Args:
        prediction: The answer.
        ability: What the model was asked to do, for the error.
    """
    content = _json(prediction, ability)
    if "error" in content:
        raise _error(content["error"])
    return content


def file_in(content: Mapping[str, Any], name: str) -> bytes | None:
    """A file in a JSON answer, where it has it."""
    if name not in content:
        return None
    try:
        return base64.b64decode(content[name], validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise ServerFailedError(f"expected base64 under {name}, got something else") from error


def _by_place(content: Mapping[str, Any]) -> dict[object, Mapping[str, Any]]:
    answers = content.get("items")
    if not isinstance(answers, list) or not all(isinstance(each, Mapping) for each in answers):
        raise ServerFailedError(
            f"expected a list of items in the answer, got members {sorted(content)}"
        )
    return {each.get("index"): each for each in answers}


def _outcome(answer: Mapping[str, Any] | None) -> Classification | MedserveError:
    if answer is None:
        return ServerFailedError("the server's answer leaves this image out")
    try:
        if answer.get("status") != "ok":
            return _error(answer.get("error"))
        classification = Classification.from_json(answer)
    except ServerFailedError as error:
        return error
    return classification if classification.labels else ServerFailedError("no labels in the answer")


def _error(content: object) -> MedserveError:
    if not isinstance(content, Mapping):
        return ServerFailedError("the server reports an error without saying which")
    return error_from_code(str(content.get("code")), str(content.get("message")))


def _json(content: bytes | str, ability: str = "classify") -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, absurdly nested
        raise ServerFailedError(
            f"expected a JSON answer, got {len(content)} bytes of something else; does this model "
            f"{ability}?"
        ) from error
    if not isinstance(parsed, dict):
        raise ServerFailedError(f"expected a JSON object, got {type(parsed).__name__}")
    return parsed


def health(text: str) -> str:
    """The word in TorchServe's answer to a ping."""
    return str(_json(text).get("status", text))


def model_page(text: str) -> tuple[list[str], int]:
    """Names on one page of TorchServe's list, and the token of the next page (0: none)."""
    content = _json(text)
    names = [str(model["modelName"]) for model in content.get("models", [])]
    return names, int(content.get("nextPageToken") or 0)


def default_version(text: str) -> str:
    """Version in TorchServe's description of a model's default version."""
    described = _descriptions(text)
    return str(described[0].get("modelVersion", "")) if described else ""


def statuses(text: str, default: str) -> list[ModelStatus]:
    """All versions in TorchServe's description of one model."""
    return [_status(described, default) for described in _descriptions(text)]


def _descriptions(text: str) -> list[dict[str, Any]]:
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise ServerFailedError("expected a JSON description of a model") from error
    if not isinstance(parsed, list) or not all(isinstance(each, dict) for each in parsed):
        raise ServerFailedError("expected a list of a model's versions")
    return parsed


def _status(described: Mapping[str, Any], default: str) -> ModelStatus:
    workers = described.get("workers") or []
    queue = described.get("jobQueueStatus") or {}
    return ModelStatus(
        name=str(described.get("modelName", "")),
        version=str(described.get("modelVersion", "")),
        default=str(described.get("modelVersion", "")) == default,
        workers=len(workers),
        workers_ready=sum(worker.get("status") == "READY" for worker in workers),
        batch_size=int(described.get("batchSize", 1)),
        pending=int(queue.get("pendingRequests", 0)),
    )
