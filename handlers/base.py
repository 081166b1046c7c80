"""From bytes to answer: what every handler shares.

    bytes ─decode→ image ─preprocess→ tensor ─infer→ outputs ─postprocess→ result ─encode→ bytes

The five verbs are five methods with one input and one output each; a model's handler says what
they do. This class calls them (`_straight_line`) and adds what a server needs around them:
many files in one call of the engine, an error that costs its own file and no other, deadlines,
limits, metrics, and the proof before the first answer.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from handlers import request, torchserve
from handlers.answer import Envelope, Outcome
from handlers.proof import archive_digest, read_golden_pair
from handlers.request import Inputs, Request
from medserve.errors import (
    ConfigError,
    DeadlineError,
    InvalidRequestError,
    MedserveError,
    PayloadTooLargeError,
    ServerFailedError,
)
from medserve.imaging.limits import Payload
from medserve.imaging.result import Provenance
from medserve.inference.engines import Engine, Outputs, choose, load_engine
from medserve.spec import ModelSpec

__all__ = ["Handler"]

Source = TypeVar("Source")  # what is decoded: Image, Volume
Params = TypeVar("Params")  # what a caller may ask for
Result = TypeVar("Result")  # what is answered: Classification, Segmentation

_MAX_RESPONSE_BYTES = 6_553_500  # TorchServe's own default for max_response_size

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Item(Generic[Params]):
    """One file on its way down the line."""

    payload: Payload
    params: Params
    request: Request
    reference: str
    outcome: Outcome | None = None


@dataclass(eq=False)
class _Job(Generic[Params]):
    """One request of a gathered batch: its items, or why it failed as a whole."""

    items: Sequence[_Item[Params]] = ()
    packed: bool = False
    error: MedserveError | None = None

    @property
    def outcomes(self) -> list[Outcome]:
        if self.error is not None:
            return [self.error]
        return [item.outcome or ServerFailedError("no outcome") for item in self.items]


class Handler(ABC, Generic[Source, Params, Result]):
    """Serves one model; a subclass per task says what the five verbs do."""

    max_rows: ClassVar[int] = 64  # rows in one call of the engine; bounds memory
    # Volumes answer with the bare file and raise errors as a gRPC status, one request a batch:
    # TorchServe fails a whole batch for one exception, so batched models answer error bodies.
    raises_errors: ClassVar[bool] = False

    spec: ModelSpec
    engine: Engine

    # ---- the five verbs, and what a caller may ask of the last one

    @abstractmethod
    def decode(self, payload: Payload) -> Source:
        """The bytes of a file -> what it shows; MedserveError where it cannot be used."""

    @abstractmethod
    def preprocess(self, source: Source) -> npt.NDArray[np.float32]:
        """What a file shows -> one row (C, ...) of the network's input, as in training."""

    def infer(self, tensors: npt.NDArray[np.float32]) -> Outputs:
        """Rows (N, C, ...) -> every output of the network, N rows each."""
        return self.engine.run(tensors)

    @abstractmethod
    def postprocess(self, outputs: Outputs) -> Result:
        """The network's outputs for one file -> its result."""

    @abstractmethod
    def encode(self, result: Result, params: Params) -> bytes:
        """A result -> the bytes of its answer, shaped as the caller asked."""

    @abstractmethod
    def parse_params(self, params: Mapping[str, object]) -> Params:
        """What the caller asked for; InvalidRequestError names the known keys."""

    def check_outputs(self, outputs: Outputs) -> None:
        """Refuse an artifact whose outputs (one row) do not fit the model's description."""

    # ---- the line

    def _straight_line(self, items: Sequence[_Item[Params]]) -> None:
        """Up to `max_rows` files at once; each ends with an answer or with its own error."""
        ready, tensors = [], []
        for item in items:
            with _blaming(item):
                _refuse_expired(item.request)
                tensors.append(self.preprocess(self.decode(item.payload)))
                ready.append(item)
        if not ready:
            return
        with _blaming(*ready):
            outputs = self.infer(np.stack(tensors))
            for row, item in enumerate(ready):
                with _blaming(item):
                    own = {name: array[row] for name, array in outputs.items()}
                    item.outcome = self.encode(self.postprocess(own), item.params)

    # ---- TorchServe calls these two

    def initialize(self, context: torchserve.WorkerContext) -> None:
        """Load the archive beside the handler and prove it; raising keeps the worker unready."""
        _silence_codecs()
        folder = Path(context.system_properties["model_dir"])
        self.spec = _read_spec(context, folder)
        if self.raises_errors and self.spec.serving.batch_size != 1:
            raise ConfigError(
                f"{self.spec.name}: expected batchSize 1, for its errors fail the whole batch; "
                f"got {self.spec.serving.batch_size}"
            )
        provenance = Provenance(self.spec.name, self.spec.version, archive_digest(folder))
        self._envelope = Envelope(provenance)
        self._max_response_bytes = _max_response_bytes()
        chosen = choose(self.spec, gpu=context.system_properties.get("gpu_id"))
        self.engine = load_engine(
            chosen.name,
            folder,
            precision=chosen.precision,
            threads=chosen.threads,
            device=chosen.device,
        )
        self.prepare()
        self._prove(folder)
        torchserve.keep_log_short()
        logger.info(
            "%s %s is proven: %s %s, threads %d, %s",
            self.spec.name, self.spec.version, chosen.name, chosen.precision, chosen.threads,
            chosen.device,
        )  # fmt: skip

    def prepare(self) -> None:
        """Import what the first request would otherwise wait for."""

    def handle(self, data: Sequence[Inputs], context: torchserve.WorkerContext) -> list[bytes]:
        """Answer a gathered batch: one answer per request, in order."""
        started = time.perf_counter()
        jobs = [
            self._job(inputs, context.get_request_id(index) or str(index))
            for index, inputs in enumerate(data)
        ]
        items = [item for job in jobs for item in job.items]
        for start in range(0, len(items), self.max_rows):
            self._straight_line(items[start : start + self.max_rows])
        answers = [self._answer(job) for job in jobs]
        for index, inputs in enumerate(data):
            if request.needs_end_marker(inputs):
                torchserve.end_stream(context, index)
        statuses = Counter(_status(outcome) for job in jobs for outcome in job.outcomes)
        torchserve.report(context, time.perf_counter() - started, statuses)
        if self.raises_errors:
            _raise_first(jobs)
        return answers

    # ---- around the line

    def _prove(self, folder: Path) -> None:
        """Reproduce the golden output, then run the batch sizes that will come most."""
        golden = read_golden_pair(folder)
        row = self.preprocess(self.decode(golden.payload))
        outputs = self.infer(row[np.newaxis])
        self.check_outputs(outputs)
        golden.check(outputs)
        for rows in {min(self.spec.serving.batch_size, self.max_rows), self.max_rows} - {1}:
            self.infer(np.repeat(row[np.newaxis], rows, axis=0))

    def _job(self, inputs: Inputs, server_id: str) -> _Job[Params]:
        try:
            parsed = request.parse(inputs, self.spec.input)
            if self.raises_errors and parsed.packed:
                raise InvalidRequestError("expected one file a call, got data.0; send it as data")
            params = self.parse_params(parsed.params)
        except MedserveError as error:
            return _Job(error=error)
        except Exception as error:
            return _Job(error=_internal(error, server_id))
        reference = parsed.request_id or server_id
        items = [_Item(payload, params, parsed, reference) for payload in parsed.payloads]
        return _Job(items, parsed.packed)

    def _answer(self, job: _Job[Params]) -> bytes:
        outcomes = job.outcomes
        if self.raises_errors and isinstance(outcomes[0], bytes):
            answer = outcomes[0]
        elif job.packed:
            answer = self._envelope.packed(outcomes)
        else:
            answer = self._envelope.single(outcomes[0])
        if len(answer) <= self._max_response_bytes:
            return answer
        job.error = PayloadTooLargeError(
            f"expected an answer of at most {self._max_response_bytes} bytes, got {len(answer)}; "
            "send fewer files in one call or ask for less"
        )
        return self._envelope.single(job.error)


def _read_spec(context: torchserve.WorkerContext, folder: Path) -> ModelSpec:
    if context.model_yaml_config:
        return ModelSpec.from_mapping(context.model_yaml_config)
    return ModelSpec.from_file(folder / "model-config.yaml")


def _max_response_bytes() -> int:
    """The server's max_response_size: a larger answer makes TorchServe kill the worker."""
    stated = os.environ.get("MEDSERVE_MAX_RESPONSE_BYTES", str(_MAX_RESPONSE_BYTES))
    if not (stated.isascii() and stated.isdigit()):
        raise ConfigError(f"MEDSERVE_MAX_RESPONSE_BYTES: expected a number, got {stated!r}")
    return int(stated)


def _silence_codecs() -> None:
    # What they log quotes headers. The worker is ours, so its loggers are too.
    for name in ("PIL", "pydicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _refuse_expired(parsed: Request) -> None:
    if parsed.expires_at is not None and time.monotonic() >= parsed.expires_at:
        raise DeadlineError(
            "expected to answer within deadline_ms, got to this file later; "
            "allow more time or send fewer files in one call"
        )


@contextmanager
def _blaming(*items: _Item[Params]) -> Iterator[None]:
    """What goes wrong inside becomes the outcome of these items, and of no others."""
    try:
        yield
    except MedserveError as error:
        outcome: MedserveError = error
    except Exception as error:
        outcome = _internal(error, items[0].reference)
    else:
        return
    for item in items:
        item.outcome = outcome


def _internal(error: Exception, reference: str) -> MedserveError:
    """A bug: the caller gets a reference, the log the place. Its text may quote the input."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"
    logger.error("internal error, reference %s: %s at %s", reference, type(error).__name__, place)
    return ServerFailedError(f"internal error, reference {reference}")


def _status(outcome: Outcome) -> str:
    return "ok" if isinstance(outcome, bytes) else outcome.code


def _raise_first(jobs: Sequence[_Job[Params]]) -> None:
    for job in jobs:
        for outcome in job.outcomes:
            if isinstance(outcome, MedserveError):
                raise torchserve.prediction_error(outcome) from None
