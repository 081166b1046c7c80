"""Correcting many images by hand, with the reasons in sight and the keyboard alone."""

from __future__ import annotations

import base64
import csv
import io
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from medserve.imaging.codecs import nifti
from medserve.imaging.volume import Volume
from tests.client.framing import GRID
from tests.gateway.faces import SEGMENTATION
from tests.phantoms import raster_bytes
from tests.web.fake_page import FakePage, image

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import FilePayload, Page

FILES: list[FilePayload] = [
    image("clear.png", "ok dark", 1),
    image("unsure.png", "review bright", 2),
    image("odd.png", "odd dark", 3),
    image("also.png", "ok bright", 4),
    {"name": "photo.bmp", "mimeType": "image/bmp", "buffer": b"BM a picture"},
]


def sorted_files(tab: Page) -> None:
    tab.goto("/classify")
    tab.locator("#files").set_input_files(FILES)
    tab.get_by_text(f"Done. Files: {len(FILES)}", exact=True).wait_for()


def row(tab: Page, name: str) -> str:
    return tab.locator("tr.file", has_text=name).inner_text()


def test_every_reason_stands_in_the_table_itself(fake_tab: Page) -> None:
    tab = fake_tab
    sorted_files(tab)
    assert "The model hesitates" in row(tab, "unsure.png")
    assert "Unlike the training data" in row(tab, "odd.png")
    assert "BMP files are not read here. Save the image as PNG" in row(tab, "photo.bmp")
    assert "\n" not in row(tab, "clear.png").split("\t")[0]


def test_the_doubtful_come_first_where_that_is_asked_for(fake_tab: Page) -> None:
    tab = fake_tab
    sorted_files(tab)
    tab.get_by_role("button", name="Doubtful first").click()
    first = tab.locator("tr.file").first.locator(".c-name")
    tab.locator("tr[aria-rowindex='2']", has_text="odd.png").wait_for()
    assert "odd.png" in first.inner_text()
    tab.locator("tr[aria-rowindex='3']", has_text="unsure.png").wait_for()
    tab.locator("tr[aria-rowindex='6']", has_text="photo.bmp").wait_for()


def test_a_number_sets_the_class_of_the_image_that_is_looked_at(fake_tab: Page) -> None:
    tab = fake_tab
    sorted_files(tab)
    tab.locator("tr.file .thumb").first.click()
    tab.get_by_role("dialog").get_by_text("clear.png").wait_for()
    tab.keyboard.press("2")
    tab.get_by_role("dialog").get_by_text("bright (by hand)").wait_for()
    tab.keyboard.press("ArrowRight")
    tab.get_by_role("dialog").locator("#detail-name", has_text="unsure.png").wait_for()
    tab.keyboard.press("1")
    tab.get_by_role("dialog").get_by_text("dark (by hand)").wait_for()
    tab.keyboard.press("Escape")
    assert tab.locator("tr.corrected").count() == 2


def test_a_correction_is_taken_back_after_a_reload_and_announced(fake_tab: Page) -> None:
    tab = fake_tab
    sorted_files(tab)
    tab.locator("tr.file select").first.select_option("bright")
    tab.locator("tr.corrected").wait_for()
    tab.reload()
    tab.locator("tr.corrected").wait_for()
    tab.locator("#undo:enabled").click()
    tab.locator("tr.corrected").wait_for(state="detached")
    tab.locator("#moved", has_text="clear.png: now dark").wait_for(state="attached")
    tab.locator("#redo:enabled").click()
    tab.locator("tr.corrected").wait_for()
    assert tab.locator("tr.corrected select").input_value() == "bright"


def pictures(tab: Page, files: list[FilePayload]) -> None:
    """Show files as pictures, with the focus on their list."""
    tab.goto("/classify")
    tab.locator("#files").set_input_files(files)
    tab.get_by_text(f"Done. Files: {len(files)}", exact=True).wait_for()
    tab.get_by_role("button", name="Pictures").focus()
    tab.keyboard.press("Enter")
    tab.locator(".cell").first.wait_for()
    tab.locator("#grid").focus()


def wait_active(tab: Page, name: str) -> None:
    """Wait until a screen reader is told of a file; pictures are drawn a frame after a key."""
    tab.wait_for_function(
        """name => {
          const id = document.getElementById("grid").getAttribute("aria-activedescendant");
          return document.getElementById(id)?.title === name;
        }""",
        arg=name,
    )


def test_many_pictures_get_a_class_in_one_step_by_keyboard_alone(
    fake_tab: Page, look_for_obstacles: Callable[[Page], list[str]]
) -> None:
    tab = fake_tab
    pictures(tab, [image(f"{place:02d}.png", "ok dark", place) for place in range(40)])
    for key in ("ArrowRight", "Shift+ArrowDown", "ArrowRight", "Space"):
        tab.keyboard.press(key)
    chosen = tab.locator(".cell[aria-selected=true]")
    across = tab.locator("#grid").evaluate(
        "box => getComputedStyle(box).gridTemplateColumns.split(' ').length"
    )
    assert chosen.count() == across + 2  # from the second one to below it, and one more
    wait_active(tab, f"{across + 2:02d}.png")
    assert look_for_obstacles(tab) == []
    tab.keyboard.press("2")
    tab.locator("#moved", has_text=f"Files changed: {across + 2}. Now: bright").wait_for(
        state="attached"
    )
    tab.get_by_role("button", name=f"bright {across + 2}").wait_for()
    assert chosen.count() == 0
    tab.reload()
    tab.keyboard.press("Control+z")
    tab.locator("#moved", has_text=f"Files changed: {across + 2}. Now: dark").wait_for(
        state="attached"
    )


def slow(tab: Page, path: str) -> None:
    """Let the next answer from a path (a pattern) arrive late, or as many as `late` counts."""
    tab.add_init_script(
        f"""const path = {path};
        const send = window.fetch;
        window.late = 1;
        window.fetch = async (...asked) => {{
          const answer = await send(...asked);
          if (path.test(asked[0]) && window.late > 0) {{
            window.late -= 1;
            await new Promise((go) => setTimeout(go, 1000));
          }}
          return answer;
        }};"""
    )


def test_a_step_is_taken_back_before_the_files_of_a_reload_are_there(fake_tab: Page) -> None:
    tab = fake_tab
    sorted_files(tab)
    tab.locator("tr.file select").first.select_option("bright")
    tab.locator("tr.corrected").wait_for()
    slow(tab, r"/\/jobs\/[^/]+$/")
    tab.reload()
    tab.keyboard.press("Control+z")
    tab.locator("#moved", has_text="clear.png: now dark").wait_for(state="attached")
    tab.locator("tr.corrected").wait_for(state="detached")
    assert tab.locator("tr.file select").first.input_value() == "dark"


def test_files_given_before_those_of_a_reload_are_there_are_further_ones(fake_tab: Page) -> None:
    tab = fake_tab
    sorted_files(tab)
    slow(tab, r"/\/jobs\/[^/]+$/")
    tab.reload()
    tab.locator("#files").set_input_files([image("new.png", "ok bright", 9)])
    tab.get_by_text(f"Done. Files: {len(FILES) + 1}", exact=True).wait_for()
    assert row(tab, "new.png")
    assert "The model hesitates" in row(tab, "unsure.png")


def test_a_mask_that_comes_late_is_not_drawn_for_another_case(fake_tab: Page) -> None:
    tab = fake_tab
    slow(tab, r"/\/layers$/")
    tab.goto("/segment?model=gland")
    tab.locator("#files").set_input_files([image(f"{n}.png", "", n) for n in range(3)])
    tab.get_by_text("3 of 3 cases done").wait_for()
    seen = "document.getElementById('overlay').src"
    before = tab.evaluate(seen)
    tab.locator("#case-list").get_by_role("button", name="2.png").click()
    tab.wait_for_function(f"before => {seen} !== before", arg=before)
    expected = tab.evaluate(seen)
    tab.evaluate(
        """() => { const [, first, second] = document.querySelectorAll('#case-list button');
                   window.late = 1; first.click(); second.click(); }"""
    )
    tab.wait_for_timeout(2000)  # the late one has come
    tab.locator("#case", has_text="2.png").wait_for()
    assert tab.evaluate(seen) == expected


def test_another_model_counts_for_the_next_cases_not_for_those_on_their_way(
    fake_tab: Page, fake_page: FakePage
) -> None:
    tab = fake_tab
    slow(tab, r"/\/segmentation$/")
    tab.goto("/segment?model=organs")
    tab.locator("#files").set_input_files(volumes("a.nii", "b.nii"))
    tab.get_by_text("Segmenting, ").wait_for()
    tab.locator("#model").select_option("gland@1.0")
    tab.get_by_text("2 of 2 cases done").wait_for()
    assert [each.model for each in fake_page.engine.requests] == ["organs", "organs"]


def test_the_model_that_is_chosen_while_a_session_opens_is_the_one_that_answers(
    fake_tab: Page, fake_page: FakePage
) -> None:
    tab = fake_tab
    sorted_files(tab)
    slow(tab, r"/\/jobs\/[^/]+$/")
    tab.reload()
    before = tab.url
    tab.locator("#model").select_option("shades@1.0")
    tab.wait_for_url(lambda url: url != before)
    tab.get_by_text(f"Done. Files: {len(FILES)}", exact=True).wait_for()
    assert tab.locator("#model").input_value() == "shades@1.0"
    assert fake_page.engine.requests[-1].model == "shades"


def test_pictures_are_chosen_by_click_and_up_to_another_with_shift(fake_tab: Page) -> None:
    tab = fake_tab
    pictures(tab, [*FILES, *(image(f"{place}.png", "ok dark", place) for place in range(9, 40))])
    cells = tab.locator(".cell")
    cells.nth(1).click()
    cells.nth(6).click(modifiers=["Shift"])
    cells.nth(3).click()
    chosen = tab.locator(".cell[aria-selected=true]")
    assert [name[:4] for name in chosen.evaluate_all("all => all.map(({ title }) => title)")] == [
        "unsu", "odd.", "phot", "9.pn", "10.p",
    ]  # fmt: skip
    tab.get_by_label("Class of the selected files").get_by_role("button", name="bright").click()
    tab.locator("#moved", has_text="Files changed: 5. Now: bright").wait_for(state="attached")
    tab.get_by_role("button", name="Select all").click()
    assert chosen.count() == 36
    tab.locator("#search").fill("odd")
    tab.locator("#picked", has_text="Selected: 1").wait_for()  # the others are out of sight


def test_the_next_doubtful_picture_takes_the_place_of_a_corrected_one(fake_tab: Page) -> None:
    tab = fake_tab
    tab.set_viewport_size({"width": 390, "height": 780})
    pictures(tab, FILES)
    tab.get_by_role("button", name="Doubtful first").click()
    tab.locator(".cell[title='odd.png'][aria-posinset='1']").wait_for()
    tab.locator("#grid").focus()
    tab.keyboard.press("Home")
    wait_active(tab, "odd.png")
    tab.keyboard.press("2")
    tab.locator("#moved", has_text="odd.png: now bright").wait_for(state="attached")
    wait_active(tab, "unsure.png")
    tab.keyboard.press("Enter")
    tab.get_by_role("dialog").locator("#detail-name", has_text="unsure.png").wait_for()
    tab.keyboard.press("1")
    tab.get_by_role("dialog").get_by_text("dark (by hand)").wait_for()
    tab.keyboard.press("ArrowRight")  # in the order in which it was opened
    tab.get_by_role("dialog").locator("#detail-name", has_text="clear.png").wait_for()
    assert tab.locator("#detail-name").inner_text() == "clear.png"


def test_the_active_picture_is_never_below_the_bars(fake_tab: Page) -> None:
    tab = fake_tab
    pictures(tab, [image(f"{place:03d}.png", "ok dark", place) for place in range(150)])
    for size in ({"width": 1360, "height": 860}, {"width": 390, "height": 780}):
        tab.set_viewport_size(size)  # type: ignore[arg-type]
        for key, name in (("End", "149.png"), ("Home", "000.png")):
            tab.locator("#grid").focus()
            tab.keyboard.press(key)
            cell = tab.locator(f".cell.active[title='{name}']")
            cell.wait_for()
            assert cell.evaluate(
                """cell => {
                  const box = cell.getBoundingClientRect();
                  const at = y => document.elementFromPoint(box.x + box.width / 2, y);
                  return cell.contains(at(box.top + 9)) && cell.contains(at(box.bottom - 9));
                }"""
            )
    assert tab.locator(".cell").count() < 150


def test_a_copy_under_another_name_is_told(fake_tab: Page) -> None:
    tab = fake_tab
    tab.goto("/classify")
    copy = image("copy.png", "ok dark", 1)
    tab.locator("#files").set_input_files([FILES[0], copy])
    tab.get_by_text("Done. Files: 2", exact=True).wait_for()
    assert "Same content as clear.png." in row(tab, "copy.png")
    tab.reload()
    tab.get_by_text("Same content as clear.png.").wait_for()
    assert "Same content" not in tab.locator("tr.file").first.inner_text()


def test_a_mask_carries_the_name_of_its_case(fake_tab: Page) -> None:
    tab = fake_tab
    volume = Volume(SEGMENTATION.mask.astype("float32"), SEGMENTATION.geometry)
    content = nifti.encode(volume)
    tab.goto("/segment?model=organs")
    tab.locator("#files").set_input_files(
        {"name": "liver 7.nii.gz", "mimeType": "application/gzip", "buffer": content}
    )
    tab.locator("#case", has_text="liver 7.nii.gz").wait_for()
    tab.get_by_text("Done. Structures found: 1").wait_for()
    with tab.expect_download() as waiting:
        tab.locator("#get-nifti").click()
    assert waiting.value.suggested_filename == "liver 7-mask.nii.gz"
    with tab.expect_download() as waiting:
        tab.locator("#get-csv").click()
    assert waiting.value.suggested_filename == "liver 7-measures.csv"
    tab.goto("/")
    tab.get_by_role("link", name="liver 7.nii.gz").wait_for()


def volumes(*names: str) -> list[FilePayload]:
    content = nifti.encode(Volume(SEGMENTATION.mask.astype("float32"), SEGMENTATION.geometry))
    return [{"name": name, "mimeType": "application/gzip", "buffer": content} for name in names]


def test_several_volumes_are_several_cases_with_one_table_and_one_zip(fake_tab: Page) -> None:
    tab = fake_tab
    tab.goto("/segment?model=organs")
    tab.locator("#files").set_input_files(volumes("=a.nii.gz", "b.nii.gz", "b.nii"))
    tab.get_by_text("3 of 3 cases done").wait_for()
    assert tab.locator("#case").inner_text() == "=a.nii.gz"
    tab.locator("#case-list").get_by_role("button", name="b.nii", exact=True).click()
    tab.locator("#case", has_text=re.compile(r"^b\.nii$")).wait_for()
    with tab.expect_download() as waiting:
        tab.locator("#cases-csv").click()
    rows = list(csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text())))
    assert [(row["case"], row["label"]) for row in rows] == [
        ("'=a", "bright"), ("b", "bright"), ("b-2", "bright"),
    ]  # fmt: skip
    with tab.expect_download() as waiting:
        tab.locator("#cases-zip").click()
    with zipfile.ZipFile(waiting.value.path()) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [
            f"medserve-masks/{name}"
            for name in ("measures.csv", *(f"{case}-mask.nii.gz" for case in ("=a", "b", "b-2")))
        ]


def test_pictures_for_a_model_of_frames_are_a_frame_each(
    fake_tab: Page, fake_page: FakePage
) -> None:
    tab = fake_tab
    tab.goto("/segment?model=gland")
    tab.locator("#files").set_input_files([image(f"{n}.png", "", n) for n in range(3)])
    tab.get_by_text("3 of 3 cases done").wait_for()
    assert len({each.inputs["data"] for each in fake_page.engine.requests}) == 3
    assert tab.locator("#case-list button").all_inner_texts() == ["0.png", "1.png", "2.png"]


def test_segment_again_asks_the_same_where_no_option_was_touched(
    fake_tab: Page, fake_page: FakePage
) -> None:
    tab = fake_tab
    tab.goto("/segment?model=organs")
    tab.locator("#files").set_input_files(volumes("liver.nii.gz"))
    tab.get_by_text("Done. Structures found: 1").wait_for()
    tab.get_by_text("Options", exact=True).click()
    with tab.expect_response("**/segmentation"):
        tab.get_by_role("button", name="Segment again").click()
    first, second = fake_page.engine.requests
    assert first.inputs == second.inputs


def test_segment_again_asks_of_one_case_and_keeps_the_others(
    fake_tab: Page, fake_page: FakePage
) -> None:
    tab = fake_tab
    slow(tab, r"/\/segmentation$/")
    tab.goto("/segment?model=organs")
    tab.evaluate("window.late = 2")
    tab.get_by_text("Options", exact=True).click()
    tab.locator("#files").set_input_files(volumes("a.nii", "b.nii", "c.nii"))
    tab.locator("#case", has_text="a.nii").wait_for()
    assert not tab.locator("#rerun").is_visible()  # the others are on their way
    tab.get_by_text("3 of 3 cases done").wait_for()
    tab.locator("#case-list").get_by_role("button", name="b.nii").click()
    tab.locator("#case", has_text="b.nii").wait_for()
    tab.locator("#model").select_option("bones@1.0")
    with tab.expect_response("**/segmentation"):
        tab.locator("#rerun").click()
    tab.locator("#said", has_text="Done. Structures found: 1").wait_for()
    assert tab.locator("#case-list button").all_inner_texts() == ["a.nii", "b.nii", "c.nii"]
    assert tab.locator("#case-list [aria-current=true]").inner_text() == "b.nii"
    assert [each.model for each in fake_page.engine.requests] == [*["organs"] * 3, "bones"]
    with tab.expect_download() as waiting:
        tab.locator("#cases-csv").click()
    rows = list(csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text())))
    assert [row["case"] for row in rows] == ["a", "b", "c"]


def test_another_case_stays_open_when_one_that_was_asked_again_is_answered(fake_tab: Page) -> None:
    tab = fake_tab
    slow(tab, r"/\/segmentation$/")
    tab.goto("/segment?model=organs")
    tab.locator("#files").set_input_files(volumes("a.nii", "b.nii"))
    tab.get_by_text("2 of 2 cases done").wait_for()
    tab.evaluate("window.late = 1")
    tab.get_by_text("Options", exact=True).click()
    tab.get_by_role("button", name="Segment again").click()
    tab.locator("#case-list").get_by_role("button", name="b.nii").click()
    tab.locator("#case", has_text="b.nii").wait_for()
    address = tab.url
    tab.get_by_text("2 of 2 cases done").wait_for()
    assert tab.locator("#case").inner_text() == "b.nii"
    assert tab.url == address


def test_a_correction_is_there_when_its_case_is_seen_again(fake_tab: Page) -> None:
    tab = fake_tab
    tab.goto("/segment?model=organs")
    tab.locator("#files").set_input_files(volumes("a.nii", "b.nii"))
    tab.get_by_text("2 of 2 cases done").wait_for()
    mask = SEGMENTATION.mask.copy()
    mask[0, 0, 0] = 1 - mask[0, 0, 0]
    content = nifti.encode(Volume(mask, SEGMENTATION.geometry))
    corrected: FilePayload = {
        "name": "mask.nii.gz", "mimeType": "application/gzip", "buffer": content,
    }  # fmt: skip
    tab.locator("#corrected-mask").set_input_files([corrected])
    tab.locator("#get-pairs").wait_for()
    said = tab.locator("#corrected").inner_text()
    for name in ("b.nii", "a.nii"):
        tab.locator("#case-list").get_by_role("button", name=name).click()
        tab.locator("#case", has_text=name).wait_for()
        tab.locator("#get-pairs").wait_for(state="visible" if name == "a.nii" else "hidden")
    assert tab.locator("#corrected").inner_text() == said


def delete_now(tab: Page) -> None:
    tab.get_by_role("button", name="Delete now").click()
    tab.locator("#confirm").get_by_role("button", name="Delete now").click()


def test_delete_now_deletes_every_case_and_what_another_model_made_of_it(fake_tab: Page) -> None:
    tab = fake_tab
    begun: list[str] = []
    tab.on(
        "response",
        lambda got: (
            begun.append(got.json()["id"])
            if got.request.method == "POST" and got.url.endswith("/jobs")
            else None
        ),
    )
    tab.goto("/segment?model=organs")
    tab.locator("#files").set_input_files(volumes("a.nii", "b.nii"))
    tab.get_by_text("2 of 2 cases done").wait_for()
    tab.locator("#model").select_option("bones@1.0")
    tab.get_by_text("Options", exact=True).click()
    with tab.expect_response("**/segmentation"):
        tab.locator("#rerun").click()
    tab.locator("#said", has_text="Done. Structures found: 1").wait_for()
    delete_now(tab)
    tab.wait_for_url("**/segment")
    assert len(begun) == 3
    assert {tab.request.get(f"{tab.url}/{job}").status for job in begun} == {404}


@pytest.mark.parametrize("place", ["classify", "segment"])
def test_a_deletion_that_fails_is_told_and_leaves_all_in_sight(fake_tab: Page, place: str) -> None:
    tab = fake_tab
    if place == "classify":
        sorted_files(tab)
    else:
        tab.goto("/segment?model=organs")
        tab.locator("#files").set_input_files(volumes("a.nii"))
        tab.get_by_text("Done. Structures found: 1").wait_for()
    address = tab.url
    tab.route(
        "**/jobs/*",
        lambda route: route.abort() if route.request.method == "DELETE" else route.continue_(),
    )
    delete_now(tab)
    tab.get_by_text("The server does not answer").first.wait_for()
    assert tab.url == address
    tab.unroute("**/jobs/*")
    delete_now(tab)
    tab.wait_for_url(f"**/{place}")


def test_another_model_gets_the_same_volume_without_an_upload(
    fake_tab: Page, fake_page: FakePage
) -> None:
    tab = fake_tab
    tab.goto("/segment?model=organs")
    tab.locator("#files").set_input_files(volumes("liver.nii.gz"))
    tab.get_by_text("Done. Structures found: 1").wait_for()
    uploads: list[str] = []
    tab.on("request", lambda sent: uploads.append(sent.url) if sent.method == "POST" else None)
    tab.locator("#model").select_option("bones@1.0")
    tab.get_by_text("Options", exact=True).click()
    tab.get_by_role("button", name="Run this file on bones").click()
    tab.locator("#facts", has_text="bones 1.0").wait_for()
    assert not [url for url in uploads if url.endswith("/volume")]
    first, second = fake_page.engine.requests
    assert (first.model, second.model) == ("organs", "bones")
    assert first.inputs["data"] == second.inputs["data"]


def test_a_corrected_mask_is_sent_back_and_stays(fake_tab: Page) -> None:
    tab = fake_tab
    tab.goto("/segment?model=organs")
    tab.locator("#files").set_input_files(volumes("liver.nii.gz"))
    tab.get_by_text("Done. Structures found: 1").wait_for()
    empty = np.zeros_like(SEGMENTATION.mask)
    for mask, said in (
        (Volume(empty[:-1], SEGMENTATION.geometry.with_shape(empty[:-1].shape)), "does not fit"),
        (Volume(empty, SEGMENTATION.geometry), "Corrected: 12 voxels changed."),
    ):
        sent: FilePayload = {
            "name": "corrected.nii.gz",
            "mimeType": "application/gzip",
            "buffer": nifti.encode(mask),
        }
        tab.locator("#corrected-mask").set_input_files(sent)
        tab.locator("#corrected", has_text=said).wait_for()
    tab.reload()
    tab.get_by_text("Corrected: 12 voxels changed.").wait_for()
    with tab.expect_download() as waiting:
        tab.get_by_role("link", name="Training pairs, zip").click()
    with zipfile.ZipFile(waiting.value.path()) as archive:
        assert "medserve-pairs/organs/dataset.json" in archive.namelist()


def segmented_frame(tab: Page) -> None:
    tab.goto("/segment?model=gland")
    frame = raster_bytes(np.full(GRID.size, 90, dtype=np.uint8))
    sent: FilePayload = {"name": "frame.png", "mimeType": "image/png", "buffer": frame}
    tab.locator("#files").set_input_files(sent)
    tab.get_by_text("Done. Structures found: 1").wait_for()
    tab.locator("#overlay[src^='data:']").wait_for()


def flat_picture(tab: Page) -> np.ndarray:
    content = str(tab.locator("#overlay").get_attribute("src")).partition(",")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))


def test_a_corrected_mask_of_a_frame_is_sent_back_as_png_and_shown(fake_tab: Page) -> None:
    tab = fake_tab
    segmented_frame(tab)
    assert "Download the PNG mask" in tab.locator("#correcting").inner_text()
    mask = np.zeros(GRID.size, dtype=np.uint8)
    mask[5:12, 6:14] = 255
    for pixels, said in ((mask[:-1], "does not fit"), (mask, "Corrected: 96 pixels changed.")):
        sent: FilePayload = {
            "name": "mask.png", "mimeType": "image/png", "buffer": raster_bytes(pixels),
        }  # fmt: skip
        tab.locator("#corrected-mask").set_input_files(sent)
        tab.locator("#corrected", has_text=said).wait_for()
    tab.reload()
    tab.get_by_text("Corrected: 96 pixels changed.").wait_for()
    tab.locator("#overlay[src^='data:']").wait_for()
    np.testing.assert_array_equal((flat_picture(tab) != 90).any(axis=2), mask > 0)


def test_hiding_and_colouring_a_structure_acts_on_a_flat_picture(fake_tab: Page) -> None:
    tab = fake_tab
    segmented_frame(tab)
    with_mask = flat_picture(tab)
    assert with_mask.shape == (*GRID.size, 3)
    marked = (with_mask != 90).any(axis=2)
    assert marked.ravel()[:40].all()
    assert not marked.ravel()[40:].any()
    tab.get_by_label("Show ").uncheck()
    assert (flat_picture(tab) == 90).all()
    tab.get_by_label("Show ").check()
    tab.get_by_label("Colour of ").fill("#0000ff")
    assert not np.array_equal(flat_picture(tab), with_mask)
    np.testing.assert_array_equal((flat_picture(tab) != 90).any(axis=2), marked)
