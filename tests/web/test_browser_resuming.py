"""Uploads that break off, files given to the wrong model: nothing is lost or sent twice."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.web.fake_page import FakePage, image
from tests.web.test_exports import in_the_folder

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ninety images on disk: a browser knows them again by name, size and date."""
    study = tmp_path / "study"
    study.mkdir()
    for number in range(90):
        (study / f"{number:03d}.png").write_bytes(image("", "ok dark", number)["buffer"])
    return study


def break_off(tab: Page, folder: Path) -> None:
    """Send the folder, of which only the first pack arrives."""
    arrived: list[str] = []

    def only_first(route: Route) -> None:
        if not arrived:
            arrived.append(route.request.url)
            route.continue_()
        else:
            route.abort()

    tab.goto("/classify")
    tab.route("**/files", only_first)
    tab.route("**/alive", lambda route: route.abort())
    tab.locator("#folder").set_input_files(folder)
    tab.get_by_text("8 of 90 files", exact=True).wait_for()


def test_a_closed_tab_leaves_a_job_that_says_what_is_missing_and_goes_on(
    fake_tab: Page, folder: Path
) -> None:
    break_off(fake_tab, folder)
    later = fake_tab.context.new_page()
    fake_tab.close()
    later.goto(fake_tab.url)
    later.get_by_text("8 of 90 files done. Not arrived: 82.").wait_for()
    later.locator(".c-status", has_text="not arrived").first.wait_for()
    later.locator("#folder").set_input_files(folder)
    later.get_by_text("Done. Files: 90", exact=True).wait_for()
    later.get_by_text("Already here, not taken twice (same name, size and date): 8").wait_for()
    rows = later.request.get(later.locator("#csv").get_attribute("href") or "").text()
    listed = [row["source"] for row in csv.DictReader(io.StringIO(rows.lstrip("\ufeff")))]
    assert sorted(listed) == [f"study/{number:03d}.png" for number in range(90)]


def test_the_zip_of_an_unfinished_job_says_so(fake_tab: Page, folder: Path) -> None:
    break_off(fake_tab, folder)
    fake_tab.get_by_role("link", name="Download zip (8 of 90)").wait_for()
    with fake_tab.expect_download() as waiting:
        fake_tab.locator("#zip").click()
    assert waiting.value.suggested_filename == "medserve-results-unfinished-8-of-90.zip"
    with zipfile.ZipFile(waiting.value.path()) as archive:
        content = in_the_folder(archive)
    said = content["_UNFINISHED.txt"].decode()
    assert "8 of 90 files are answered" in said
    assert said.count(".png") == 82
    rows = list(csv.DictReader(io.StringIO(content["manifest.csv"].decode("utf-8-sig"))))
    assert [row["status"] for row in rows].count("missing") == 82


def test_files_most_of_which_are_doubtful_go_to_another_model_without_an_upload(
    fake_tab: Page, fake_page: FakePage
) -> None:
    files = [
        image(f"{n}.png", ("odd bright", "review dark", "ok dark")[n % 3], n) for n in range(9)
    ]
    fake_tab.goto("/classify?model=shades")
    fake_tab.locator("#files").set_input_files(files)
    fake_tab.get_by_text("Done. Files: 9", exact=True).wait_for()
    fake_tab.get_by_text(
        "unlike what shades was trained on, or leave it in doubt: 6 of 9"
    ).wait_for()
    uploads: list[str] = []
    fake_tab.on("request", lambda sent: uploads.append(sent.url) if "/files" in sent.url else None)
    with fake_tab.expect_navigation():
        fake_tab.get_by_role("button", name="Run the same files on kinds").click()
    fake_tab.get_by_text("Done. Files: 9", exact=True).wait_for()
    assert fake_tab.locator("#model").input_value() == "kinds@1.0"
    assert not [url for url in uploads if url.endswith("/files")]
    assert [request.model for request in fake_page.engine.requests][-1] == "kinds"


def test_few_doubtful_files_say_nothing_of_another_model(fake_tab: Page) -> None:
    files = [image(f"{n}.png", "odd dark" if n < 2 else "ok dark", n) for n in range(6)]
    fake_tab.goto("/classify")
    fake_tab.locator("#files").set_input_files(files)
    fake_tab.get_by_text("Done. Files: 6", exact=True).wait_for()
    assert fake_tab.locator("#another").is_hidden()


def test_a_page_starts_with_the_model_that_its_address_names_else_with_the_last_choice(
    fake_tab: Page,
) -> None:
    def chosen(address: str) -> Any:
        fake_tab.goto(address)
        return fake_tab.locator("#model").input_value()

    assert chosen("/classify") == "kinds@1.0"
    assert chosen("/classify?model=shades@1.0") == "shades@1.0"
    assert chosen("/classify") == "kinds@1.0"  # an address is no choice
    fake_tab.locator("#model").select_option("shades@1.0")
    assert chosen("/classify") == "shades@1.0"
    assert chosen("/classify?model=kinds") == "kinds@1.0"
    assert chosen("/classify?model=nothing") == "shades@1.0"
    fake_tab.get_by_text("No model nothing is served here").wait_for()
    fake_tab.goto("/models/shades")
    fake_tab.get_by_role("link", name="Use this model").click()
    fake_tab.wait_for_url("**/classify?model=shades@1.0")


def test_a_lost_connection_is_said_and_uploads_go_on_when_it_is_back(fake_tab: Page) -> None:
    files = [image(f"{n}.png", "ok dark", n) for n in range(20)]
    fake_tab.goto("/classify")
    fake_tab.context.set_offline(True)
    lost = fake_tab.get_by_text("The server cannot be reached.")
    lost.wait_for()
    fake_tab.context.set_offline(False)
    lost.wait_for(state="hidden")
    fake_tab.locator("#files").set_input_files(files[:1])
    fake_tab.get_by_text("Done. Files: 1", exact=True).wait_for()
    fake_tab.route("**/files", lambda route: route.abort())
    fake_tab.route("**/alive", lambda route: route.abort())
    fake_tab.locator("#files").set_input_files(files[1:])
    lost.wait_for()
    fake_tab.unroute_all()
    fake_tab.get_by_text("Done. Files: 20", exact=True).wait_for()
    assert json.loads(
        fake_tab.request.get(fake_tab.locator("#json").get_attribute("href") or "").text()
    )
