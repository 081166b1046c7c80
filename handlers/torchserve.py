"""The adapter to TorchServe: the only module that knows its classes, and imports them late.

Metrics that a handler reports; `metrics.yaml` must declare them under `model_metrics`, or
TorchServe drops them:

    histogram  MedserveRequestSeconds  unit s      dimensions ModelName, Level
               time that the handler took for one gathered batch
    counter    MedserveItems           unit count  dimensions Status, ModelName, Level
               files answered; Status is "ok" or the code of the error
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from medserve.errors import MedserveError

__all__ = [
    "ITEMS",
    "REQUEST_SECONDS",
    "WorkerContext",
    "end_stream",
    "keep_log_short",
    "prediction_error",
    "report",
    "send_chunk",
]

REQUEST_SECONDS = "MedserveRequestSeconds"
ITEMS = "MedserveItems"
_LEVEL = "Model"

logger = logging.getLogger(__name__)


class WorkerContext(Protocol):
    """What handlers use of `ts.context.Context`."""

    system_properties: Mapping[str, Any]
    model_yaml_config: Mapping[str, Any] | None
    model_name: str
    metrics: Any
    request_ids: Mapping[int, str]

    def get_request_id(self, idx: int = 0) -> str | None:
        """TorchServe's own id of one request of the batch."""

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Set a header of one answer of the batch."""


def keep_log_short() -> None:
    """Drop the lines that TorchServe writes for every batch and that nobody reads.

    Java wakes up for each line of a worker and parses it: for a lone request of a small model that
    is a third of the server's work. Own metrics stay; PredictionTime is declared nowhere.
    """
    logging.getLogger().addFilter(_is_no_receipt)
    logging.getLogger("ts.metrics.caching_metric").addFilter(_is_own_metric)


def _is_no_receipt(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Backend received inference")


def _is_own_metric(record: logging.LogRecord) -> bool:
    return str(record.msg).startswith((f"[METRICS]{REQUEST_SECONDS}", f"[METRICS]{ITEMS}"))


def end_stream(context: WorkerContext, index: int) -> None:
    """Mark an answer as the last of its stream; see `request.needs_end_marker`."""
    context.set_response_header(index, "ts_stream_next", "false")


def send_chunk(context: WorkerContext, chunks: Sequence[bytes]) -> None:
    """Send one part of a streamed answer to every request of the batch, before the last part."""
    from ts.handler_utils.utils import send_intermediate_predict_response

    send_intermediate_predict_response(list(chunks), context.request_ids, "ok", 200, context)


def prediction_error(error: MedserveError) -> Exception:
    """The exception that becomes a gRPC status with the text "CODE: message".

    It fails the whole gathered batch, so only handlers with a batch of one may raise it.
    """
    from ts.utils.util import PredictionException

    wrapped: Exception = PredictionException(f"{error.code}: {error.message}", error.http_status)
    return wrapped


def report(context: WorkerContext, seconds: float, items: Mapping[str, int]) -> None:
    """Report one gathered batch: its time, and the number of files by status.

    Every metric is a line that TorchServe parses, so there is one per batch and status rather
    than one per file.
    """
    if context.metrics is None:
        return
    from ts.metrics.metric_type_enum import MetricTypes

    model = context.model_name
    try:
        histogram = context.metrics.get_metric(REQUEST_SECONDS, MetricTypes.HISTOGRAM)
        histogram.add_or_update(seconds, [model, _LEVEL])
        counter = context.metrics.get_metric(ITEMS, MetricTypes.COUNTER)
        for status, number in items.items():
            counter.add_or_update(number, [status, model, _LEVEL])
    except Exception:  # not declared, or another TorchServe: an answer matters more
        logger.debug("metrics are not declared; see handlers/torchserve.py")
