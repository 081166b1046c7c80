"""Archives that an earlier release built are served and answer as before.

`tests/old_archives` holds one of each task, with the code of commit 78e3c09 in it: from before
volumes and frames were two tasks, and before a configuration had exactly one section.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from medserve.imaging.codecs import nifti
from medserve.settings import EngineKind
from medserve.wire import inference_pb2, inference_pb2_grpc
from tests.backends import running_backend
from tests.frame_phantoms import ellipse, scan
from tests.gateway.running import running_gateway
from tests.phantoms import raster_bytes
from tests.tiny_room import LABELS, bright_tile
from tests.tiny_volume_room import known_mask, phantom

_STORE = Path(__file__).parent.parent / "old_archives"


@pytest.fixture(scope="module")
def stub(engine_kind: EngineKind) -> Iterator[inference_pb2_grpc.InferenceAPIsServiceStub]:
    """The gateway before an engine that serves the four archives."""
    with (
        running_backend(engine_kind, _STORE) as engine,
        running_gateway(*engine.before(canary_timeout_s=30.0)) as gateway,
        grpc.insecure_channel(gateway.addresses.grpc) as channel,
    ):
        yield inference_pb2_grpc.InferenceAPIsServiceStub(channel)


def predict(
    stub: inference_pb2_grpc.InferenceAPIsServiceStub, model: str, **inputs: bytes
) -> bytes:
    request = inference_pb2.PredictionsRequest(model_name=model, input=inputs)
    return stub.Predictions(request, timeout=60).prediction


def test_a_classifier_names_the_class(stub: inference_pb2_grpc.InferenceAPIsServiceStub) -> None:
    answer = json.loads(predict(stub, "tiny", data=bright_tile(1)))
    assert answer["label"] == LABELS[1]


def test_a_mask_lies_on_its_volume(stub: inference_pb2_grpc.InferenceAPIsServiceStub) -> None:
    payload = nifti.encode(phantom())
    mask = nifti.decode(predict(stub, "tiny_volume", data=payload))
    np.testing.assert_array_equal(mask.array, known_mask(phantom()))
    stored = nifti.decode(payload).geometry.affine  # in the 32 bits of a header
    np.testing.assert_array_equal(mask.geometry.affine, stored)


def test_a_mask_lies_on_its_frame(stub: inference_pb2_grpc.InferenceAPIsServiceStub) -> None:
    mask = Image.open(io.BytesIO(predict(stub, "tiny_frame", data=raster_bytes(scan()))))
    np.testing.assert_array_equal(np.asarray(mask), 255 * ellipse())


def test_a_sampler_draws(stub: inference_pb2_grpc.InferenceAPIsServiceStub) -> None:
    wishes = json.dumps({"n": 2, "seed": 7, "steps": 3}).encode()
    answer = json.loads(predict(stub, "painter", params=wishes))
    assert len(answer["images"]) == 2
