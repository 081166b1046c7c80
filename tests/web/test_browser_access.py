"""Whoever comes, and with whatever: languages, small screens, keyboards, screen readers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from medserve.gateway.faces.page.rendering import Templates
from tests.web.conftest import NewTab, Obstacles

if TYPE_CHECKING:
    from playwright.sync_api import Page

PAGES = ("/", "/classify", "/segment", "/generate", "/models", "/models/mednist", "/login")
TITLES = {"en-GB": "Classify", "fr-FR": "Classer", "ru-RU": "Классификация"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_an_obstacle_that_axe_knows(
    new_tab: NewTab, look_for_obstacles: Obstacles, scheme: str, medical_images: list[Path]
) -> None:
    tab = new_tab(locale="en-GB", color_scheme=scheme)
    for path in PAGES:
        tab.goto(path)
        assert look_for_obstacles(tab) == [], path
    tab.goto("/segment")
    tab.get_by_text("Options", exact=True).click()
    assert look_for_obstacles(tab) == []
    tab.goto("/classify")
    tab.locator("#files").set_input_files([str(path) for path in medical_images[::10]])
    tab.get_by_text("Done. Files: 30").wait_for()
    assert look_for_obstacles(tab) == []
    tab.locator("tr.file .thumb").first.click()
    assert look_for_obstacles(tab) == []


@pytest.mark.parametrize("locale", sorted(TITLES))
def test_every_page_fits_a_phone_in_every_language(new_tab: NewTab, locale: str) -> None:
    tab = new_tab(locale=locale, viewport={"width": 360, "height": 740}, is_mobile=True)
    for path in PAGES:
        tab.goto(path)
        wide = tab.evaluate("document.scrollingElement.scrollWidth - innerWidth")
        assert wide <= 0, path
    tab.goto("/classify")
    tab.get_by_role("heading", name=TITLES[locale], exact=True).wait_for()


def test_the_api_description_is_a_page_that_loads_nothing_from_elsewhere(fake_tab: Page) -> None:
    if Templates().api_reader is None:
        pytest.skip("Swagger UI is missing; python scripts/web_assets.py")
    tab = fake_tab  # it fails where the policy of the page stops something
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto("/")
    tab.get_by_role("link", name="API description").click()
    call = tab.locator("#api .opblock-post", has_text="/v1/models/{model}/classify")
    call.get_by_role("button").first.click()
    call.get_by_text("Also a heat map of what each class rests on").wait_for()
    tab.set_viewport_size({"width": 360, "height": 740})
    assert tab.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0
    own = tab.url.removesuffix("/api")
    assert own + "/openapi.json" in asked
    assert [url for url in asked if not url.startswith((own, "data:"))] == []


def test_the_keyboard_reaches_the_content_at_once(tab: Page) -> None:
    tab.goto("/classify")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    for _ in range(2):
        tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "choose-files"


def test_the_colours_that_were_chosen_stay(tab: Page) -> None:
    tab.goto("/")
    tab.locator("#theme").click()
    assert tab.locator("html").get_attribute("data-theme") == "dark"
    tab.goto("/models")
    assert tab.locator("html").get_attribute("data-theme") == "dark"
