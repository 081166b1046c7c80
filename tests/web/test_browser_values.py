"""Numbers of images in a browser: told with their units, and why a person should look."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.web.fake_page import image

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Page

_FILES = [
    image("child.png", "106.5 60", 1),
    image("beyond.png", "250 12.25", 2),
    image("adult.png", "216 100", 3),
    image("text.png", "nothing", 4),
]


def test_numbers_stand_in_the_table_with_their_units_and_doubts(
    fake_tab: Page, look_for_obstacles: Callable[[Any], list[str]]
) -> None:
    tab = fake_tab
    tab.goto("/classify?model=maturity")
    tab.locator("#files").set_input_files(_FILES)
    tab.get_by_text(f"Done. Files: {len(_FILES)}", exact=True).wait_for()
    rows = {name: tab.locator("tr.file", has_text=name) for name in ("child", "beyond", "text")}
    assert "bone age 106.5 mo; ossified 60 %" in rows["child"].inner_text()
    assert "bone age is 250 mo: outside of 0 to 240." in rows["beyond"].inner_text()
    assert "bone age" not in rows["text"].inner_text()
    assert tab.get_by_role("columnheader", name="Values").count() == 1
    for hidden in ("Id", "Probability"):
        assert tab.get_by_role("columnheader", name=hidden).count() == 0
    assert not tab.locator("#zip").is_visible()  # numbers are no folders
    lines = [each.inner_text().split("\n") for each in tab.locator("#folders button").all()]
    assert lines == [["All files", "4"], ["_review", "1"], ["_errors", "1"]]
    assert look_for_obstacles(tab) == []

    tab.get_by_role("button", name="Doubtful first").click()
    tab.locator("tr[aria-rowindex='2']", has_text="beyond.png").wait_for()
    tab.locator("tr.file .thumb").first.click()
    dialog = tab.get_by_role("dialog")
    dialog.get_by_text("250 mo (review)").wait_for()
    dialog.get_by_text("12.25 %").wait_for()
    tab.keyboard.press("1")  # no class to set
    tab.keyboard.press("Escape")
    assert tab.locator("tr.corrected").count() == 0

    with tab.expect_download() as saved:
        tab.locator("#csv").click()
    content = Path(saved.value.path()).read_text(encoding="utf-8-sig")
    table = {row["source"]: row for row in csv.DictReader(io.StringIO(content))}
    assert (table["child.png"]["bone age (mo)"], table["child.png"]["ossified (%)"]) == (
        "106.5", "60.0",
    )  # fmt: skip
    assert table["beyond.png"]["doubts"].startswith("bone age is 250 months, outside of")
    assert table["text.png"]["status"] == "error"
    tab.reload()
    tab.locator("tr.file", has_text="106.5 mo").wait_for()
