"""Independent labels in a browser: where their files lie, and each label switched by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.web.fake_page import image

if TYPE_CHECKING:
    from playwright.sync_api import Page

_FILES = [
    image("clear.png", "nothing", 1),
    image("one.png", "Mass", 2),
    image("two.png", "Effusion Nodule", 3),
    image("unsure.png", "Mass?", 4),
]


def _folders(tab: Page) -> dict[str, int]:
    lines = [each.inner_text().split("\n") for each in tab.locator("#folders button").all()]
    return {name: int(count) for name, count in lines}


def test_labels_are_switched_one_by_one_with_mouse_and_keyboard(fake_tab: Page) -> None:
    tab = fake_tab
    tab.goto("/classify?model=xrays")
    tab.locator("#files").set_input_files(_FILES)
    tab.get_by_text(f"Done. Files: {len(_FILES)}", exact=True).wait_for()
    assert _folders(tab) == {
        "All files": 4, "Effusion": 0, "Mass": 1, "Nodule": 0, "_none": 1, "_several": 1,
        "_review": 1, "_errors": 0,
    }  # fmt: skip
    shown = tab.locator("tr.file", has_text="two.png").inner_text()
    assert "Effusion; Nodule" in shown
    heights = {each.bounding_box()["height"] for each in tab.locator("tr.file").all()}  # type: ignore[index]
    assert len(heights) == 1  # the window of rows counts on it
    assert shown.count("90") == 1  # the least of both

    tab.get_by_role("button", name="Class of clear.png: none").click()
    dialog = tab.get_by_role("dialog")
    dialog.get_by_label("Mass", exact=True).first.check()
    dialog.get_by_text("Mass (by hand)").wait_for()
    tab.keyboard.press("3")
    dialog.get_by_text("Mass; Nodule (by hand)").wait_for()
    tab.keyboard.press("Escape")
    tab.locator("#folders [data-folder='_several']", has_text="2").wait_for()
    tab.get_by_role("button", name="Undo").click()
    tab.locator("tr.file", has_text="clear.png").get_by_text("Mass", exact=True).wait_for()

    tab.get_by_role("button", name="Pictures").click()
    tab.get_by_role("button", name="Select all").click()
    tab.locator("#pick-classes").get_by_role("button", name="Mass").click()  # one lacks it
    tab.locator("#grid .cell", has_text="Effusion; Mass; Nodule").wait_for()
    tab.get_by_role("button", name="Select all").click()
    tab.locator("#pick-classes").get_by_role("button", name="Mass").click()  # now none does
    tab.locator("#grid .cell", has_text="Effusion; Nodule").wait_for()
    tab.locator("#folders [data-folder='_none']", has_text="3").wait_for()
    assert _folders(tab) == {
        "All files": 4, "Effusion": 0, "Mass": 0, "Nodule": 0, "_none": 3, "_several": 1,
        "_review": 0, "_errors": 0,
    }  # fmt: skip
