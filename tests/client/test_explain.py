"""Heat maps through both clients."""

from __future__ import annotations

import asyncio

import pytest

from medserve.client import AsyncClient, ClassificationOptions, Client, Limits
from medserve.errors import InvalidImageError, PayloadTooLargeError, ServerFailedError
from medserve.tasks.classification import EXPLAINED_PER_CALL, Explanation
from tests.client.fake_gateway import LABELS, FakeGateway, classification
from tests.gateway.fake_engine import Request

EXPLAIN = ClassificationOptions(explain=True)
IMAGES = [f"{LABELS[place % 6]} {place}".encode() for place in range(20)]


def test_an_explanation_comes_with_the_class(client: Client) -> None:
    answer = client.classify_one("mednist", b"Hand", options=EXPLAIN)
    assert answer.explanation == Explanation(
        label="Hand",
        without_warmest=0.25,
        without_coolest=0.75,
        full_colour=1.5,
        heatmap_png=b"map of Hand",
    )


def test_nothing_is_explained_unasked(client: Client, fake: FakeGateway) -> None:
    assert client.classify_one("mednist", b"Hand").explanation is None
    assert "params" not in fake.requests[0].inputs


def test_no_call_asks_for_more_than_a_model_explains(client: Client, fake: FakeGateway) -> None:
    results = client.classify("mednist", IMAGES, options=EXPLAIN)
    for image, result in zip(IMAGES, results, strict=True):
        explanation = result.unwrap().explanation
        assert explanation is not None
        assert image.decode().startswith(explanation.label)
    sizes = sorted(len([key for key in each.inputs if "data." in key]) for each in fake.requests)
    assert sizes == [4, EXPLAINED_PER_CALL, EXPLAINED_PER_CALL]
    assert {each.inputs["params"] for each in fake.requests} == {b'{"explain": true}'}


def test_smaller_limits_of_the_caller_stay(fake: FakeGateway) -> None:
    with Client(fake.address, limits=Limits(items_per_call=3)) as client:
        client.classify("mednist", IMAGES[:7], options=EXPLAIN)
    sizes = sorted(len([key for key in each.inputs if "data." in key]) for each in fake.requests)
    assert sizes == [1, 3, 3]


def test_images_asked_for_again_in_halves_are_still_explained(
    client: Client, fake: FakeGateway
) -> None:
    def at_most_four_images(request: Request) -> None:
        if len([key for key in request.inputs if key.startswith("data.")]) > 4:
            raise PayloadTooLargeError("the request is larger than the engine accepts")

    fake.hooks = [at_most_four_images]
    results = client.classify("mednist", IMAGES[:8], options=EXPLAIN)
    assert all(result.unwrap().explanation for result in results)
    assert len(fake.requests) == 3
    assert {each.inputs["params"] for each in fake.requests} == {b'{"explain": true}'}


def test_a_broken_image_among_explained_ones_costs_only_itself(client: Client) -> None:
    first, broken, last = client.classify("mednist", [b"Hand", b"letter", b"CXR"], options=EXPLAIN)
    assert isinstance(broken.error, InvalidImageError)
    assert first.unwrap().explanation is not None
    assert last.unwrap().explanation is not None


@pytest.mark.parametrize("explanation", ["yes", {}, {"label": "Hand"}, [1]])
def test_an_explanation_that_is_none_is_the_server_s_fault(
    client: Client, fake: FakeGateway, explanation: object
) -> None:
    fake.answer = lambda payload: classification("Hand") | {"explanation": explanation}
    with pytest.raises(ServerFailedError, match="expected an explanation"):
        client.classify_one("mednist", b"Hand")


def test_the_asyncio_client_explains_too(fake: FakeGateway) -> None:
    async def run() -> list[Explanation | None]:
        async with AsyncClient(fake.address) as client:
            one = await client.classify_one("mednist", b"CXR", options=EXPLAIN)
            many = await client.classify("mednist", IMAGES, options=EXPLAIN)
        return [one.explanation, *(each.unwrap().explanation for each in many)]

    assert all(asyncio.run(run()))
    sizes = [len([key for key in each.inputs if "data." in key]) for each in fake.requests]
    assert max(sizes) == EXPLAINED_PER_CALL
