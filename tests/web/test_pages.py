"""What the pages show of models, and foreign text on them."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace

import pytest
from msgspec import structs

from medserve.archive.reference import Observed, Reference
from medserve.gateway.core.calls import Health
from medserve.gateway.faces.page import cards
from medserve.spec import Task
from tests.gateway.fake_engine import model
from tests.web.visiting import LABELS, Visitor, begin, gateway, visit, visiting

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">'


@visit()
async def test_the_start_page_shows_what_is_served_and_where_to_go(client: Visitor) -> None:
    html = (await client.get("/")).text
    for part in ("kinds 1.0", "organs 1.0", "sampler 1.0", 'href="/classify"', 'href="/models"'):
        assert part in html
    job = await begin(client)
    assert f'href="{job.replace("jobs", "classify")}"' in (await client.get("/")).text


@pytest.mark.parametrize("on", [(True, False, False), (False, True, True), (True, True, True)])
@pytest.mark.parametrize("task", [Task.VOLUMES, Task.FRAMES])
def test_the_boxes_of_a_model_start_as_its_description_says(
    task: Task, on: tuple[bool, bool, bool]
) -> None:
    wanted = dict(zip(("flips", "largest_component", "fill_holes"), on, strict=True))
    info = model("organs", task, labels=LABELS)
    section = "volume" if task is Task.VOLUMES else "frame"
    own = structs.replace(getattr(info.spec, section), **wanted)
    info = replace(info, spec=structs.replace(info.spec, **{section: own}))

    async def run() -> None:
        async with visiting(gateway(models=[info])) as (_, [client]):
            html = (await client.get("/segment")).text
            [data] = re.findall(r'id="page">(.*?)</script>', html, re.DOTALL)
            [shown] = json.loads(data)["models"]
            starts = {option["name"]: option["default"] for option in shown["options"]}
            assert {key: starts[key] for key in wanted} == wanted
            assert starts["spacing_mm"] is None  # nobody has decided it

    asyncio.run(run())


def test_a_page_without_a_model_for_it_says_so() -> None:
    async def run() -> None:
        async with visiting(gateway(models=[model("kinds", labels=LABELS)])) as (_, [client]):
            for path, text in (
                ("/segment", "No segmentation model is served."),
                ("/generate", "No generation model is served."),
            ):
                html = (await client.get(path)).text
                assert text in html
                assert f"js{path}.js" not in html

    asyncio.run(run())


def test_the_state_of_a_model_is_that_of_now() -> None:
    down = replace(model("kinds", labels=LABELS), health=Health(False, "its worker is stuck"))

    async def run() -> None:
        async with visiting(gateway(models=[down])) as (_, [client]):
            assert "not ready" in (await client.get("/models")).text
            [state] = (await client.get("/health/models")).json()["models"]
            assert state == {
                "name": "kinds", "version": "1.0", "ready": False, "reason": "its worker is stuck",
            }  # fmt: skip

    asyncio.run(run())


def test_an_older_version_can_be_looked_at() -> None:
    versions = [
        model("kinds", labels=LABELS),
        replace(model("kinds", labels=LABELS, version="0.9"), default=False, card="# The old one"),
    ]

    async def run() -> None:
        async with visiting(gateway(models=versions)) as (_, [client]):
            assert "The old one" not in (await client.get("/models/kinds")).text
            assert "The old one" in (await client.get("/models/kinds?version=0.9")).text
            assert (await client.get("/models/kinds?version=7")).status_code == 404

    asyncio.run(run())


def test_the_page_of_a_model_says_what_was_answered_and_whether_inputs_drift() -> None:
    alike = [Observed(label="dark", probability=0.9, novelty=i / 100) for i in range(100)]
    watched = replace(model("kinds", labels=LABELS), reference=Reference.of("", alike))
    far = (
        b'{"status":"ok","label":"dark","probability":0.9,"novelty":5,"review":false,'
        b'"unlike_training":true}'
    )

    async def run() -> None:
        async with visiting(gateway(models=[watched])) as (context, [client]):
            html = (await client.get("/models/kinds")).text
            assert "<dt>Drift</dt>\n        <dd>none</dd>" in html
            for _ in range(200):
                context.gateway.watching.answered(watched, far)
            html = (await client.get("/models/kinds")).text
            assert "<dt>Unlike the training data</dt><dd>200</dd>" in html
            assert "<dt>dark</dt><dd>200</dd>" in html
            assert '<span class="state bad">inputs are no longer like' in html

    asyncio.run(run())


def test_nothing_that_an_archive_says_becomes_markup() -> None:
    evil = model(EVIL, Task.VOLUMES, labels=("background", EVIL))
    evil = replace(evil, card=f"# {EVIL}\n\n{EVIL}", metrics={EVIL: 1.0})

    async def run() -> None:
        async with visiting(gateway(models=[evil])) as (_, [client]):
            for path in ("/", "/segment", "/models", f"/models/{EVIL.replace('/', '%2F')}"):
                html = (await client.get(path)).text
                assert "<script>alert" not in html, path
                assert "<img src=x" not in html, path

    asyncio.run(run())


@pytest.mark.parametrize(
    ("card", "there", "gone"),
    [
        (EVIL, "&lt;script&gt;", "<script"),
        ("[a](javascript:alert(1))", "a", "<a"),
        ("[a](data:text/html,x)", "a", "<a"),
        ("[a](weights/model.onnx)", "<a>a</a>", "href"),
        ("[a](https://x.example)", 'rel="noopener noreferrer"', "javascript"),
        ("![secret](http://evil.example/x.png)", "secret", "<img"),
        ("| a |\n|--:|\n| 1 |", 'class="align-right"', "style="),
        ("# One\n\n###### Six", "<h2>One</h2>", "<h1"),
        ("| | a |\n|--|--|\n| 1 | 2 |", "<td></td>", "<th></th>"),
    ],
    ids=str,
)
def test_a_card_is_shown_and_does_not_act(card: str, there: str, gone: str) -> None:
    html = cards.render_card(card)
    assert there in html
    assert gone not in html


def test_figures_are_single_numbers_with_their_intervals() -> None:
    metrics = {
        "accuracy": 1.0,
        "accuracy_interval_95": [0.5, 0.6],
        "accuracy_interval_95_exact": [0.99931, 1.0],
        "n": 5323,
        "labels": ["a"],
        "good": True,
    }
    assert cards.figures(metrics) == [
        ("accuracy", "1 (95 %: 0.99931 to 1)"),
        ("n", "5,323"),
    ]


@visit()
async def test_an_unknown_address_is_answered_in_the_form_that_was_asked_for(
    client: Visitor,
) -> None:
    page = await client.get("/nowhere", headers={"accept": "text/html"})
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert (await client.get("/nowhere")).json()["error"]["code"] == "HTTP_404"
    assert (await client.get("/classify/unknown")).status_code == 404
    assert (await client.put("/jobs")).status_code == 405
