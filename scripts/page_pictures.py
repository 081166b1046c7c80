"""Take the pictures in docs/use/page.md of a page that `make serve` keeps running.

    python scripts/page_pictures.py http://127.0.0.1:8000

Everything on them is an average of many patients or computed; Chromium draws, Pillow makes small.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import FilePayload, Page, sync_playwright

REPOSITORY = Path(__file__).resolve().parent.parent
ASSETS = REPOSITORY / "docs" / "assets"
_FLAGS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
_MOST_BYTES = 300_000


def main(url: str) -> None:
    """Every picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=list(_FLAGS)
        )
        tab = browser.new_page(base_url=url, viewport={"width": 1280, "height": 800})
        tab.set_default_timeout(300_000)
        tab.goto("/")
        _keep(tab, "start")
        _classify(tab)
        _segment(tab)
        tab.goto("/models/mednist")
        tab.set_viewport_size({"width": 1280, "height": 800})
        _keep(tab, "models")
        browser.close()


def _classify(tab: Page) -> None:
    files: list[FilePayload] = []
    for path in sorted((REPOSITORY / "models" / "mednist" / "examples").glob("*.png")):
        average = np.asarray(Image.open(path).convert("L"), dtype=np.float32)
        for number, gain in enumerate(np.linspace(0.85, 1.05, 8), start=1):
            exposed = Image.fromarray(np.clip(average * gain, 0, 255).astype(np.uint8))
            name = f"{path.stem.lower()}-{number:02d}.png"
            files.append({"name": name, "mimeType": "image/png", "buffer": _png(exposed)})
    files.insert(2, {"name": "letter.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.7"})
    tab.goto("/classify?model=mednist")
    tab.locator("#files").set_input_files(files)
    tab.get_by_text(f"Done. Files: {len(files)}").wait_for()
    tab.locator("tr.file select").nth(3).select_option("ChestCT")
    tab.locator("tr.corrected").wait_for()
    tab.wait_for_timeout(500)
    _keep(tab, "classify")
    tab.get_by_role("button", name="Pictures").click()
    cells = tab.locator(".cell")
    cells.nth(8).click()
    cells.nth(11).click(modifiers=["Shift"])
    tab.evaluate("scrollTo(0, 0)")
    tab.wait_for_timeout(500)
    _keep(tab, "pictures")


def _segment(tab: Page) -> None:
    tab.goto("/segment?model=segmentation_3d")
    average = REPOSITORY / "models" / "segmentation_3d" / "examples" / "average.nii.gz"
    tab.locator("#files").set_input_files(average)
    tab.get_by_text("Done. Structures found").wait_for()
    tab.set_viewport_size({"width": 1280, "height": 1000})
    tab.evaluate("scrollTo(0, 0)")
    tab.wait_for_timeout(3000)  # drawn anew
    _keep(tab, "segment")


def _keep(tab: Page, name: str) -> None:
    content = _png(Image.open(io.BytesIO(tab.screenshot())).convert("RGB"))
    if len(content) > _MOST_BYTES:
        raise SystemExit(f"{name}: expected at most {_MOST_BYTES} bytes, got {len(content)}")
    (ASSETS / f"page-{name}.png").write_bytes(content)


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
