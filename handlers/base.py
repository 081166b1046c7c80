"""What every handler shares: the life of a worker, and the answers to a gathered batch.

A task adds what happens to a file between its bytes and its answer, in five verbs:
`handlers.batched` for models that take many images in one call of the engine, `handlers.volumes`
for volumes. This class adds what a server needs around them: an error that costs its own file and
no other, deadlines, limits, metrics, and the proof before the first answer.
"""

from __future__ import annotations

import logging
import os
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar, Generic, TypeVar, cast

from handlers import request, torchserve
from handlers.answer import Envelope
from handlers.golden import archive_digest, read_golden_pair
from handlers.items import Item, Job, internal, status
from handlers.request import Inputs
from handlers.verbs import TracedVerbs
from medserve import tracing
from medserve.errors import (
    ConfigError,
    InvalidRequestError,
    MedserveError,
    PayloadTooLargeError,
)
from medserve.imaging.codecs.payload import Payload, silence_libraries
from medserve.inference.engines import Engine, Outputs, choose, load_engine
from medserve.spec import ModelSpec, Task
from medserve.tasks import OPTIONS
from medserve.tasks.result import Provenance

__all__ = ["Handler"]

Chosen = TypeVar("Chosen")  # what a caller may ask for

_MAX_RESPONSE_BYTES = 6_553_500  # TorchServe's own default for max_response_size

logger = logging.getLogger(__name__)


class Handler(ABC, Generic[Chosen]):
    """Serves one model; a subclass per task says how a file becomes its answer."""

    max_items: ClassVar[int] = 64  # files on the line at a time; bounds memory
    # Volumes answer with the bare file and raise errors as a gRPC status, one request a batch:
    # TorchServe fails a whole batch for one exception, so batched models answer error bodies.
    raises_errors: ClassVar[bool] = False
    verbs: ClassVar[Mapping[str, str]] = {}  # that a trace shows, see `handlers.verbs`

    folder: Path  # of the unpacked archive
    spec: ModelSpec
    engine: Engine
    envelope: Envelope
    provenance: Provenance
    _traced: TracedVerbs | None = None

    # ---- what a task says

    @abstractmethod
    def answer(self, items: Sequence[Item[Chosen]]) -> None:
        """Take up to `max_items` files down the line; each ends with an outcome of its own."""

    @abstractmethod
    def reproduce(self, payload: Payload) -> Outputs:
        """What the network says of the golden input; also warms up what the first call needs."""

    def check_outputs(self, outputs: Outputs) -> None:
        """Refuse an artifact whose outputs do not fit the model's description."""

    def prepare(self) -> None:
        """Import and build, before the proof, what the first request would otherwise wait for."""

    # ---- TorchServe calls these two

    def initialize(self, context: torchserve.WorkerContext) -> None:
        """Load the archive beside the handler and prove it; raising keeps the worker unready."""
        silence_libraries()
        folder = self.folder = Path(context.system_properties["model_dir"])
        self.spec = _read_spec(context, folder)
        if self.raises_errors and self.spec.serving.batch_size != 1:
            raise ConfigError(
                f"{self.spec.name}: expected batchSize 1, for its errors fail the whole batch; "
                f"got {self.spec.serving.batch_size}"
            )
        self.provenance = Provenance(self.spec.name, self.spec.version, archive_digest(folder))
        self.envelope = Envelope(self.provenance)
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
        self._trace()
        torchserve.keep_log_short()
        logger.info(
            "%s %s is proven: %s %s, threads %d, %s",
            self.spec.name, self.spec.version, chosen.name, chosen.precision, chosen.threads,
            chosen.device,
        )  # fmt: skip

    def handle(self, data: Sequence[Inputs], context: torchserve.WorkerContext) -> list[bytes]:
        """Answer a gathered batch: one answer per request, in order."""
        started = time.perf_counter()
        jobs = [
            self._job(inputs, context.get_request_id(index) or str(index))
            for index, inputs in enumerate(data)
        ]
        items = [item for job in jobs for item in job.items]
        with nullcontext() if self._traced is None else self._traced.batch(data, jobs):
            for start in range(0, len(items), self.max_items):
                self.answer(items[start : start + self.max_items])
        answers = [self._answer(job) for job in jobs]
        for index, inputs in enumerate(data):
            if request.needs_end_marker(inputs):
                torchserve.end_stream(context, index)
        statuses = Counter(status(outcome) for job in jobs for outcome in job.outcomes)
        torchserve.report(context, time.perf_counter() - started, statuses)
        if self.raises_errors:
            _raise_first(jobs)
        return answers

    # ---- around the line

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the images that make one case; empty where a file is a case."""
        return () if self.spec.volume is None else tuple(self.spec.volume.channels)

    def parse_params(self, params: Mapping[str, object]) -> Chosen:
        """Read what the caller asks for, as the task declares it and this model allows it."""
        return cast(Chosen, OPTIONS[self.spec.task].from_params(params, self.spec))

    def _trace(self) -> None:
        """Measure the verbs from now on, where the environment says where spans go."""
        if tracing.begin("medserve-worker", self.spec.version):
            about = {"model": self.spec.name, "version": self.spec.version, "task": self.spec.task}
            self._traced = TracedVerbs(self, self.verbs, about)

    def _prove(self, folder: Path) -> None:
        """Reproduce the golden output, or stay unready."""
        golden = read_golden_pair(folder)
        outputs = self.reproduce(golden.payload)
        self.check_outputs(outputs)
        golden.check(outputs)

    def _job(self, inputs: Inputs, server_id: str) -> Job[Chosen]:
        try:
            needs_data = self.spec.task is not Task.GENERATION
            channels = self.channels
            parsed = request.parse(
                inputs, self.spec.input, needs_data=needs_data, channels=channels
            )
            if self.raises_errors and parsed.packed and not channels:
                raise InvalidRequestError("expected one file a call, got data.0; send it as data")
            params = self.parse_params(parsed.params)
        except MedserveError as error:
            return Job(error=error)
        except Exception as error:
            return Job(error=internal(error, server_id))
        reference = parsed.request_id or server_id
        if channels:  # all files are one case, which has one answer
            return Job([Item(parsed.payloads[0], params, parsed, reference)])
        payloads = parsed.payloads or (b"",)  # a generator answers a call, not a file
        items = [Item(payload, params, parsed, reference) for payload in payloads]
        return Job(items, parsed.packed)

    def _answer(self, job: Job[Chosen]) -> bytes:
        outcomes = job.outcomes
        if self.raises_errors and isinstance(outcomes[0], bytes):
            answer = outcomes[0]
        elif job.packed:
            answer = self.envelope.packed(outcomes)
        else:
            answer = self.envelope.single(outcomes[0])
        if len(answer) <= self._max_response_bytes:
            return answer
        job.error = PayloadTooLargeError(
            f"expected an answer of at most {self._max_response_bytes} bytes, got {len(answer)}; "
            "send fewer files in one call or ask for less"
        )
        return self.envelope.single(job.error)


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


def _raise_first(jobs: Sequence[Job[Chosen]]) -> None:
    for job in jobs:
        for outcome in job.outcomes:
            if isinstance(outcome, MedserveError):
                raise torchserve.prediction_error(outcome) from None
