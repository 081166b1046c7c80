"""English, French and Russian: the same texts, none missing."""

from __future__ import annotations

import asyncio
import json
import re
import string
from pathlib import Path

import pytest

import models
from medserve.gateway.faces.page import pages, rendering
from medserve.spec import Task
from medserve.tasks import OPTIONS, declared
from medserve.tasks.result import DoubtReason
from tests.web.visiting import Visitor, gateway, visit, visiting

WEB = Path(pages.__file__).parent
TEXTS = {code: rendering.texts_in(code).by_key for code in rendering.LANGUAGES}
OWN = ("output", "format", "overlay")  # of segmentation: what the page decides
PAGES = (
    "/",
    "/classify",
    "/segment",
    "/generate",
    "/models",
    "/models/kinds",
    "/login",
    "/nowhere",
)


@pytest.mark.parametrize("code", sorted(TEXTS))
def test_every_language_has_the_same_texts_with_the_same_places(code: str) -> None:
    own = {
        key: text for key, text in TEXTS[code].items() if not key.startswith(("help.", "title."))
    }
    assert list(own) == list(TEXTS["en"])
    for key, text in own.items():
        assert text.strip(), key
        assert _places(text) == _places(TEXTS["en"][key]), key


def test_the_help_of_every_option_that_the_page_offers_is_translated() -> None:
    """The English one is the declaration's."""
    helps = {
        f"help.{task}.{option.key}"
        for task, options in OPTIONS.items()
        for option in declared(options)
        if task is not Task.CLASSIFICATION and not (task.segments and option.key in OWN)
    }
    for code in ("fr", "ru"):
        assert {key for key in TEXTS[code] if key.startswith("help.")} == helps
    offered = {key.rpartition(".")[2] for key in helps}
    assert {key for key in TEXTS["en"] if key.startswith("option.")} == {
        f"option.{key}" for key in offered
    }


@pytest.mark.parametrize("code", ["fr", "ru"])
def test_the_titles_of_the_shipped_models_are_translated(code: str) -> None:
    """The English ones are those of the archives."""
    rooms = [(name, variant) for name in models.names() for variant in ("", *models.variants(name))]
    titles = {models.spec(*room).title for room in rooms}
    assert {f"title.{title}" for title in titles} == {
        key for key in TEXTS[code] if key.startswith("title.")
    }
    texts = rendering.texts_in(code)
    assert not [title for title in titles if texts.title(title) == title]
    assert texts.title("A model of somebody else") == "A model of somebody else"


@visit()
async def test_a_russian_page_has_russian_units(client: Visitor) -> None:
    html = (await client.get("/segment?lang=ru")).text
    [data] = re.findall(r'id="page">(.*?)</script>', html, re.DOTALL)
    assert json.loads(data)["texts"]["unit.ml"] == "мл"
    script = (WEB / "static/js/segment.js").read_text("utf-8")
    assert not re.findall(r"\} (mm|ml|cm²)`", script)


@pytest.mark.parametrize("code", ["fr", "ru"])
def test_texts_are_translated(code: str) -> None:
    """A few words are the same in both languages; sentences never are."""
    same = [key for key, text in TEXTS[code].items() if text == TEXTS["en"].get(key)]
    assert not [key for key in same if TEXTS["en"][key].count(" ") > 1]
    assert len(same) < 30


def test_every_text_that_a_script_or_template_names_exists() -> None:
    named: set[str] = set()
    for path in (*WEB.glob("static/js/*.js"), *WEB.glob("templates/*.html")):
        found = re.findall(r"""\bt\(["']([a-z_]+\.[a-z_.]+)["']""", path.read_text("utf-8"))
        named |= {key for key in found if not key.endswith(".")}
    assert len(named) > 100
    assert named <= set(TEXTS["en"])


def test_volumes_and_frames_have_the_same_texts_in_words_of_their_own() -> None:
    texts = TEXTS["en"]
    names = [
        {key.removeprefix(prefix) for key in texts if key.startswith(prefix)}
        for prefix in ("segment.volumes.", "segment.frames.")
    ]
    assert names[0] == names[1]
    script = (WEB / "static/js/segment.js").read_text("utf-8")
    for name in names[0]:
        assert name.partition(".")[0] in script, name
    framed = [text for key, text in texts.items() if key.startswith("segment.frames.")]
    assert not [text for text in framed if re.search(r"volume|voxel", text, re.IGNORECASE)]


def test_no_text_is_left_over() -> None:
    sources = [*WEB.glob("static/js/*.js"), *WEB.glob("templates/*.html")]
    code = "\n".join(path.read_text("utf-8") for path in sources)
    made = ("classify.status.", "segment.view.", "segment.volumes.", "segment.frames.", "error.",
            "models.task.", "frame.", "start.", "option.", "segment.doubt.",
            "segment.told.")  # fmt: skip
    left = [key for key in TEXTS["en"] if key not in code and not key.startswith(made)]
    assert left == []


@pytest.mark.parametrize("code", sorted(TEXTS))
def test_every_reason_for_a_review_has_a_text(code: str) -> None:
    told = {key for key in TEXTS[code] if key.startswith("segment.doubt.")}
    assert told == {f"segment.doubt.{reason}" for reason in DoubtReason}


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("fr-CA,fr;q=0.9,en;q=0.5", "fr"),
        ("ru", "ru"),
        ("de,ru;q=0.4,en;q=0.3", "ru"),
        ("en;q=0.2, FR ; q=0.7", "fr"),
        ("de,ja", "en"),
        ("fr;q=x,ru;q=0.1", "ru"),
        ("fr;q=0", "en"),
        ("", "en"),
        (",;,;q=" * 1000, "en"),
    ],
)
def test_the_best_language_that_the_browser_accepts_is_taken(header: str, code: str) -> None:
    async def run() -> None:
        async with visiting(gateway()) as (_, [client]):
            html = (await client.get("/", headers={"accept-language": header})).text
            assert f'<html lang="{code}"' in html

    asyncio.run(run())


@visit()
async def test_a_chosen_language_stays(client: Visitor) -> None:
    await client.get("/?lang=ru", headers={"accept-language": "fr"})
    html = (await client.get("/classify", headers={"accept-language": "fr"})).text
    assert '<html lang="ru"' in html
    assert '<html lang="ru"' in (await client.get("/?lang=<script>")).text


@pytest.mark.parametrize("code", sorted(TEXTS))
def test_every_page_says_in_every_language_that_it_is_no_medical_device(code: str) -> None:
    async def run() -> None:
        async with visiting(gateway()) as (_, [client]):
            for path in PAGES:
                headers = {"accept-language": code, "accept": "text/html"}
                html = (await client.get(path, headers=headers)).text
                assert TEXTS[code]["frame.notice"] in html, path
                for data in re.findall(r'id="page">(.*?)</script>', html, re.DOTALL):
                    assert json.loads(data)["texts"], path

    asyncio.run(run())


def _places(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}
