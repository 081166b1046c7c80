"""A case of several images, dropped together or given one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from medserve.imaging.codecs import nifti
from tests.gateway.faces import SEGMENTATION
from tests.tiny_volume_room import phantom
from tests.web.conftest import Obstacles
from tests.web.fake_page import FakePage

if TYPE_CHECKING:
    from playwright.sync_api import FilePayload, Page

_VOLUME = nifti.encode(phantom(SEGMENTATION.geometry))


def file(name: str, content: bytes) -> FilePayload:
    return {"name": name, "mimeType": "application/gzip", "buffer": content}


def sent(page: FakePage) -> list[dict[str, bytes]]:
    return [
        {key: content for key, content in each.inputs.items() if key.startswith("data")}
        for each in page.engine.requests
    ]


@pytest.fixture
def tab(fake_tab: Page) -> Page:
    fake_tab.goto("/segment?model=tumour")
    fake_tab.get_by_role("heading", name="One case, several images").wait_for()
    return fake_tab


def test_files_given_together_become_cases_by_their_numbers(tab: Page, fake_page: FakePage) -> None:
    assert "t1: …_0000, flair: …_0001" in tab.locator("#channels-rule").inner_text()
    tab.locator("#files").set_input_files(
        [
            file("b_0001.nii.gz", b"fourth"),
            file("a_0001.nii.gz", b"second"),
            file("b_0000.nii.gz", _VOLUME),
            file("a_0000.nii.gz", _VOLUME),
        ]
    )
    tab.get_by_text("2 of 2 cases done").wait_for()
    assert sent(fake_page) == [
        {"data.t1": _VOLUME, "data.flair": b"fourth"},
        {"data.t1": _VOLUME, "data.flair": b"second"},
    ]
    assert tab.locator("#case-list button").all_inner_texts() == ["b", "a"]


def test_a_place_for_each_image_takes_files_of_any_name(
    tab: Page, fake_page: FakePage, look_for_obstacles: Obstacles
) -> None:
    assert look_for_obstacles(tab) == []
    tab.get_by_label("flair", exact=True).set_input_files(file("any.nii.gz", b"second"))
    assert sent(fake_page) == []
    tab.get_by_label("t1", exact=True).set_input_files(file("other.nii.gz", _VOLUME))
    tab.get_by_text("Done. Structures found: 1").wait_for()
    assert sent(fake_page) == [{"data.t1": _VOLUME, "data.flair": b"second"}]


def test_an_incomplete_case_is_told_by_the_name_of_what_is_missing(
    tab: Page, fake_page: FakePage
) -> None:
    tab.locator("#files").set_input_files(
        [file("a_0001.nii.gz", b"second"), file("a_0002.nii.gz", b"third")]
    )
    tab.locator("#failure").filter(has_text="each of t1, flair").wait_for()
    assert fake_page.engine.finished == 0


def test_a_model_of_one_image_shows_no_places(fake_tab: Page) -> None:
    fake_tab.goto("/segment?model=organs")
    fake_tab.locator("#drop").wait_for()
    assert fake_tab.locator("#channels").is_hidden()
