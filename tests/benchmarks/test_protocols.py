from __future__ import annotations

import base64
import json
import struct

import pytest

from benchmarks.protocols import encode_calls
from medserve.wire.inference_pb2 import PredictionsRequest
from medserve.wire.open_inference_pb2 import ModelInferRequest

IMAGES = [b"first", b"second", b"third"]


def test_single_calls_carry_the_images_in_turn() -> None:
    calls = [PredictionsRequest.FromString(each) for each in _predictions(IMAGES, 1)]

    assert [dict(call.input) for call in calls] == [
        {"data": image, "transport": b"grpc"} for image in IMAGES
    ]
    assert {call.model_name for call in calls} == {"mednist"}


def test_packed_calls_go_on_where_the_last_one_ended() -> None:
    calls = [PredictionsRequest.FromString(each) for each in _predictions(IMAGES, 2)]

    assert (calls[0].input["data.0"], calls[0].input["data.1"]) == (b"first", b"second")
    assert (calls[1].input["data.0"], calls[1].input["data.1"]) == (b"third", b"first")
    assert set(calls[0].input) == {"data.0", "data.1", "transport"}


def test_oip_carries_the_image_as_one_bytes_element() -> None:
    (message,) = encode_calls("oip", "mednist", [b"pixels"], 1)
    request = ModelInferRequest.FromString(message)

    assert (request.inputs[0].datatype, list(request.inputs[0].shape)) == ("BYTES", [1, 1])
    assert request.raw_input_contents[0] == struct.pack("<I", 6) + b"pixels"


def test_http_carries_base64() -> None:
    (message,) = encode_calls("http", "mednist", [b"\xff\xd8"], 1)

    assert base64.b64decode(json.loads(message)["image"]) == b"\xff\xd8"


def test_only_torchserve_takes_packed_calls() -> None:
    with pytest.raises(ValueError, match="expected one image a call"):
        encode_calls("oip", "mednist", IMAGES, 2)


def _predictions(images: list[bytes], images_per_call: int) -> list[bytes]:
    return encode_calls("predictions", "mednist", images, images_per_call)
