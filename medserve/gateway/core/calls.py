"""What passes through the gateway: who asks, what for, and what the engine behind it must offer.

Plain values without protobuf or HTTP, so that every face (TorchServe's own contract, the Open
Inference Protocol, the typed calls, REST and the page) builds the same `EngineCall` and gets the
same checks.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medserve.archive.reference import Reference
from medserve.engine.interface import EngineRequest, Health
from medserve.errors import MedserveError, error_from_code
from medserve.spec import InputKind, ModelSpec, Task

__all__ = [
    "EVERY_MODEL",
    "Caller",
    "EngineCall",
    "Face",
    "Health",
    "ModelInfo",
    "error_in",
    "network_address",
    "new_request_id",
]

EVERY_MODEL = "*"  # the scope that opens every model, also those of tomorrow
_REQUEST_ID = re.compile(r"[0-9A-Fa-f-]{8,64}")  # a UUID or a trace id, and nothing readable
_ERROR_MEMBER = b'"status":"error"'
_ADDRESSES = 4096  # kept in memory: the same callers come again
_HEAD_BYTES = 1024  # of an answer; its own status stands there


class Face(enum.StrEnum):
    """The contract over which a call came in."""

    TORCHSERVE = "torchserve"
    OIP = "oip"
    TYPED = "typed"
    HTTP = "http"


@dataclass(frozen=True)
class Caller:
    """Who asks, and for which models they may ask.

    Attributes:
        name: As in the tokens file or the client's certificate; "" where nobody has to say.
        scopes: Names of models; `EVERY_MODEL` stands for all.
        address: Network address without the port; stands for the caller where no name is known.
        manages: Whether they may change what is served of these models.
        case: What the call names as its case, so that a share of cases meets another version; in
            no log.
        traceparent: The span in which they ask, as `tracing.read_traceparent` returns it.
    """

    name: str = ""
    scopes: frozenset[str] = frozenset({EVERY_MODEL})
    address: str = field(default="", compare=False)
    manages: bool = False
    case: str = field(default="", compare=False, repr=False)
    traceparent: str = field(default="", compare=False, repr=False)

    @property
    def owner(self) -> str:
        """By what the share of this caller is counted."""
        return self.name or self.address

    def may(self, model: str) -> bool:
        """Whether this caller may use, and know of, the model."""
        return model in self.scopes or EVERY_MODEL in self.scopes


@dataclass(frozen=True)
class EngineCall(EngineRequest):
    """One prediction: a request to the engine, and who asks for it.

    Attributes:
        caller: From `Gateway.authenticate`.
        face: Where the call came in; `wire` is set by the TorchServe face alone.
    """

    caller: Caller = field(kw_only=True)
    face: Face = Face.HTTP

    @property
    def size_bytes(self) -> int:
        """Return how much the call carries."""
        if self.wire is not None:
            return len(self.wire)
        return sum(map(len, self.inputs.values()))

    def changed(self, **fields: Any) -> EngineCall:
        """Return the call with other values in these fields; every call pays for it.

        `dataclasses.replace` does the same in four times the time.
        """
        call: EngineCall = object.__new__(type(self))
        call.__dict__.update(self.__dict__, **fields)
        return call


@dataclass(frozen=True)
class ModelInfo:
    """One version of one model: what its archive says of it, and whether it answers now."""

    spec: ModelSpec
    digest: str  # "sha256:…" of the archive, as in every answer
    default: bool  # answers when a call names no version
    health: Health
    card: str = ""  # markdown
    metrics: Mapping[str, Any] = field(default_factory=dict)  # of the trained model
    reference: Reference | None = None  # its answers on held-out data
    reads_uploads: bool = True  # its code reads files that do not travel within a request
    reads_traceparent: bool = True  # its code knows this key of a request

    @functools.cached_property
    def name(self) -> str:
        """The name under which the model is served."""
        return self.spec.name

    @functools.cached_property
    def version(self) -> str:
        """Version of the archive."""
        return self.spec.version

    @property
    def title(self) -> str:
        """What the model does, in a few words."""
        return self.spec.title

    @functools.cached_property
    def task(self) -> Task:
        """What kind of answer it gives."""
        return self.spec.task

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        return self.spec.labels

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the images that make one case, in the model's order; empty for one file."""
        return () if self.spec.volume is None else tuple(self.spec.volume.channels)

    @property
    def input_kinds(self) -> tuple[InputKind, ...]:
        """The families of file formats that it reads."""
        return self.spec.input.kinds

    @property
    def max_case_bytes(self) -> int:
        """How much all files of one case may hold together."""
        return self.spec.input.max_payload_bytes * max(1, len(self.channels))

    @property
    def ready(self) -> bool:
        """Whether it has proven itself and answers now."""
        return self.health.serving


def new_request_id(given: str | None = None) -> str:
    """`given` where it can be passed on and logged (hexadecimal digits and hyphens), or a new one.

    Other text is replaced: a caller may have put a name there.
    """
    return given if given and _REQUEST_ID.fullmatch(given) else str(uuid.uuid4())


@functools.lru_cache(_ADDRESSES)
def network_address(host: str) -> str:
    """Return what one visitor cannot change at will: an IPv4 address, or the /64 of an IPv6 one."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 4:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


def error_in(answer: bytes) -> MedserveError | None:
    """The error that the answer of a batched model holds; None where it is a result.

    Models that gather calls into batches answer a bad input with a body, because a status would
    fail the whole batch. A packed answer is a result, whatever became of its items.
    """
    head = answer[:_HEAD_BYTES]
    place = head.find(_ERROR_MEMBER)
    if place < 0 or head[:1] != b"{" or b'"items":' in head[:place]:
        return None
    try:
        content = json.loads(answer)["error"]
        return error_from_code(str(content["code"]), str(content["message"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
