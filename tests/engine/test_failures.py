"""Every status that TorchServe gives, and the error that the gateway makes of it."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from medserve.engine.torchserve.failures import engine_failure
from medserve.errors import (
    DeadlineError,
    InvalidImageError,
    InvalidRequestError,
    MedserveError,
    ModelNotReadyError,
    PayloadTooLargeError,
    ServerBusyError,
    ServerFailedError,
    ServerUnreachableError,
    UnknownModelError,
)

JAVA = "org.pytorch.serve.archive.model"
NO_WORKER = 'Model "mednist" has no worker to serve inference request. Please use scale workers API'


def status(code: str, text: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        grpc.StatusCode[code], grpc.aio.Metadata(), grpc.aio.Metadata(), text, None
    )


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        ("INTERNAL", "Model not found: mednist", UnknownModelError),
        ("INTERNAL", f"Model not found: mednist\n{JAVA}.ModelNotFoundException", UnknownModelError),
        (
            "INTERNAL",
            f"Model version: 9 does not exist for model: mednist\n{JAVA}.ModelVersion…",
            UnknownModelError,
        ),
        (
            "INTERNAL",
            "Parameter model_name is required.\nBadRequestException.()",
            InvalidRequestError,
        ),
        ("INTERNAL", NO_WORKER, ServerBusyError),
        ("INTERNAL", "Worker died.", ServerFailedError),
        ("INTERNAL", "anything else", ServerFailedError),
        ("RESOURCE_EXHAUSTED", "Worker died.", ServerBusyError),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (9 vs. 8)", PayloadTooLargeError),
        ("CANCELLED", "Received RST_STREAM with error code 8", PayloadTooLargeError),
        ("UNAVAILABLE", "Prediction failed", ServerFailedError),
        ("UNAVAILABLE", "Invalid model predict output", ServerFailedError),
        ("UNAVAILABLE", "number of batch response mismatched", ServerFailedError),
        ("UNAVAILABLE", "recvmsg:Connection reset by peer", ServerUnreachableError),
        ("DEADLINE_EXCEEDED", "", DeadlineError),
        ("INVALID_ARGUMENT", "INVALID_IMAGE: expected PNG, got text", InvalidImageError),
        ("FAILED_PRECONDITION", "PAYLOAD_TOO_LARGE: over 40 megapixels", PayloadTooLargeError),
        ("UNAVAILABLE", "BUSY: come back later", ServerBusyError),
        ("FAILED_PRECONDITION", "NOT_READY: no golden answer", ModelNotReadyError),
        ("INTERNAL", "NOT_OURS: a colon in a text", ServerFailedError),
        ("UNKNOWN", "", ServerFailedError),
    ],
)
def test_status_becomes_its_error(code: str, text: str, expected: type[MedserveError]) -> None:
    error = engine_failure(status(code, text))
    assert type(error) is expected
    assert error.message
    assert "\n" not in error.message


def test_the_name_of_a_java_class_is_no_part_of_a_message() -> None:
    text = "INVALID_IMAGE: expected NIfTI, got text\norg.pytorch.serve.http.InternalServerException"
    assert engine_failure(status("INTERNAL", text)).message == "expected NIfTI, got text"
