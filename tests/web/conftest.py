"""The page in a real browser, in front of a real TorchServe; what tests marked `browser` use.

- `page_url`: a gateway with its page on a free port, before four models of the shared TorchServe:
  `mednist` (its weights are committed), `tiny_volume`, `tiny_frame` and `sketcher`;
- `tab`: a new browser tab; a test fails where its console has an error or a dialog pops up;
- `new_tab`: more of them, with options such as `viewport`, `locale`, `color_scheme`;
- `fake_page`: the page on a free port before `tests.web.visiting`'s models instead, which answer at
  once and by what a file says; `fake_tab` is a tab there;
- `look_for_obstacles`: what axe-core finds on a tab's page.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from medserve.gateway.faces.page.rendering import Templates
from tests.archives import packaged, packaged_fixture
from tests.servers import Servers
from tests.tiny_room import REPOSITORY
from tests.web.fake_page import FakePage

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

NewTab = Callable[..., "Page"]
Obstacles = Callable[["Page"], list[str]]

_AXE = REPOSITORY / "build" / "web" / "node_modules" / "axe-core" / "axe.min.js"
_FLAGS = (  # WebGL on the processor, for machines without a graphics card
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-dev-shm-usage",
)


@pytest.fixture(scope="session")
def page_url(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of the page."""
    store = tmp_path_factory.mktemp("page") / "store"
    packaged("mednist", store)
    for name in ("sketcher", "tiny_frame", "tiny_volume"):
        packaged_fixture(name, store)
    gateway = servers.gateway(store=store, page=True, canary_timeout_s=30.0)
    assert gateway.addresses.page_url is not None
    return gateway.addresses.page_url.rstrip("/")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The browser; skips where there is none.

    Of one module: while it is open its event loop runs, and other tests run loops of their own.
    """
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if importlib.util.find_spec("playwright") is None or found is None:
        pytest.skip("needs Playwright and Chromium (Debian's package chromium)")
    from playwright.sync_api import sync_playwright

    root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's own sandbox refuses root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=[*_FLAGS, *root])
        yield browser
        browser.close()


@pytest.fixture
def new_tab(chromium: Browser, page_url: str) -> Iterator[NewTab]:
    """`new_tab(**options)` opens a tab with cookies of its own."""
    with _tabs(chromium, page_url) as open_tab:
        yield open_tab


@pytest.fixture
def fake_page(chromium: Browser) -> Iterator[FakePage]:
    """The page before models that need no engine; `chromium` first, for it may skip."""
    with FakePage() as page:
        yield page


@pytest.fixture
def fake_tab(chromium: Browser, fake_page: FakePage) -> Iterator[Page]:
    """A tab of the page before models that need no engine."""
    with _tabs(chromium, fake_page.url, timeout_ms=30_000) as open_tab:
        yield open_tab(locale="en-GB", viewport={"width": 1360, "height": 860})


@contextlib.contextmanager
def _tabs(chromium: Browser, page_url: str, timeout_ms: float = 120_000) -> Iterator[NewTab]:
    complaints: list[str] = []
    contexts = []

    def hear(message: ConsoleMessage) -> None:
        # A refused request is written down by the browser itself; tests look at what came of it.
        if message.type == "error" and "Failed to load resource" not in message.text:
            complaints.append(message.text)

    def open_tab(**options: Any) -> Page:
        context = chromium.new_context(base_url=page_url, **options)
        context.set_default_timeout(timeout_ms)  # the machine may be busy
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", hear)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}"))
        return tab

    yield open_tab
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def tab(new_tab: NewTab) -> Page:
    """A tab as most visitors have it."""
    return new_tab(locale="en-GB", viewport={"width": 1360, "height": 860})


@pytest.fixture
def viewer_installed() -> None:
    """Skip where the volume viewer was not fetched."""
    if Templates().viewer is None:
        pytest.skip("the volume viewer is missing; python scripts/web_assets.py")


@pytest.fixture(scope="session")
def look_for_obstacles() -> Obstacles:
    """Violations of WCAG 2.2 AA on a tab's page, by axe-core."""
    if not _AXE.exists():
        pytest.skip("axe-core is missing; python scripts/web_assets.py --dev")
    source = _AXE.read_text(encoding="utf-8")
    rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]

    def look(tab: Page) -> list[str]:
        tab.evaluate(source)
        found = tab.evaluate(
            "rules => axe.run(document, {runOnly: rules, resultTypes: ['violations']})", rules
        )
        return [
            f"{each['id']}: {node['target']} {node['failureSummary']}"
            for each in found["violations"]
            for node in each["nodes"]
        ]

    return look


@pytest.fixture(scope="session")
def medical_images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """300 images of six kinds: of the public set where it is at hand, else changed averages."""
    from tests.web.images import from_archive, from_examples

    folder = tmp_path_factory.mktemp("images")
    data = os.environ.get("MEDSERVE_DATA")
    archive = Path(data) / "MedNIST.tar.gz" if data else None
    if archive is not None and archive.exists():
        return from_archive(archive, folder)
    return from_examples(folder)
