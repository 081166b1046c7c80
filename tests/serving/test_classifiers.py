"""Classifiers of grey and of colour images through real gRPC: broken files, and heat maps."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as pillow

from medserve.client import ClassificationOptions, Client
from medserve.errors import DeadlineError, InvalidImageError, MedserveError
from medserve.tasks.classification import EXPLAINED_PER_CALL
from medserve.wire import inference_pb2, inference_pb2_grpc
from tests.phantoms import dicom_bytes, raster_bytes, wedge
from tests.serving.test_bad_input import BAD_FILES
from tests.tiny_colour_room import COLOUR_LABELS, tinted
from tests.tiny_room import LABELS, bright_tile, endless_picture

REPOSITORY = Path(__file__).parents[2]
GREY = wedge(128, 128)
EXPLAINED = ClassificationOptions(explain=True)


@pytest.fixture(params=["tiny_colour", "blood_cell"])
def of_colour(request: pytest.FixtureRequest, models: tuple[str, ...]) -> str:
    """A classifier of colour images: one with a known answer, and the trained one."""
    name: str = request.param
    if name not in models:
        pytest.skip(f"models/{name}/weights is not complete; python -m training.{name}")
    return name


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_costs_a_colour_model_nothing_but_itself(
    name: str, client: Client, of_colour: str
) -> None:
    data, expected = BAD_FILES[name]
    before, bad, after = client.classify(of_colour, [tinted(0), data, tinted(1)])
    assert type(bad.error) is expected
    with pytest.raises(MedserveError) as alone:
        client.predict(of_colour, data)
    assert str(alone.value) == str(bad.error)
    assert before.result is not None
    assert after.result is not None


def test_dicom_is_no_smear(client: Client, of_colour: str) -> None:
    with pytest.raises(InvalidImageError, match="PNG, JPEG"):
        client.classify_one(of_colour, dicom_bytes(wedge()))


@pytest.mark.parametrize(
    "picture",
    [
        pytest.param(raster_bytes(GREY), id="grey"),
        pytest.param(raster_bytes(GREY.astype(np.uint16) * 257, "TIFF"), id="16-bit"),
        pytest.param(raster_bytes(np.dstack([GREY] * 3)[:20]), id="strip"),
        pytest.param(raster_bytes(np.dstack([GREY] * 3).repeat(3, 0).repeat(3, 1)), id="large"),
    ],
)
def test_unusual_pictures_are_answered(picture: bytes, client: Client, of_colour: str) -> None:
    assert client.classify_one(of_colour, picture).label


def test_three_broken_files_of_300_cost_none_of_the_others(client: Client, of_colour: str) -> None:
    images = [tinted(place % 3) for place in range(300)]
    for place in (0, 150, 299):
        images[place] = images[place][:60]
    results = client.classify(of_colour, images)
    assert [place for place, result in enumerate(results) if result.error] == [0, 150, 299]
    if of_colour == "tiny_colour":
        good = [(place, each) for place, each in enumerate(results) if not each.error]
        assert all(each.unwrap().label == COLOUR_LABELS[place % 3] for place, each in good)


def levels(client: Client, model: str, image: bytes) -> npt.NDArray[np.int64]:
    """The heat map as numbers around zero."""
    explanation = client.classify_one(model, image, options=EXPLAINED).explanation
    assert explanation is not None
    picture = pillow.open(io.BytesIO(explanation.heatmap_png))
    return np.asarray(picture).astype(np.int64) - 128


def test_a_colour_map_is_warmest_on_the_spot(client: Client) -> None:
    warmth = levels(client, "tiny_colour", tinted(1, height=72, width=60))
    assert warmth.shape == (72, 60)
    row, column = np.unravel_index(warmth.argmax(), warmth.shape)
    assert 9 <= row < 36
    assert 15 <= column < 30


def test_a_grey_map_is_warmest_on_the_brightest_tile(client: Client) -> None:
    warmth = levels(client, "tiny", bright_tile(5))
    row, column = np.unravel_index(warmth.argmax(), warmth.shape)
    assert row >= 32
    assert column >= 42


@pytest.mark.parametrize("model", ["mednist", "blood_cell"])
def test_trained_classifiers_lose_most_where_their_maps_are_warmest(
    model: str, client: Client, models: tuple[str, ...]
) -> None:
    if model not in models:
        pytest.skip(f"models/{model}/weights is not complete; python -m training.{model}")
    examples = sorted((REPOSITORY / "models" / model / "examples").iterdir())
    for path in examples:  # one a call: they would share the time of one
        answer = client.classify_one(model, path, options=EXPLAINED)
        assert answer.explanation is not None
        assert answer.explanation.label == answer.label
        with pillow.open(path) as picture:
            heat = pillow.open(io.BytesIO(answer.explanation.heatmap_png))
            assert heat.size == picture.size
        assert answer.explanation.without_warmest <= answer.explanation.without_coolest


def ask(address: str, count: int, params: dict[str, object]) -> Any:
    """One packed call of that size, as any client of TorchServe sends it."""
    images = {f"data.{place}": bright_tile(place % 6) for place in range(count)}
    with grpc.insecure_channel(address) as channel:
        answer = inference_pb2_grpc.InferenceAPIsServiceStub(channel).Predictions(
            inference_pb2.PredictionsRequest(
                model_name="tiny",
                input={**images, "params": json.dumps(params).encode(), "transport": b"grpc"},
            ),
            timeout=60,
        )
    return json.loads(answer.prediction)


def test_more_images_than_a_call_may_explain_are_refused(address: str) -> None:
    items = ask(address, EXPLAINED_PER_CALL + 1, {"explain": True})["items"]
    assert {item["error"]["code"] for item in items} == {"PAYLOAD_TOO_LARGE"}


def test_the_client_explains_any_number(client: Client) -> None:
    images = [bright_tile(place % 6) for place in range(2 * EXPLAINED_PER_CALL + 3)]
    results = client.classify("tiny", images, options=EXPLAINED)
    explanations = [result.unwrap().explanation for result in results]
    assert [each.label for each in explanations if each] == [
        LABELS[place % 6] for place in range(len(images))
    ]


def test_an_explanation_that_nobody_waits_for_is_not_made(address: str, client: Client) -> None:
    with (
        Client(address, timeout_s=0.005) as hasty,
        pytest.raises(DeadlineError),
    ):
        hasty.classify_one("tiny", endless_picture(), options=EXPLAINED)
    assert client.classify_one("tiny", bright_tile(2)).label == "top-right"
