"""Documents that are made elsewhere and opened in a browser: they fit a phone and a notebook."""

from __future__ import annotations

import io
from array import array
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from medserve.batch import report
from medserve.tasks.result import as_html

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def batch() -> str:
    """A report with a long path, a long reason and an hour of studies."""
    reason = "This is no image: expected PNG, JPEG, TIFF or DICOM, got text. Send an image."
    summary = report.Summary(
        counts=Counter(ok=98765, error=3),
        failures=Counter({("INVALID_IMAGE", reason): 3}),
        labels=Counter(AbdomenCT=98765),
        measures={"probability": array("d", np.linspace(0.5, 1.0, 99))},
        seconds=array("d", [0.4] * 99),
        hours=Counter({0: 99}),
    )
    return report._page("mednist", summary)


def notebook() -> str:
    pixels = np.random.default_rng(0).integers(0, 255, (900, 1600), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return as_html("trus_prostate 1.0", [("frame", "cm²"), ("0", "0.02")], [stream.getvalue()])


@pytest.mark.parametrize("made", [batch, notebook])
def test_a_document_fits_a_phone_and_breaks_no_word(chromium: Browser, made: object) -> None:
    assert callable(made)
    context = chromium.new_context(viewport={"width": 390, "height": 780})
    tab = context.new_page()
    tab.set_content(made())
    assert tab.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0
    for heading in tab.locator("th").all():
        assert heading.evaluate("cell => cell.getClientRects().length") == 1
        lines = "cell => { const all = document.createRange(); all.selectNodeContents(cell);"
        assert heading.evaluate(lines + " return all.getClientRects().length }") == 1
    context.close()
