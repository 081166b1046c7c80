"""Tensors of the Open Inference Protocol: bytes on the wire to values, and back.

A message carries its tensors in one of two ways, all of them in the same: as lists of numbers in
each tensor (`contents`), or as little-endian bytes beside the tensors (`raw_input_contents`).
Elements of type BYTES stand in raw bytes one behind the other, each after its length as four
bytes, little-endian.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medserve.errors import InvalidRequestError, PayloadTooLargeError
from medserve.wire import open_inference_pb2 as pb

__all__ = [
    "Tensor",
    "bytes_elements",
    "join_elements",
    "read_tensors",
    "too_many",
    "write_tensors",
]

_MOST_ELEMENTS = 10_000  # files in one request, as over REST
_MOST_AXES = 8
_NUMBERS: dict[str, tuple[str, str]] = {  # datatype: numpy's name for it, member of `contents`
    "BOOL": ("?", "bool_contents"),
    "UINT8": ("u1", "uint_contents"),
    "INT64": ("<i8", "int64_contents"),
    "FP32": ("<f4", "fp32_contents"),
    "FP64": ("<f8", "fp64_contents"),
}


@dataclass(frozen=True, eq=False)
class Tensor:
    """One named output: numbers, or texts and files as `bytes`."""

    name: str
    datatype: str
    values: npt.NDArray[Any] | Sequence[bytes]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size along each axis."""
        if isinstance(self.values, np.ndarray):
            return self.values.shape
        return (len(self.values),)

    def raw(self) -> bytes:
        """As raw_output_contents carries it."""
        if isinstance(self.values, np.ndarray):
            return self.values.astype(_NUMBERS[self.datatype][0]).tobytes(order="C")
        return join_elements(self.values)

    def contents(self) -> pb.InferTensorContents:
        """As `contents` carries it."""
        if isinstance(self.values, np.ndarray):
            member = _NUMBERS[self.datatype][1]
            return pb.InferTensorContents(**{member: self.values.ravel(order="C").tolist()})
        return pb.InferTensorContents(bytes_contents=self.values)


def bytes_elements(request: pb.ModelInferRequest, name: str) -> list[bytes] | None:
    """The elements of the BYTES input `name`; None where the request does not have it.

    Raises:
        InvalidRequestError: another type, or bytes that do not fit the stated shape.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequestError(
            f"expected raw_input_contents for all {len(request.inputs)} inputs or for none, "
            f"got {len(raw)}"
        )
    for place, tensor in enumerate(request.inputs):
        if tensor.name != name:
            continue
        if tensor.datatype != "BYTES":
            raise InvalidRequestError(
                f"input {name}: expected the type BYTES (encoded files), got another one"
            )
        if len(tensor.shape) > _MOST_AXES or len(tensor.contents.bytes_contents) > _MOST_ELEMENTS:
            raise too_many()
        found = _split(raw[place], name) if raw else list(tensor.contents.bytes_contents)
        if any(size < 0 for size in tensor.shape) or math.prod(tensor.shape) != len(found):
            raise InvalidRequestError(
                f"input {name}: expected as many elements as its shape {list(tensor.shape)} has, "
                f"got {len(found)}"
            )
        return found
    return None


def write_tensors(response: pb.ModelInferResponse, tensors: Iterable[Tensor], *, raw: bool) -> None:
    """Add the outputs to the response, all of them raw or none."""
    for tensor in tensors:
        output = response.outputs.add(
            name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
        )
        if raw:
            response.raw_output_contents.append(tensor.raw())
        else:
            output.contents.CopyFrom(tensor.contents())


def read_tensors(response: pb.ModelInferResponse) -> list[Tensor]:
    """Return the outputs of a response that carries them as raw bytes."""
    return [
        Tensor(output.name, output.datatype, _split(raw, output.name))
        if output.datatype == "BYTES"
        else Tensor(
            output.name,
            output.datatype,
            np.frombuffer(raw, _NUMBERS[output.datatype][0]).reshape(output.shape),
        )
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    ]


def join_elements(elements: Iterable[bytes]) -> bytes:
    """Return elements of type BYTES as raw bytes."""
    return b"".join(part for each in elements for part in (_length(each), each))


def _length(element: bytes) -> bytes:
    return struct.pack("<I", len(element))


def too_many() -> PayloadTooLargeError:
    """Return the refusal of a request of more parts than files are ever sent at once."""
    return PayloadTooLargeError(
        f"expected at most {_MOST_ELEMENTS} elements and {_MOST_AXES} axes of a tensor, and few "
        "tensors and parameters, got more; send several requests"
    )


def _split(raw: bytes, name: str) -> list[bytes]:
    """Elements of type BYTES out of raw bytes."""
    found: list[bytes] = []
    place = 0
    while place < len(raw):
        if len(found) == _MOST_ELEMENTS:
            raise too_many()
        start = place + 4
        size = int.from_bytes(raw[place:start], "little")
        place = start + size
        if place > len(raw):
            raise InvalidRequestError(
                f"input {name}: expected each element after its length in four little-endian "
                "bytes, got a length that reaches behind the end"
            )
        found.append(raw[start:place])
    return found
