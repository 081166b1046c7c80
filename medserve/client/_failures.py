"""From gRPC statuses to medserve's errors, and which of them are safe to try again.

TorchServe's codes mislead: an unknown model is INTERNAL, a bug in a handler is UNAVAILABLE, which
gRPC itself would repeat. So the text decides before the code does:

| status | text | error | again? |
|---|---|---|---|
| any | `CODE: message` of medserve's handlers | the error of that code | BUSY |
| INTERNAL | Model not found, Model version … does not exist | UnknownModelError | |
| INTERNAL | BadRequestException | InvalidRequestError | |
| INTERNAL | has no worker (queue full) | ServerBusyError | yes |
| INTERNAL | Worker died (crash, time limit) | ServerFailedError | |
| RESOURCE_EXHAUSTED | Worker died (killed from outside) | ServerBusyError | yes |
| RESOURCE_EXHAUSTED | message larger than max | PayloadTooLargeError | |
| CANCELLED | RST_STREAM, error code 8: over the server's limit | PayloadTooLargeError | |
| CANCELLED | the same with no time left: the server's clock was first | DeadlineError | |
| UNAVAILABLE | Prediction failed, … model predict output | ServerFailedError | |
| UNAVAILABLE | nobody listens | ServerUnreachableError | yes |
| UNAVAILABLE | not gRPC, TLS does not match, connection lost | ServerUnreachableError | |
| UNAUTHENTICATED, PERMISSION_DENIED | | AuthenticationError | |
| DEADLINE_EXCEEDED | | DeadlineError | |
| INVALID_ARGUMENT | | InvalidRequestError | |
| NOT_FOUND | | UnknownModelError | |
| UNIMPLEMENTED | | ServerUnreachableError: another service lives there | |
| others | | ServerFailedError | |
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from medserve.errors import (
    AuthenticationError,
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

__all__ = ["Failure", "explain"]

_HANDLER_FAILED = ("Prediction failed", "model predict output", "batch response mismatched")
_NEVER_CONNECTED = ("failed to connect", "errors resolving", "DNS resolution failed")
_CLOSED = ("reset by peer", "Socket closed", "Broken pipe")
_TOO_SLOW = "tcp handshaker shutdown"
_NOT_GRPC = ("Failed parsing HTTP/2", "http1.x", "http2 header with status")


@dataclass(frozen=True)
class Failure:
    """One failed call.

    Attributes:
        error: For the user.
        retry: Whether the same call may be sent again.
        may_be_late: The server ended the call as it does one that is too large and one whose
            deadline has passed; the time that is left tells which.
    """

    error: MedserveError
    retry: bool = False
    may_be_late: bool = False


def explain(error: grpc.RpcError, address: str) -> Failure:
    """What a failed call means; `address` is where it went."""
    # grpc.RpcError declares neither method, but every one that a call raises has both.
    code: grpc.StatusCode = error.code()
    text: str = error.details() or ""
    if (own := error_from_text(text)) is not None:
        return Failure(own, retry=isinstance(own, ServerBusyError))
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return _unavailable(text, address)
        case grpc.StatusCode.INTERNAL:
            return _internal(text)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return _exhausted(text)
        case grpc.StatusCode.CANCELLED if "error code 8" in text or "RST_STREAM" in text:
            return Failure(
                PayloadTooLargeError(
                    "the server cut the request off: it is larger than the server accepts; "
                    "send a smaller file or raise the server's limit"
                ),
                may_be_late=True,
            )
    return Failure(_by_code(code, text, address))


def _unavailable(text: str, address: str) -> Failure:
    if any(sign in text for sign in _HANDLER_FAILED):
        return Failure(
            ServerFailedError(
                f"the model failed on this request ({text}); its server's log tells why"
            )
        )
    if any(sign in text for sign in _NOT_GRPC):
        return Failure(
            ServerUnreachableError(
                f"{address} answers, but not gRPC; give the gRPC port (7070 by default), not the "
                "HTTP one"
            )
        )
    if _is_about_tls(text):
        return Failure(
            ServerUnreachableError(
                f"{address} and this client cannot agree on TLS; use TLS on both sides and trust "
                f"the server's authority ({_last(text)})"
            )
        )
    if any(sign in text for sign in _NEVER_CONNECTED):
        if any(sign in text for sign in _CLOSED):
            return Failure(
                ServerUnreachableError(
                    f"{address} closes the connection at once ({_last(text)}); does it expect TLS?"
                )
            )
        return Failure(
            ServerUnreachableError(
                f"nobody answers gRPC at {address} ({_last(text)}); is it running? medserve serve"
            ),
            retry="resolv" not in text,  # a wrong name stays wrong
        )
    # The request had left: whether it was worked on is unknown.
    return Failure(
        ServerUnreachableError(f"the connection to {address} was lost ({_last(text)}); try again")
    )


def _is_about_tls(text: str) -> bool:
    # A TCP connection that took too long is "tcp handshaker shutdown": no TLS in it.
    return "handshake" in text.replace(_TOO_SLOW, "") or "CERTIFICATE" in text


def _internal(text: str) -> Failure:
    reason = text.partition("\n")[0]  # the name of a Java class follows
    if "Model not found" in text or "does not exist for model" in text:
        return Failure(UnknownModelError(f"{reason}; `medserve models` lists what the server has"))
    if "BadRequestException" in text:
        return Failure(InvalidRequestError(f"the server refuses the request: {reason}"))
    if "has no worker" in text:
        return Failure(
            ServerBusyError("the model's queue is full or its workers are down; try again later"),
            retry=True,
        )
    if "Worker died" in text:
        return Failure(
            ServerFailedError(
                "the model's worker died on this request or ran out of time; it restarts by "
                "itself, the server's log tells why"
            )
        )
    return Failure(ServerFailedError(reason or "the server failed without saying why"))


def _exhausted(text: str) -> Failure:
    if "message larger than max" in text:
        return Failure(
            PayloadTooLargeError(f"the message is over the client's limit ({text}); raise it")
        )
    return Failure(
        ServerBusyError(f"the server is busy or lost a worker ({text}); try again"), retry=True
    )


def _by_code(code: grpc.StatusCode, text: str, address: str) -> MedserveError:
    match code:
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
            return AuthenticationError(
                f"{address} refuses the token: it is missing, wrong or expired; give a fresh one"
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineError(f"{address} gave no answer in time; allow more or send less")
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidRequestError(text)
        case grpc.StatusCode.NOT_FOUND:
            return UnknownModelError(text)
        case grpc.StatusCode.UNIMPLEMENTED:
            return ServerUnreachableError(
                f"{address} speaks gRPC, but another service than the one asked for; were "
                "inference port (7070) and management port (7071) mixed up?"
            )
    return ServerFailedError(f"the server failed with {code.name} ({text or 'no reason given'})")


def _last(text: str) -> str:
    """The end of gRPC's chain of causes: what really happened, on one line."""
    return " ".join(text.split()).rsplit(": ", 1)[-1].strip(" ]") or "no reason given"
