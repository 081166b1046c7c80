"""Bad input through real gRPC: one typed error each, and the next good request works."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import numpy as np
import pytest
from PIL import Image as pillow

from medserve.client import Client, Limits
from medserve.engine.torchserve.lifecycle import Server
from medserve.errors import (
    DeadlineError,
    InvalidImageError,
    InvalidRequestError,
    MedserveError,
    PayloadTooLargeError,
    ServerUnreachableError,
    UnknownModelError,
)
from medserve.wire import inference_pb2, inference_pb2_grpc
from tests.phantoms import dicom_dataset, disc, raster_bytes, saved, wedge
from tests.tiny_room import LABELS, bright_tile, endless_picture


@pytest.fixture(autouse=True)
def _next_good_request_works(client: Client) -> Iterator[None]:
    yield
    assert client.classify_one("tiny", bright_tile(2)).label == "top-right"


def dicom_without_pixels() -> bytes:
    dataset = dicom_dataset(disc())
    del dataset.PixelData
    return saved(dataset)


def animated_gif() -> bytes:
    frames = [pillow.fromarray(wedge(64, 64) + np.uint8(step)) for step in range(3)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


BAD_FILES = {
    "empty file": (b"", InvalidImageError),
    "text": (b"name,age\nDoe,44\n", InvalidImageError),
    "truncated JPEG": (raster_bytes(wedge(99, 99), "JPEG")[:-300], InvalidImageError),
    "one pixel": (raster_bytes(np.zeros((1, 1), np.uint8)), InvalidImageError),
    "bomb of 42 megapixels": (
        raster_bytes(np.zeros((6500, 6500), np.uint8)),
        PayloadTooLargeError,
    ),
    "animated GIF": (animated_gif(), InvalidImageError),
    "DICOM without pixels": (dicom_without_pixels(), InvalidImageError),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_gets_one_typed_error(
    name: str, client: Client, classifiers: tuple[str, ...]
) -> None:
    data, expected = BAD_FILES[name]
    for model in classifiers:
        with pytest.raises(MedserveError) as alone:
            client.predict(model, data)
        assert type(alone.value) is expected
        before, packed, after = client.classify(model, [bright_tile(0), data, bright_tile(1)])
        assert type(packed.error) is expected
        assert str(packed.error) == str(alone.value)
        assert before.result is not None
        assert after.result is not None


def test_sixteen_bit_tiff_is_answered(client: Client, classifiers: tuple[str, ...]) -> None:
    tile = np.asarray(pillow.open(io.BytesIO(bright_tile(3))))
    data = raster_bytes(tile.astype(np.uint16) * 257, "TIFF")
    for model in classifiers:
        assert client.classify_one(model, data).label
    assert client.classify_one("tiny", data).label == "bottom-left"


def test_three_broken_files_of_300_cost_none_of_the_others(client: Client) -> None:
    images = [bright_tile(place % 6) for place in range(300)]
    for place in (0, 150, 299):
        images[place] = images[place][:60]
    results = client.classify("tiny", images)
    assert [place for place, result in enumerate(results) if result.error] == [0, 150, 299]
    for place, result in enumerate(results):
        if place in (0, 150, 299):
            assert type(result.error) is InvalidImageError
        else:
            assert result.unwrap().label == LABELS[place % 6]


@pytest.mark.parametrize("params", [{"colour": "red"}, {"top_k": 0}, {"top_k": "many"}])
def test_params_that_the_model_does_not_know_are_refused(
    params: dict[str, object], client: Client
) -> None:
    with pytest.raises(InvalidRequestError, match="top_k"):
        client.predict("tiny", bright_tile(0), params)


def test_unknown_input_key_is_refused_with_the_known_ones(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        answer = inference_pb2_grpc.InferenceAPIsServiceStub(channel).Predictions(
            inference_pb2.PredictionsRequest(
                model_name="tiny", input={"image": bright_tile(0), "transport": b"grpc"}
            ),
            timeout=20,
        )
    assert b"INVALID_REQUEST" in answer.prediction
    assert b"data.0" in answer.prediction


@pytest.mark.parametrize(
    ("model", "version", "message"),
    [
        ("nosuch", None, "ask for the list of models"),
        ("tiny", "9.9", "expected a version of tiny out of 1.0"),
    ],
)
def test_unknown_model_or_version_is_told(
    model: str, version: str | None, message: str, client: Client
) -> None:
    with pytest.raises(UnknownModelError, match=message):
        client.classify(model, [bright_tile(0)], version=version)


def test_request_without_a_model_is_refused(client: Client) -> None:
    with pytest.raises(UnknownModelError, match="the name of a served model"):
        client.classify("", [bright_tile(0)])


def test_dead_server_is_told() -> None:
    with (
        Client("127.0.0.1:9", limits=Limits(attempts=1)) as dead,
        pytest.raises(ServerUnreachableError, match="medserve serve"),
    ):
        dead.classify("tiny", [bright_tile(0)])


def test_http_port_is_recognised(torchserve: Server) -> None:
    with (
        Client(f"127.0.0.1:{urlsplit(torchserve.metrics_url).port}") as wrong,
        pytest.raises(ServerUnreachableError, match="not gRPC"),
    ):
        wrong.classify("tiny", [bright_tile(0)])


def test_management_port_is_recognised(torchserve: Server) -> None:
    with (
        Client(torchserve.management_address) as wrong,
        pytest.raises(ServerUnreachableError, match="no gateway of medserve"),
    ):
        wrong.classify("tiny", [bright_tile(0)])


def test_expired_deadline_is_told(address: str) -> None:
    with (
        Client(address, timeout_s=0.005) as hasty,
        pytest.raises(DeadlineError),
    ):
        hasty.classify_one("tiny", endless_picture())


def test_missing_file_is_told_beside_the_others(client: Client, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(bright_tile(5))
    missing, good = client.classify("tiny", [tmp_path / "gone.png", tmp_path / "good.png"])
    assert type(missing.error) is InvalidRequestError
    assert good.unwrap().label == "bottom-right"
