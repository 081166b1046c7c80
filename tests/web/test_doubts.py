"""Why a person should look at a mask, said whole in the visitor's language."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from msgspec import structs

from medserve.gateway.faces.page import doubts, rendering
from medserve.gateway.faces.page.doubts import told
from medserve.imaging.packed_masks import PackedMasks
from medserve.inference.volume_pipeline import VolumePipeline
from medserve.results.frame_measure import measure_frame, measure_stack
from medserve.results.frame_segmentation import FrameFinding, FrameSegmentation
from medserve.results.quality import doubts_about_dice
from medserve.results.seen import (
    doubts_about_image,
    doubts_about_shares,
    doubts_about_volumes,
    image_layout,
)
from medserve.spec import ModelSpec
from medserve.spec.quality import DiceSpec
from medserve.spec.seen import FrameSeenSpec, VolumeSeenSpec
from medserve.tasks.result import Doubt, DoubtReason
from tests.client.framing import LABELS, LOOP
from tests.imaging.test_seen import IMAGE, SEEN, SHAPE, SIZE_MM
from tests.tiny_volume_room import VOLUME_CONFIG, phantom
from tests.web.fake_page import FakePage, image
from tests.web.test_frames import frame_answer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_WORD = re.compile(r"[A-Za-zÀ-ÿ]{3,}")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_ALSO_FRENCH = {"Dice", "image"}
_DICE = DiceSpec(0.0, 0.0, 0.0, review_below=0.7, review_share=0.05)


def _of_images() -> Iterator[Doubt]:
    noise = np.random.default_rng(0).permutation(IMAGE.ravel()).reshape(SHAPE)
    yield from doubts_about_image(SEEN, noise, [2 * mm for mm in SIZE_MM])
    yield from doubts_about_image(SEEN, np.zeros(SHAPE, np.float32), SIZE_MM)
    layout = tuple(image_layout(IMAGE).round(3).tolist())
    laid_out = VolumeSeenSpec(layout=layout, layout_correlation=0.9)
    yield from doubts_about_image(laid_out, np.float32(1.0) - IMAGE, None)


def _of_masks() -> Iterator[Doubt]:
    yield from doubts_about_volumes(SEEN, {"anterior": 7.25})
    shares = FrameSeenSpec(label_share={"gland: left": (0.1, 0.2)})
    yield from doubts_about_shares(shares, {"gland: left": 0.5})
    yield from doubts_about_dice(_DICE, {"prostate": 0.413})
    pipeline = VolumePipeline(ModelSpec.from_mapping(VOLUME_CONFIG))
    prepared = pipeline.prepare(phantom())

    def background(windows: np.ndarray) -> np.ndarray:
        return np.stack([np.ones_like(windows[:, 0]), *2 * [0 * windows[:, 0]]], axis=1)

    yield from pipeline.doubts(prepared, pipeline.segment(prepared, background))


def _of_frames(inner: tuple[Doubt, ...]) -> Iterator[Doubt]:
    """Yield those of a file: a share of its frames has them, or does not look like ultrasound."""
    empty = np.zeros((LOOP.count, *LOOP.size), np.uint8)
    measures = [measure_frame(each, LOOP) for each in empty]
    findings = tuple(FrameFinding(each, unlike_ultrasound=True, doubts=inner) for each in measures)
    stack = measure_stack(measures, LOOP)
    found = FrameSegmentation(PackedMasks.of(empty), LOOP, LABELS, findings, stack)
    yield from found.doubts
    yield from replace(found, stack=structs.replace(stack, frames_found=LOOP.count)).doubts


def _every() -> list[Doubt]:
    alone = (*_of_images(), *_of_masks())
    return [*alone, *_of_frames(alone)]


def test_every_reason_that_a_mask_can_have_is_read_with_all_of_its_numbers() -> None:
    sentences = set()
    assert {each.reason for each in _every()} == set(DoubtReason)
    for each in _every():
        parts = told(each)
        assert "message" not in parts, each.message
        sentences.add(parts["sentence"])
        kept = [*parts["values"].values(), *parts.get("frames", {}).values()]
        shown = sorted(number for value in kept for number in _NUMBER.findall(value))
        assert shown == sorted(_NUMBER.findall(each.message))
    assert sentences == set(doubts._SENTENCES)


@pytest.mark.parametrize("code", sorted(rendering.LANGUAGES))
def test_every_sentence_has_a_text_in_which_no_word_of_the_message_is_left(code: str) -> None:
    texts = rendering.texts_in(code).under("segment.told.")
    names = {f"segment.told.{name}" for name in doubts._SENTENCES} - {"segment.told.nothing"}
    assert set(texts) == names | {"segment.told.of_frames"}
    for each in _every():
        parts = told(each)
        if parts["sentence"] == "nothing":
            continue
        text = texts[f"segment.told.{parts['sentence']}"]
        places = {name for _, name, _, _ in string.Formatter().parse(text) if name}
        assert places == set(parts["values"])
        said = set(_WORD.findall(text.format(**parts["values"])))
        own = set(_WORD.findall(parts["values"].get("label", "")))
        if code != "en":
            assert (said & set(_WORD.findall(each.message))) - own <= _ALSO_FRENCH


def test_a_sentence_of_a_newer_archive_is_kept_as_it_is() -> None:
    unknown = Doubt(DoubtReason.TEXTURE, "smoother than skin: 3.5")
    assert told(unknown) == {"reason": "texture", "message": "smoother than skin: 3.5"}


def _doubtful(request: Any) -> bytes:
    answer = json.loads(frame_answer(request))
    made = [*_of_masks(), Doubt(DoubtReason.SIZE, "1234 x 20 mm, in the training data 10 to 14 x "
                                "12 to 16 mm")]  # fmt: skip
    told_of = [each.to_json() for each in made if each.reason is not DoubtReason.EMPTY]
    return json.dumps(answer | {"review": True, "doubts": told_of}).encode()


@pytest.fixture
def fake_page(chromium: Browser) -> Iterator[FakePage]:
    with FakePage(_doubtful) as page:
        yield page


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("en", ("anterior: 7.25 ml; training data: 1.00", "1,234 ")),
        ("fr", ("anterior : 7,25 ml ; ", "1\N{NARROW NO-BREAK SPACE}234 ")),
        ("ru", ("anterior: 7,25 мл; обучающие данные: 1,00", "1\N{NO-BREAK SPACE}234 ")),
    ],
)
def test_the_page_says_it_in_the_language_of_the_visitor(
    fake_tab: Page, code: str, said: tuple[str, ...]
) -> None:
    fake_tab.goto(f"/segment?model=gland&lang={code}")
    fake_tab.locator("#files").set_input_files(image("frame.png", ""))
    warnings = fake_tab.locator("#warnings")
    warnings.wait_for()
    text = warnings.text_content() or ""
    assert [each for each in said if each not in text] == [], text
    assert ("training" in text) is (code == "en")
