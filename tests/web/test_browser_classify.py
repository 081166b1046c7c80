"""Three hundred images sorted in a browser, broken ones and twins among them."""

from __future__ import annotations

import csv
import io
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tests.web.conftest import NewTab
from tests.web.test_exports import in_the_folder

if TYPE_CHECKING:
    from playwright.sync_api import FilePayload, Page, Route

EVIL = "<img src=x onerror=alert(1)>.jpeg"
BROKEN = {
    "letter.png": b"Dear colleague",
    "empty.jpeg": b"",
    "half.jpeg": b"\xff\xd8\xff\xe0" + bytes(100),
}


def payload(name: str, content: bytes) -> FilePayload:
    kind = "image/jpeg" if name.endswith("jpeg") else "image/png"
    return {"name": name, "mimeType": kind, "buffer": content}


def counts(tab: Page) -> dict[str, int]:
    """What the list of folders says."""
    lines = [each.inner_text().split("\n") for each in tab.locator("#folders button").all()]
    return {name: int(count) for name, count in lines}


def shown(tab: Page, column: str) -> list[str]:
    """The texts of a column, of the rows that exist now."""
    return tab.locator(f"tr.file .c-{column}").all_inner_texts()


def downloaded(tab: Page, button: str) -> bytes:
    with tab.expect_download() as waiting:
        tab.locator(button).click()
    return Path(waiting.value.path()).read_bytes()


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds: the page draws at most once a frame."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.05)


def is_rising(percentages: list[str]) -> bool:
    values = [float(text.rstrip("%")) for text in percentages]
    return values == sorted(values)


def done(tab: Page, files: int) -> None:
    tab.get_by_text(f"Done. Files: {files}", exact=True).wait_for()


def test_three_hundred_images_are_sorted_corrected_and_taken_home(
    tab: Page, medical_images: list[Path]
) -> None:
    files = [payload(path.name, path.read_bytes()) for path in medical_images]
    files += [payload(name, content) for name, content in BROKEN.items()]
    files.append(payload(EVIL, medical_images[0].read_bytes()))
    tab.goto("/classify")
    tab.locator("#files").set_input_files(files)
    done(tab, 304)

    # the list of folders, the windowed table
    whole = counts(tab)
    assert whole["All files"] == 304
    assert whole["_errors"] == 3
    assert sum(count for name, count in whole.items() if name != "All files") == 304
    assert sum(whole[kind] for kind in ("Hand", "CXR", "HeadCT")) > 140
    assert tab.locator("#table").get_attribute("aria-rowcount") == "305"
    assert tab.locator("tr.file").count() < 100

    # finding, filtering, ordering
    tab.locator("#search").fill("onerror")
    tab.locator("tr.file").first.wait_for()
    tab.get_by_text(EVIL).wait_for()  # as text: a dialog would fail the test
    tab.locator("#search").fill("")
    tab.get_by_role("button", name="_errors 3").click()
    tab.get_by_text("letter.png").wait_for()
    assert set(shown(tab, "status")) == {"no image"}
    tab.get_by_role("button", name="Hand").first.click()
    tab.locator("[data-folder=Hand][aria-pressed=true]").wait_for()
    eventually(lambda: set(shown(tab, "id")) == {"4"})
    tab.get_by_role("button", name="All files").click()
    tab.get_by_role("button", name="Probability").click()
    tab.locator("[data-sort=probability][aria-sort=ascending]").wait_for()
    eventually(lambda: is_rising(shown(tab, "probability")[:20]))
    tab.get_by_role("button", name="Probability").click()
    tab.get_by_role("button", name="Probability").click()
    tab.locator("[data-sort=probability][aria-sort=none]").wait_for()
    eventually(lambda: files[0]["name"] in tab.locator("tr.file").first.inner_text())

    # a class by hand, taken back, and set again
    first = tab.locator("tr.file").first
    before = first.locator("select").input_value()
    after = "Hand" if before != "Hand" else "CXR"
    first.locator("select").select_option(after)
    tab.locator("tr.corrected").first.wait_for()
    eventually(lambda: counts(tab)[after] == whole[after] + 1)  # drawn with the next frame
    tab.keyboard.press("Control+z")
    tab.locator("tr.corrected").first.wait_for(state="detached")
    eventually(lambda: counts(tab) == whole)
    tab.locator("#redo").click()
    tab.locator("tr.corrected").first.wait_for()

    # the table and the files, byte for byte
    rows = list(csv.DictReader(io.StringIO(downloaded(tab, "#csv").decode("utf-8-sig"))))
    listed = json.loads(downloaded(tab, "#json"))["files"]
    assert [row["source"] for row in rows] == [file["name"] for file in files]
    assert [row["stored"] for row in rows] == [entry["stored"] for entry in listed]
    assert (rows[0]["class"], rows[0]["corrected"]) == (after, "yes")
    with zipfile.ZipFile(io.BytesIO(downloaded(tab, "#zip"))) as archive:
        content = in_the_folder(archive)
    del content["manifest.csv"]
    assert len(content.pop("corrections.csv").decode().splitlines()) == 2  # titles, one correction
    assert len(content) == 304
    for row, file in zip(rows, files, strict=True):
        assert content[row["stored"]] == file["buffer"]
        assert len(PurePosixPath(row["stored"]).parts) == 2

    # all of it is still there after a reload
    tab.reload()
    done(tab, 304)
    eventually(lambda: counts(tab)[after] == whole[after] + 1)


def test_a_folder_keeps_its_paths_and_twins_apart(tab: Page, tmp_path: Path) -> None:
    from tests.web.images import KINDS

    examples = Path(__file__).parents[2] / "models" / "mednist" / "examples"
    folder = tmp_path / "study"
    for kind in KINDS:  # six files of one name
        (folder / kind).mkdir(parents=True)
        (folder / kind / "image.png").write_bytes((examples / f"{kind}.png").read_bytes())
    (folder / "Hand" / ".DS_Store").write_bytes(b"hidden")
    tab.goto("/classify")
    tab.locator("#folder").set_input_files(folder)
    done(tab, 6)
    rows = list(csv.DictReader(io.StringIO(downloaded(tab, "#csv").decode("utf-8-sig"))))
    assert {row["source"] for row in rows} == {f"study/{kind}/image.png" for kind in KINDS}
    assert {row["stored"] for row in rows} == {f"{kind}/image.png" for kind in KINDS}


def test_a_closer_look_shows_every_probability(tab: Page, medical_images: list[Path]) -> None:
    tab.goto("/classify")
    tab.locator("#files").set_input_files([str(path) for path in medical_images[:3]])
    done(tab, 3)
    tab.locator("tr.file .thumb").first.click()
    dialog = tab.get_by_role("dialog")
    assert dialog.locator(".chances dt").count() == 6
    assert dialog.locator("img").evaluate("image => image.naturalWidth") > 0
    name = dialog.locator("#detail-name").inner_text()
    tab.keyboard.press("ArrowRight")
    assert dialog.locator("#detail-name").inner_text() != name
    tab.keyboard.press("Escape")
    dialog.wait_for(state="hidden")


def test_what_a_class_rests_on_is_laid_over_its_picture(
    tab: Page, medical_images: list[Path]
) -> None:
    tab.goto("/classify")
    tab.locator("#files").set_input_files([str(path) for path in medical_images[:2]])
    done(tab, 2)
    tab.locator("tr.file .thumb").first.click()
    dialog = tab.get_by_role("dialog")
    dialog.get_by_role("button", name="Why this class?").click()
    map_ = dialog.locator("#detail-picture img.heat")
    map_.wait_for()
    dialog.get_by_text("Orange speaks for the class").wait_for()
    picture = dialog.locator("#detail-picture img").first
    assert map_.bounding_box() == picture.bounding_box()
    assert map_.evaluate("async image => (await image.decode(), image.naturalWidth)") == 64
    tab.keyboard.press("ArrowRight")
    map_.wait_for(state="detached")
    assert dialog.locator("#explained").inner_text() == ""


def test_dicom_gets_its_thumbnail_from_the_server(tab: Page) -> None:
    from pydicom.data import get_testdata_file

    tab.goto("/classify")
    tab.locator("#files").set_input_files(str(get_testdata_file("CT_small.dcm")))
    done(tab, 1)
    image = tab.locator("tr.file .thumb img")
    image.wait_for()
    assert "/thumbnail" in (image.get_attribute("src") or "")
    assert image.evaluate("async image => (await image.decode(), image.naturalWidth)") > 0
    assert shown(tab, "status") == ["unlike training"]


def test_files_can_be_dropped(tab: Page, medical_images: list[Path]) -> None:
    tab.goto("/classify")
    tab.evaluate(
        """([name, bytes]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], name, {type: "image/jpeg"}));
            const how = {dataTransfer: transfer, bubbles: true, cancelable: true};
            document.getElementById("drop").dispatchEvent(new DragEvent("drop", how));
        }""",
        ["hand.jpeg", list(medical_images[0].read_bytes())],
    )
    done(tab, 1)
    assert tab.locator("tr.file .c-name").all_inner_texts() == ["hand.jpeg"]


def test_another_browser_finds_nothing_under_the_address(
    tab: Page, new_tab: NewTab, medical_images: list[Path]
) -> None:
    tab.goto("/classify")
    tab.locator("#files").set_input_files(str(medical_images[0]))
    done(tab, 1)
    stranger = new_tab(locale="en-GB")
    response = stranger.goto(tab.url)
    assert response is not None
    assert response.status == 404
    stranger.get_by_text("Not here").wait_for()
    tab.get_by_role("button", name="Delete now").click()
    tab.locator("#confirm").get_by_role("button", name="Delete now").click()
    tab.wait_for_url("**/classify")


def test_an_upload_can_be_stopped_and_taken_up_again(tab: Page, medical_images: list[Path]) -> None:
    tab.goto("/classify")
    tab.route("**/files", lambda route: None)  # nothing arrives
    tab.locator("#files").set_input_files([str(path) for path in medical_images[:200]])
    tab.get_by_role("button", name="Stop").click()
    tab.get_by_text("0 of 200 files done. Without an answer: 200").wait_for()
    assert set(shown(tab, "status")) == {"stopped"}
    tab.unroute("**/files")
    tab.get_by_role("button", name="Try again").click()
    done(tab, 200)


def test_what_the_server_refuses_for_a_while_is_sent_again(
    tab: Page, medical_images: list[Path]
) -> None:
    refused: list[str] = []

    def busy(route: Route) -> None:
        if len(refused) < 2:
            refused.append(route.request.url)
            body = '{"error": {"code": "BUSY", "message": "expected room in the queue"}}'
            route.fulfill(status=503, body=body, content_type="application/json")
        else:
            route.continue_()

    tab.goto("/classify")
    tab.route("**/files", busy)
    tab.locator("#files").set_input_files([str(path) for path in medical_images[:40]])
    done(tab, 40)
    assert len(refused) == 2
