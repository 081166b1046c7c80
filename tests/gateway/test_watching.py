"""Answers are counted without a trace of their inputs, and drift from held-out data is told."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from medserve.archive.reference import REFERENCE as FILE
from medserve.archive.reference import Observed, Reference, read_answer_items
from medserve.errors import ArchiveError
from medserve.gateway.core.calls import Caller, EngineCall, ModelInfo
from medserve.gateway.core.gateway import Gateway
from medserve.gateway.core.metrics import GatewayMetrics
from medserve.gateway.core.watching import ALARM, DriftTest, Watching
from medserve.spec import Task
from medserve.tasks.generation import SampleProgress
from tests.gateway.fake_engine import FakeEngine, fake_gateway, model

NAME = "tiny"


def classified(label: str = "dark", novelty: float = 0.3, probability: float = 0.9) -> Observed:
    return Observed(label=label, novelty=novelty, probability=probability)


def drawn(count: int, seed: int, shift: float = 0.0) -> list[Observed]:
    """Answers whose novelty has, within each of two classes, a scale of its own."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        label = rng.choice(["dark", "bright"])
        scale = 1.0 if label == "dark" else 5.0
        novelty = scale * (rng.random() + shift)
        found.append(classified(label, novelty, 1 - 0.3 * rng.random()))
    return found


REFERENCE = Reference.of("0" * 64, drawn(2000, 0))


def evidence(stream: Sequence[Observed], reference: Reference = REFERENCE) -> list[float]:
    test = DriftTest(reference)
    found = []
    for each in stream:
        test.observe(each)
        found.append(test.evidence)
    return found


def answer(**members: Any) -> bytes:
    head = {"model": NAME, "version": "1.0", "archive_digest": "sha256:0", "status": "ok"}
    return json.dumps(head | members).encode()


def samples(metrics: GatewayMetrics) -> Mapping[tuple[str, str], float]:
    """Name and label -> value of what concerns answers."""
    return {
        (each.name.removeprefix("medserve_gateway_"), each.labels.get("label", "")): each.value
        for family in metrics.registry.collect()
        for each in family.samples
        if each.labels.get("version") == "1.0"
    }


# ---- the test of drift


@pytest.mark.cpu
def test_inputs_of_the_held_out_kind_raise_no_alarm() -> None:
    for seed in range(1, 11):
        assert max(evidence(drawn(2000, seed))) < ALARM


def test_a_shift_raises_an_alarm_within_200_inputs() -> None:
    before, shifted = drawn(1000, 1), drawn(200, 2, shift=0.3)
    assert max(evidence(before + shifted)) >= ALARM


def test_one_class_alone_is_no_drift() -> None:
    alone = [each for each in drawn(3000, 3) if each.label == "bright"]
    assert max(evidence(alone)) < ALARM


def test_a_shift_in_one_class_alone_is_drift() -> None:
    shifted = [classified("dark", each.novelty or 0.0) for each in drawn(300, 4)
               if each.label == "bright"]  # fmt: skip
    assert max(evidence(shifted)) >= ALARM


def test_an_alarm_ends_after_its_cause() -> None:
    drifted = drawn(5000, 5, shift=2.0)
    assert evidence(drifted)[-1] >= ALARM
    assert evidence(drifted + drawn(1000, 6))[-1] < ALARM


def test_a_class_without_reference_says_nothing() -> None:
    assert evidence([classified("unknown", 1e9, 0.0)] * 1000)[-1] == 0.0


@settings(deadline=None)
@given(values=st.lists(st.floats(-1e6, 1e6), min_size=20, max_size=300))
def test_held_out_inputs_lie_on_average_in_the_middle(values: list[float]) -> None:
    """The bets have the expectation 1 only then; ties must not move it."""
    reference = Reference.of("", [classified(novelty=value) for value in values])
    held_out = reference.signals["novelty"]["dark"]
    places = [held_out.place(value) for value in held_out.quantiles]
    assert np.mean(places) == pytest.approx(0.5)


def test_masks_are_compared_by_the_volumes_of_their_structures() -> None:
    def masks(count: int, ml: float) -> list[Observed]:
        rng = random.Random(count)
        return [Observed(volumes_ml={"left": ml * (1 + rng.random())}) for _ in range(count)]

    reference = Reference.of("", masks(400, 1.0))
    assert max(evidence(masks(900, 1.0), reference)) < ALARM
    assert max(evidence(masks(200, 1.6), reference)) >= ALARM


# ---- the file


def test_numbers_are_compared_each_by_itself() -> None:
    def told(age: float) -> Observed:
        values = [{"name": "bone age", "value": age}, {"name": "ossified", "value": 60.0}]
        answer = json.dumps({"status": "ok", "values": values, "review": age > 240})
        [observed] = read_answer_items(answer.encode())
        return observed

    draws = random.Random(5)
    reference = Reference.of("", [told(draws.gauss(120, 20)) for _ in range(300)])
    assert {"value of bone age", "value of ossified", "review"} <= set(reference.signals)
    like, older = DriftTest(reference), DriftTest(reference)
    for _ in range(300):
        like.observe(told(draws.gauss(120, 20)))
        older.observe(told(draws.gauss(145, 20)))
    assert like.evidence < ALARM <= older.evidence


def test_a_reference_is_read_as_it_was_written() -> None:
    assert Reference.decode(REFERENCE.encode(), "tiny.mar") == REFERENCE


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{", b"[" * 100_000,
        b'{"format":2,"network":"","inputs":1,"signals":{}}',
        b'{"format":1,"network":"","inputs":1,"signals":{"novelty":{"dark":{"count":1,"quantiles":[]}}}}',
        b'{"format":1,"network":"","inputs":1,"signals":{"novelty":{"dark":{"count":0,"quantiles":[1]}}}}',
        b'{"format":1,"network":"","inputs":1,"signals":{"novelty":{"dark":{"count":2,"quantiles":[2,1]}}}}',
    ],
)  # fmt: skip
def test_a_reference_that_cannot_be_used_is_refused(content: bytes) -> None:
    with pytest.raises(ArchiveError, match=r"tiny\.mar: reference\.json"):
        Reference.decode(content, "tiny.mar")


@given(content=st.binary() | st.from_regex(rb"\{.*", fullmatch=True))
def test_no_answer_whatever_its_bytes_stops_the_watching(content: bytes) -> None:
    assert isinstance(list(read_answer_items(content)), list)


def shipped() -> list[Any]:
    """Return room and variant of every model that is asked about inputs."""
    return [
        pytest.param(room, variant, id="-".join(filter(None, (room, variant))))
        for room in models.names()
        for variant in ("", *models.variants(room))
        if models.spec(room, variant).task is not Task.GENERATION
    ]


def held_out_answers(reference: Reference, count: int, factor: float = 1.0) -> list[Observed]:
    """Draw answers as the held-out ones; but for flags, each signal times a factor."""
    rng = random.Random(count)
    classes = next(iter(reference.signals.values()))
    labels, counts = list(classes), [each.count for each in classes.values()]
    found = []
    for label in rng.choices(labels, counts, k=count):
        of = {
            name: rng.choice(classes[label].quantiles)
            for name, classes in reference.signals.items()
            if label in classes
        }
        scaled = {name: of[name] * factor for name in ("novelty", "area") if name in of}
        ml = {name[6:]: factor * value for name, value in of.items() if name.startswith("ml of ")}
        content: dict[str, Any] = {
            "label": label,
            "probability": of.get("probability"),
            "novelty": scaled.get("novelty"),
            "review": of.get("review", 0.0) == 1.0,
            "unlike_training": of.get("unlike", 0.0) == 1.0,
            "volumes_ml": ml,
        }
        if "area" in scaled:
            frame = {"status": "ok", "pixels": round(1e6 * scaled["area"])}
            content |= {"grid": {"rows": 1000, "columns": 1000}, "frames": [frame]}
        found.append(msgspec.convert(content, Observed))
    return found


@pytest.mark.cpu
@pytest.mark.parametrize(("room", "variant"), shipped())
def test_every_shipped_model_has_a_reference_that_tells_a_shift_alone(
    room: str, variant: str
) -> None:
    """The bar, on what the file holds; `test_drift_on_public_data` has images."""
    weights = models.room(room, variant) / "weights"
    reference = Reference.decode((weights / FILE).read_bytes(), room)
    assert reference.network == hashlib.sha256((weights / "model.onnx").read_bytes()).hexdigest()
    own = held_out_answers(reference, 10_000)
    assert max(evidence(own, reference)) < ALARM
    shifted = held_out_answers(reference, 200, factor=3.0)
    assert max(evidence(own[:1000] + shifted, reference)) >= ALARM


# ---- what is counted


def test_progress_that_is_streamed_before_an_answer_is_no_input() -> None:
    metrics = GatewayMetrics()
    watching = Watching(metrics)
    for step in range(8):
        progress = SampleProgress(image=0, step=step, steps=8)
        watching.answered(model(NAME), msgspec.json.encode(progress))
    assert ("inputs_total", "") not in samples(metrics)
    watching.answered(model(NAME), answer())
    assert samples(metrics)["inputs_total", ""] == 1


def test_a_packed_answer_counts_every_image_that_was_answered() -> None:
    items = [
        {"index": 0, "status": "ok", "label": "dark", "probability": 0.97, "novelty": 0.2,
         "review": False, "unlike_training": False},
        {"index": 1, "status": "error", "error": {"code": "INVALID_IMAGE", "message": "no"}},
        {"index": 2, "status": "ok", "label": "bright", "probability": 0.4, "novelty": 7.0,
         "review": True, "unlike_training": True},
    ]  # fmt: skip
    metrics = GatewayMetrics()
    watching = Watching(metrics)
    watching.answered(model(NAME), answer(items=items))
    found = samples(metrics)
    assert found["inputs_total", ""] == 2
    assert (found["review_total", ""], found["unlike_total", ""]) == (1, 1)
    assert found["labels_total", "dark"] == found["labels_total", "bright"] == 1
    assert found["probability_sum", ""] == pytest.approx(1.37)
    assert watching.of(model(NAME)).inputs == 2


def test_answers_are_counted_a_moment_later_without_a_reader_and_few_are_held_till_then() -> None:
    counted: list[int] = []

    class Counting(Watching):
        def count(self) -> None:
            counted.append(len(self._held))
            super().count()

    async def answer_and_wait() -> int:
        watching = Counting(GatewayMetrics())
        watching.answered(model(NAME), answer())
        assert not counted
        for _ in range(100):
            watching.answered(model(NAME), answer())
        await asyncio.sleep(0.2)
        assert not watching._held
        return watching.of(model(NAME)).inputs

    assert asyncio.run(answer_and_wait()) == 101
    assert max(counted) <= 16


def test_volumes_are_counted_by_the_structures_that_the_archive_names() -> None:
    metrics = GatewayMetrics()
    volumes = model(NAME, task=Task.VOLUMES)
    structure = volumes.labels[-1]
    Watching(metrics).answered(volumes, answer(volumes_ml={structure: 3.5, "Mrs Miller": 1.0}))
    found = samples(metrics)
    assert (found["labels_total", structure], found["structure_ml_sum", structure]) == (1, 3.5)
    assert not any("Miller" in label for _, label in found)


def test_a_class_that_the_archive_does_not_name_becomes_no_label() -> None:
    metrics = GatewayMetrics()
    watching = Watching(metrics)
    for number in range(100):
        watching.answered(model(NAME), answer(label=f"name-{number}", probability=0.5))
    assert samples(metrics)["labels_total", "other"] == 100
    assert not any(label.startswith("name") for _, label in samples(metrics))


def test_bare_files_and_errors_are_not_counted() -> None:
    metrics = GatewayMetrics()
    watching = Watching(metrics)
    error = b'{"status":"error","error":{"code":"INVALID_IMAGE","message":"no"}}'
    for each in (b"\x1f\x8b nifti", b"", error, b'{"status": 3}'):
        watching.answered(model(NAME), each)
    assert samples(metrics) == {}


def test_the_gauge_shows_drift_of_what_passes_through_the_gateway() -> None:
    watched = dataclasses.replace(model(NAME), reference=REFERENCE)
    far = answer(label="dark", probability=0.9, novelty=50.0, review=False, unlike_training=True)
    gateway = fake_gateway(FakeEngine(lambda _: far), watched)
    assert call_often(gateway, watched, 200)
    assert samples(gateway.metrics)["drift_evidence", ""] >= 6


def call_often(gateway: Gateway, watched: ModelInfo, count: int) -> bool:
    async def calls() -> None:
        for _ in range(count):
            await gateway.predict(
                EngineCall(NAME, "", {"data": b"pixels"}, "0" * 8, caller=Caller("ward-7"))
            )

    asyncio.run(calls())
    return gateway.watching.of(watched).drifts
