"""Drop, look, correct, take home: by keyboard alone, on a phone's width, read by a screen reader.

What is read comes from Chromium's own accessibility tree, by the DevTools protocol: every control
that the focus stops at has a role and a name, lies in sight, and what happens is announced.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from medserve.imaging.codecs import nifti
from medserve.imaging.volume import Volume
from tests.gateway.faces import SEGMENTATION
from tests.web.fake_page import FakePage, image
from tests.web.test_browser_correcting import FILES, volumes

if TYPE_CHECKING:
    from playwright.sync_api import Download, FilePayload, Page

_LISTEN = """
window.spoken = [];
addEventListener("DOMContentLoaded", () => {
  const live = "[aria-live], [role=status], [role=alert]";
  new MutationObserver(changes => {
    for (const { target } of changes) {
      const region = (target.nodeType === 1 ? target : target.parentElement)?.closest(live);
      const dialog = document.querySelector("dialog[open]");
      const read = region?.checkVisibility() && region.ariaLive !== "off"
        && (!dialog || dialog.contains(region));
      const text = read ? region.textContent.trim() : "";
      if (text && window.spoken.at(-1) !== text) window.spoken.push(text);
    }
  }).observe(document.body, {subtree: true, childList: true, characterData: true});
});
"""
_IN_SIGHT = """() => {
  const focused = document.activeElement;
  const id = focused.getAttribute("aria-activedescendant");
  const seen = document.getElementById(id) ?? focused.labels?.[0] ?? focused;
  const { left, right, top, bottom } = seen.getBoundingClientRect();
  const y = Math.min(Math.max((top + bottom) / 2, 0), innerHeight - 1);
  const at = document.elementFromPoint((left + right) / 2, y);
  return left >= 0 && right <= innerWidth && bottom > 0 && top < innerHeight
    && (seen.contains(at) || at?.contains(seen) && !at.matches(".picks, .toolbar, header"));
}"""
_MOST_STOPS = 80
_NO_CONTROL = ("RootWebArea", "main")  # the whole page, and where the first link leads


class Reader:
    """A person at a phone with a keyboard and a screen reader."""

    def __init__(self, tab: Page) -> None:
        self.tab = tab
        self._protocol = tab.context.new_cdp_session(tab)
        tab.add_init_script(_LISTEN)
        tab.on("filechooser", lambda _: None)  # from now on the browser asks us, at every Enter
        tab.set_viewport_size({"width": 390, "height": 780})

    def visit(self, path: str) -> None:
        """Open a page, up to where its script has begun."""
        self.tab.goto(path)
        self.tab.locator("#formats:not(:empty)").wait_for()

    def tree(self) -> list[dict[str, Any]]:
        """Return what is read of the page, from top to bottom: role, name and states."""
        found = self._protocol.send("Accessibility.getFullAXTree")["nodes"]
        return [_read(node) for node in found if not node["ignored"]]

    def pictures(self) -> list[dict[str, Any]]:
        """Return what is read of the pictures; the choice of a model has options, too."""
        options = [each for each in self.tree() if each["role"] == "option"]
        return [each for each in options if not each["name"].startswith("The model")]

    def focused(self) -> dict[str, Any]:
        """Return what is read where the focus is."""
        assert self.tab.evaluate(_IN_SIGHT), self.tab.evaluate("document.activeElement.outerHTML")
        *_, found = [each for each in self.tree() if each.get("focused")]
        return found

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            self.tab.keyboard.press(key)

    def to(self, role: str, name: str, key: str = "Tab") -> dict[str, Any]:
        """Press Tab until the focus is on that control; each one before it has a name, too."""
        stops = []
        for _ in range(_MOST_STOPS):
            self.press(key)
            stop = self.focused()
            if stop["role"] in _NO_CONTROL:
                continue
            assert stop["name"], stop
            stops.append(f"{stop['role']} {stop['name']}")
            if stops[-1] == f"{role} {name}":
                return stop
        raise AssertionError(f"the focus never came to {role} {name}, but to {stops}")

    def hears(self, text: str) -> None:
        """Wait until that is announced."""
        for _ in range(300):
            spoken = self.tab.evaluate("window.spoken")
            if any(text in each for each in spoken):
                self.tab.evaluate("window.spoken.length = 0")
                return
            self.tab.wait_for_timeout(50)
        raise AssertionError(f"{text!r} was not announced, but {spoken}")

    def gives(self, files: list[FilePayload]) -> None:
        """Choose files in the browser's own window, which opens for the focused button."""
        with self.tab.expect_file_chooser() as waiting:
            self.press("Enter")
        waiting.value.set_files(files)

    def takes(self, key: str = "Enter") -> Download:
        """Press a key that starts a download."""
        with self.tab.expect_download() as waiting:
            self.press(key)
        return waiting.value


def _read(node: dict[str, Any]) -> dict[str, Any]:
    states = {each["name"]: each["value"].get("value") for each in node.get("properties", [])}
    said = {part: node.get(part, {}).get("value", "") for part in ("role", "name", "value")}
    return {**states, **said}


@pytest.fixture
def reader(fake_tab: Page) -> Reader:
    return Reader(fake_tab)


def test_images_are_sorted_corrected_and_taken_home_by_keyboard_on_a_phone(
    reader: Reader, look_for_obstacles: Callable[[Page], list[str]]
) -> None:
    tab = reader.tab
    reader.visit("/classify")
    reader.to("link", "Skip to the content")
    reader.press("Enter")
    reader.to("button", "Choose files")
    reader.gives(FILES)
    reader.hears(f"Done. Files: {len(FILES)}")

    reader.to("button", "Doubtful first")
    reader.press("Space")
    tab.locator("tr[aria-rowindex='2']", has_text="odd.png").wait_for()
    assert reader.focused()["pressed"] == "true"
    read = [f"{each['role']} {each['name']}" for each in reader.tree()]
    why = "Unlike the training data: the class means little."
    for said in ("table Files and their classes", "columnheader Name"):
        assert said in read
    assert f"cell odd.png {why} unlike training" in read
    fits = "all => all.every(each => each.scrollWidth <= each.clientWidth + 1"
    fits += " && each.scrollHeight <= each.clientHeight + 1)"  # nothing is cut off
    assert tab.locator("tr.file :is(.name, small)").evaluate_all(fits)
    assert look_for_obstacles(tab) == []

    # a closer look, and a class by its number; what lies behind the dialog is not read
    reader.to("button", "Look at odd.png")
    reader.press("Enter")
    tab.get_by_role("dialog").wait_for()
    assert "dialog odd.png" in [f"{each['role']} {each['name']}" for each in reader.tree()]
    assert "table" not in [each["role"] for each in reader.tree()]
    assert look_for_obstacles(tab) == []
    reader.press("2")
    reader.hears("odd.png: now bright")
    reader.to("button", "Next")
    for name in ("unsure.png, bright, 60.00%, review", "clear.png", "also.png", "photo.bmp"):
        reader.press("Enter")
        reader.hears(name)
    assert "12 bytes" in tab.get_by_role("dialog").inner_text()
    assert reader.focused()["name"] == "Next"  # the last file takes the focus from no button
    reader.press("ArrowLeft")
    reader.hears("also.png")
    reader.press("Escape")
    tab.get_by_role("dialog").wait_for(state="hidden")
    tab.locator(".thumb:focus[aria-label='Look at also.png']").wait_for()  # where the look ended
    assert reader.focused()["name"] == "Look at also.png"

    # a class in the table: the focus stays with the file, which goes behind the doubtful ones
    reader.to("combobox", "Class of unsure.png", "Shift+Tab")
    reader.press("ArrowUp")
    reader.hears("unsure.png: now dark")
    tab.locator("tr.corrected", has_text="unsure.png").wait_for()
    focused = reader.focused()
    assert (focused["name"], focused["value"]) == ("Class of unsure.png", "dark")

    # of a folder it leaves: the focus is on the file that takes its place
    reader.to("button", "bright 2", "Shift+Tab")
    reader.press("Enter")
    tab.locator("tr.file").nth(2).wait_for(state="detached")
    assert reader.focused()["name"] == "bright 2"
    first, second = tab.locator("tr.file .name").all_inner_texts()
    reader.to("combobox", f"Class of {first}")
    reader.press("ArrowUp")
    reader.hears(f"{first}: now dark")
    tab.locator("tr.file", has_text=first).wait_for(state="detached")
    assert reader.focused()["name"] == f"Look at {second}"

    reader.to("link", "Download zip", "Shift+Tab")
    with zipfile.ZipFile(reader.takes().path()) as archive:
        assert f"medserve-results/dark/{first}" in archive.namelist()


def test_pictures_are_read_with_their_class_and_whether_they_are_selected(reader: Reader) -> None:
    tab = reader.tab
    reader.visit("/classify")
    reader.to("button", "Choose files")
    reader.gives([*FILES, *(image(f"{place}.png", "ok dark", place) for place in range(10, 40))])
    reader.hears("Done. Files: 35")
    reader.to("button", "Pictures")
    reader.press("Space")
    tab.locator(".cell").first.wait_for()
    assert reader.focused()["pressed"] == "true"

    stop = reader.to("listbox", "Files and their classes")
    assert stop["multiselectable"] is True
    active = tab.locator(".cell.active")
    options = reader.pictures()
    assert [each["name"] for each in options[:5]] == [
        "dark 99.00% clear.png",
        "bright review unsure.png",
        "dark unlike training odd.png",
        "bright 99.00% also.png",
        "no image photo.bmp",
    ]
    assert not any(each["selected"] for each in options)
    reader.press("ArrowRight", "Space", "Shift+ArrowRight")
    reader.hears("Selected: 2")
    options = reader.pictures()
    assert [each["name"].split()[-1] for each in options if each["selected"]] == [
        "unsure.png", "odd.png",
    ]  # fmt: skip
    assert active.get_attribute("aria-posinset") == "3"
    assert active.get_attribute("aria-setsize") == "35"
    reader.press("End")
    tab.locator(".cell.active[aria-posinset='35']").wait_for()
    assert reader.focused()["name"]
    reader.to("button", "dark")
    reader.press("Enter")
    reader.hears("Files changed: 2. Now: dark")
    reader.to("button", "Undo", "Shift+Tab")
    reader.press("Enter")
    reader.hears("Files changed: 2. Now: bright, dark")


def test_volumes_are_segmented_looked_at_corrected_and_taken_home_by_keyboard_on_a_phone(
    reader: Reader, look_for_obstacles: Callable[[Page], list[str]]
) -> None:
    tab = reader.tab
    reader.visit("/segment?model=organs")
    reader.to("button", "Choose files")
    reader.gives(volumes(f"{'long' * 20}.nii.gz", "b.nii.gz"))
    reader.hears("2 of 2 cases done")
    reader.to("button", "b.nii.gz")
    reader.press("Enter")
    reader.hears("Done. Structures found: 1")
    assert tab.locator("[aria-current=true]:focus").inner_text() == "b.nii.gz"
    assert tab.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0
    drop, options = (tab.locator(each).bounding_box() for each in ("#drop", "#options-panel"))
    assert drop
    assert options
    assert options["y"] - (drop["y"] + drop["height"]) >= 8
    assert "heading b.nii.gz" in [f"{each['role']} {each['name']}" for each in reader.tree()]
    assert look_for_obstacles(tab) == []

    reader.to("radio", "All")
    reader.press("ArrowRight")
    assert reader.focused()["name"] == "Axial"
    before = reader.to("slider", "Left \N{EN DASH} right")["value"]
    reader.press("Home")
    assert reader.focused()["value"] != before
    assert reader.to("checkbox", "Show bright")["checked"] == "true"
    reader.press("Space")
    assert reader.focused()["checked"] == "false"
    reader.to("link", "Mask, NIfTI")
    taken = reader.takes()
    assert taken.suggested_filename == "b-mask.nii.gz"
    mask = nifti.decode(Path(taken.path()).read_bytes())
    np.testing.assert_array_equal(mask.array, SEGMENTATION.mask)

    reader.to("button", "Send a corrected mask")
    empty = nifti.encode(Volume(np.zeros_like(SEGMENTATION.mask), SEGMENTATION.geometry))
    reader.gives([{"name": "b.nii.gz", "mimeType": "application/gzip", "buffer": empty}])
    reader.hears("Corrected: 12 voxels changed.")
    reader.to("link", "Training pairs, zip")
    with zipfile.ZipFile(reader.takes().path()) as archive:
        assert "medserve-pairs/organs/dataset.json" in archive.namelist()
    reader.to("button", "All masks, zip", "Shift+Tab")
    with zipfile.ZipFile(reader.takes().path()) as archive:
        assert "medserve-masks/b-mask.nii.gz" in archive.namelist()


def test_the_seconds_of_a_long_run_are_shown_and_not_read_one_by_one(
    reader: Reader, fake_page: FakePage
) -> None:
    fake_page.engine.pause_s = 3.0
    reader.visit("/segment?model=organs")
    reader.to("button", "Choose files")
    reader.gives(volumes("a.nii.gz"))
    reader.tab.get_by_text(re.compile("Segmenting, [1-9] s")).wait_for()
    reader.tab.get_by_text("Done. Structures found: 1").wait_for()
    spoken = reader.tab.evaluate("window.spoken")
    assert [each for each in spoken if each.startswith("Segmenting")] == ["Segmenting, 0 s"]
    reader.hears("Done. Structures found: 1")
