"""What TorchServe's statuses mean; its codes mislead, so its texts decide first.

| status | text | error |
|---|---|---|
| any | `CODE: message` of medserve's handlers | the error of that code |
| INTERNAL | Model not found, Model version … does not exist | UnknownModelError |
| NOT_FOUND | of the management API, the same texts | UnknownModelError |
| INTERNAL | BadRequestException | InvalidRequestError |
| INTERNAL | has no worker (queue full, or all workers are gone) | ServerBusyError |
| INTERNAL | Worker died (crash, time limit, killed and not reaped yet) | WorkerLostError |
| RESOURCE_EXHAUSTED | Worker died (killed from outside) | WorkerLostError |
| RESOURCE_EXHAUSTED | message larger than max | PayloadTooLargeError |
| CANCELLED | RST_STREAM (over TorchServe's limit) | PayloadTooLargeError |
| UNAVAILABLE | Prediction failed, … model predict output | ServerFailedError |
| UNAVAILABLE | nobody listens, connection lost | ServerUnreachableError |
| DEADLINE_EXCEEDED | | DeadlineError |
| others | | ServerFailedError |

What a caller of the gateway reads names neither an address nor a class of TorchServe.
"""

from __future__ import annotations

import grpc
import grpc.aio

from medserve.engine.interface import WorkerLostError
from medserve.errors import (
    DeadlineError,
    InvalidRequestError,
    MedserveError,
    PayloadTooLargeError,
    ServerBusyError,
    ServerFailedError,
    ServerUnreachableError,
    UnknownModelError,
    error_from_text,
)

__all__ = ["engine_failure", "own_words"]

_HANDLER_FAILED = ("Prediction failed", "model predict output", "batch response mismatched")


def engine_failure(error: grpc.RpcError) -> MedserveError:
    """The error for the gateway's caller."""
    # grpc.RpcError declares neither method, but every one that a call raises has both.
    code: grpc.StatusCode = error.code()
    text: str = error.details() or ""
    if (own := error_from_text(text)) is not None:
        return own
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            if any(sign in text for sign in _HANDLER_FAILED):
                return ServerFailedError("the model failed on this request; its log tells why")
            return ServerUnreachableError("the engine behind the gateway does not answer")
        case grpc.StatusCode.INTERNAL:
            return _internal(text)
        case grpc.StatusCode.NOT_FOUND:
            return UnknownModelError("the engine has no such model or version")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            if "message larger than max" in text:
                return PayloadTooLargeError("the model's answer is over the gateway's limit")
            return WorkerLostError("the worker of the model ended before it had answered")
        case grpc.StatusCode.CANCELLED if "error code 8" in text or "RST_STREAM" in text:
            return PayloadTooLargeError("the request is larger than the engine accepts")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineError("the engine gave no answer in time")
    return ServerFailedError(f"the engine failed with {code.name}")


def own_words(error: MedserveError) -> str:
    """Return what TorchServe itself said, for its operator; no caller of the gateway reads it."""
    cause = error.__cause__
    if isinstance(cause, grpc.aio.AioRpcError):
        return f"{cause.code().name} {cause.details()}"
    return error.message


def _internal(text: str) -> MedserveError:
    if "Model not found" in text or "does not exist for model" in text:
        return UnknownModelError("the engine has no such model or version")
    if "BadRequestException" in text:
        return InvalidRequestError("the engine refuses the request as malformed")
    if "has no worker" in text:
        return ServerBusyError("the model's queue is full or its workers are down; try again later")
    if "Worker died" in text:
        # TorchServe says so to a whole batch, whatever ended the worker.
        return WorkerLostError("the worker of the model ended before it had answered")
    return ServerFailedError("the engine failed without a reason that can be told")
