"""The HTTP form of the Open Inference Protocol: JSON, with tensors behind it as bytes or inside.

A body is a JSON object. With the binary tensor extension its length stands in the header
`Inference-Header-Content-Length`, and the bytes of those tensors that state a `binary_data_size`
follow it, in their order. Inside the JSON, files are base64: an input says so by the parameter
`content_type` of `base64`, and an output that holds files carries the same parameter.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from medserve.errors import InvalidRequestError, PayloadTooLargeError
from medserve.gateway.faces.oip.tensors import Tensor, join_elements, read_tensors
from medserve.wire import open_inference_pb2 as pb

__all__ = ["HEADER", "InferBody", "InferRequest", "read_request", "write_response"]

HEADER = "inference-header-content-length"

_BASE64 = "base64"
_TEXTS = (
    "label",
    "labels",
    "names",
    "units",
    "status",
    "error",
)  # every other output of type BYTES holds files
_MOST_MEMBERS = 25_000  # of a body: 10,000 files with what belongs to each, and some more
_MOST_NUMBERS = 2**22  # of an output inside JSON
_Int64 = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
_Parameters = dict[str, bool | _Int64 | float | str]


class InferInput(BaseModel):
    """One tensor of a request."""

    name: str
    datatype: str
    shape: list[_Int64]
    parameters: _Parameters = {}
    data: list[Any] = Field(default=[], description="its elements; not with binary_data_size")


class InferOutput(BaseModel):
    """One output that is asked for."""

    name: str
    parameters: _Parameters = {}


class InferBody(BaseModel):
    """A request of the Open Inference Protocol."""

    id: str = ""
    parameters: _Parameters = {}
    inputs: list[InferInput] = []
    outputs: list[InferOutput] = []


@dataclass(frozen=True)
class InferRequest:
    """A request, and which of its outputs come as bytes behind the JSON.

    Attributes:
        message: The same request as gRPC carries it, its tensors raw.
        binary: By name, where the request says it for an output; `binary_by_default` elsewhere.
    """

    message: pb.ModelInferRequest
    binary: Mapping[str, bool]
    binary_by_default: bool


def read_request(body: bytes, header: str | None, model: str, version: str) -> InferRequest:
    """Return the request in a body.

    Args:
        body: The whole body.
        header: What `Inference-Header-Content-Length` says; None without it.
        model: Named by the address.
        version: Named by the address; "" leaves the choice to the server.

    Raises:
        InvalidRequestError: It is malformed.
        PayloadTooLargeError: It has more parts than files are ever sent at once.
    """
    size = _header_size(header, len(body))
    content = _parsed(body[:size])
    message = pb.ModelInferRequest(model_name=model, model_version=version, id=content.id)
    rest = memoryview(body)[size:]
    for tensor in content.inputs:
        parameters = dict(tensor.parameters)
        raw, rest = _raw(tensor, parameters, rest)
        made = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        _set(made.parameters, parameters)
        message.raw_input_contents.append(raw)
    if rest:
        raise InvalidRequestError(
            f"expected a body that ends with its tensors, got {len(rest)} bytes more; state the "
            f"length of the JSON in {HEADER} and binary_data_size with every binary tensor"
        )
    parameters = dict(content.parameters)
    by_default = _flag(parameters.pop("binary_data_output", False), "binary_data_output")
    _set(message.parameters, parameters)
    binary = {}
    for output in content.outputs:
        parameters = dict(output.parameters)
        binary[output.name] = _flag(parameters.pop("binary_data", by_default), "binary_data")
        _set(message.outputs.add(name=output.name).parameters, parameters)
    return InferRequest(message, binary, by_default)


def write_response(response: pb.ModelInferResponse, asked: InferRequest) -> tuple[bytes, int]:
    """Return the body of an answer, and the length of the JSON that it begins with.

    Raises:
        PayloadTooLargeError: An output is too large for JSON.
    """
    outputs, behind = [], []
    for tensor in read_tensors(response):
        output: dict[str, Any] = {
            "name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape),
        }  # fmt: skip
        if asked.binary.get(tensor.name, asked.binary_by_default):
            behind.append(tensor.raw())
            output["parameters"] = {"binary_data_size": len(behind[-1])}
        else:
            output |= _inside(tensor)
        outputs.append(output)
    content = {
        "model_name": response.model_name,
        "model_version": response.model_version,
        **({"id": response.id} if response.id else {}),
        "parameters": {
            name: getattr(each, each.WhichOneof("parameter_choice") or "string_param")
            for name, each in response.parameters.items()
        },
        "outputs": outputs,
    }
    head = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    return b"".join((head, *behind)), len(head)


def _header_size(header: str | None, body: int) -> int:
    if header is None:
        return body
    if not (header.isascii() and header.isdigit() and len(header) < 10 and int(header) <= body):
        raise InvalidRequestError(
            f"expected in {HEADER} how many bytes of the body are JSON, at most {body}, got "
            "something else"
        )
    return int(header)


def _parsed(head: bytes) -> InferBody:
    if sum(head.count(mark) for mark in (b",", b"[", b"{")) > _MOST_MEMBERS:
        raise PayloadTooLargeError(
            f"expected at most {_MOST_MEMBERS} members of JSON in a request, got more; send "
            "several requests"
        )
    try:
        return InferBody.model_validate_json(head)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"] if part in _MEMBERS)
        raise InvalidRequestError(
            "expected a JSON object with inputs, each with name, datatype, shape and data; "
            f"{place or 'the body'}: {first['type'].replace('_', ' ')}"
        ) from None


_MEMBERS = {
    name for kind in (InferBody, InferInput, InferOutput) for name in kind.model_fields
}  # fmt: skip


def _raw(
    tensor: InferInput, parameters: dict[str, Any], rest: memoryview
) -> tuple[bytes, memoryview]:
    """Return the bytes of one input, and what of the body lies behind them."""
    size = parameters.pop("binary_data_size", None)
    encoded = parameters.get("content_type") == _BASE64
    if encoded:
        del parameters["content_type"]
    if size is not None:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(rest):
            raise InvalidRequestError(
                f"input {tensor.name}: expected a binary_data_size of at most the {len(rest)} "
                f"bytes that lie behind the JSON, got another one; {HEADER} tells where it ends"
            )
        return bytes(rest[:size]), rest[size:]
    if tensor.datatype != "BYTES":  # no model takes one; the face says so
        return b"", rest
    return join_elements(_element(each, tensor.name, encoded) for each in _flat(tensor.data)), rest


def _flat(data: Sequence[Any]) -> Iterator[Any]:
    """Yield the elements of lists in lists, in row-major order; JSON bounds their depth."""
    for each in data:
        if isinstance(each, list):
            yield from _flat(each)
        else:
            yield each


def _element(element: Any, name: str, encoded: bool) -> bytes:
    if not isinstance(element, str):
        raise InvalidRequestError(f"input {name}: expected texts in data, got something else")
    try:
        return base64.b64decode(element, validate=True) if encoded else element.encode()
    except (binascii.Error, ValueError):
        raise InvalidRequestError(
            f"input {name}: expected base64 in data as its content_type says, got something else"
        ) from None


def _set(members: Any, parameters: Mapping[str, Any]) -> None:
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    for name, value in parameters.items():
        setattr(members[name], kinds[type(value)], value)


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequestError(f"parameter {name}: expected true or false, got something else")
    return value


def _inside(tensor: Tensor) -> dict[str, Any]:
    """Return what carries a tensor inside JSON; numbers that are not a number are null."""
    if isinstance(tensor.values, Sequence):
        if tensor.name in _TEXTS:
            return {"data": [each.decode("utf-8", "replace") for each in tensor.values]}
        files = [base64.b64encode(each).decode() for each in tensor.values]
        return {"parameters": {"content_type": _BASE64}, "data": files}
    if tensor.values.size > _MOST_NUMBERS:
        raise PayloadTooLargeError(
            f"output {tensor.name}: its {tensor.values.size} numbers are too many for JSON; ask "
            "for it with binary_data, or for a file such as mask_nifti"
        )
    numbers = tensor.values.ravel(order="C").tolist()
    if tensor.datatype.startswith("FP"):
        numbers = [each if math.isfinite(each) else None for each in numbers]
    return {"data": numbers}
