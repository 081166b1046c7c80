"""A volume with its mask, and pictures that form, as a browser draws them."""

from __future__ import annotations

import base64
import csv
import io
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from medserve.gateway.faces.page.rendering import Templates
from medserve.imaging.codecs import nifti
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from medserve.results.segmentation import Segmentation
from tests.frame_phantoms import as_nifti, cine, scan
from tests.gateway.faces import DIGEST, compact
from tests.gateway.fake_engine import Request
from tests.phantoms import raster_bytes
from tests.tiny_volume_room import known_mask, phantom
from tests.volume_phantoms import as_bytes, dicom_slices, zipped
from tests.web.conftest import NewTab
from tests.web.fake_page import FakePage

if TYPE_CHECKING:
    from playwright.sync_api import Page

VOLUME = phantom(Geometry((32, 28, 24), np.diag([-1.0, 1.0, 1.0, 1.0])))
ORANGE, BLUE = (0xE6, 0x9F, 0x00), (0x56, 0xB4, 0xE9)


@pytest.fixture
def tab(new_tab: NewTab) -> Page:
    """A small one: the processor draws every pixel."""
    return new_tab(locale="en-GB", viewport={"width": 760, "height": 560})


def pixels(tab: Page) -> npt.NDArray[np.int32]:
    """What the canvas shows (H, W, 3)."""
    picture = Image.open(io.BytesIO(tab.locator("#viewer").screenshot())).convert("RGB")
    return np.asarray(picture, dtype=np.int32)


def wait_until(holds: Callable[[], bool]) -> None:
    """Look at the canvas again and again: it is drawn after the page has answered."""
    for _ in range(200):
        if holds():
            return
    raise AssertionError("the canvas did not become what was expected")


def drawn(tab: Page) -> npt.NDArray[np.int32]:
    """What the canvas shows once it has come to rest."""
    before, after = pixels(tab), pixels(tab)
    while (before != after).any():
        before, after = after, pixels(tab)
    return after


def share_of(colour: tuple[int, int, int], picture: npt.NDArray[np.int32]) -> float:
    """Part of the picture that has the hue of a colour."""
    wanted = np.array(colour) / np.linalg.norm(colour)
    length = np.linalg.norm(picture, axis=-1)
    likeness = (picture @ wanted) / np.maximum(length, 1)
    return float(((length > 60) & (likeness > 0.985)).mean())


def segmented(
    tab: Page, name: str, content: bytes, model: str = "tiny_volume", found: int = 2
) -> None:
    tab.goto("/segment")
    tab.locator("#model").select_option(f"{model}@1.0")
    send(tab, name, content, found)


def send(tab: Page, name: str, content: bytes, found: int) -> None:
    tab.locator("#files").set_input_files(
        {"name": name, "mimeType": "application/octet-stream", "buffer": content}
    )
    tab.get_by_text(f"Done. Structures found: {found}").wait_for()


def test_a_volume_is_shown_with_its_mask_and_measured(tab: Page, viewer_installed: None) -> None:
    segmented(tab, "ball.nii.gz", nifti.encode(VOLUME))
    mask = known_mask(VOLUME)
    cells = tab.locator("#measures tr").all_inner_texts()
    for place, label in enumerate(("dim", "bright"), start=1):
        voxels = int((mask == place).sum())
        assert label in cells[place - 1]
        assert f"{voxels:,}" in cells[place - 1]
        assert f"{voxels / 1000:.3f}" in cells[place - 1]

    tab.locator("#opacity").fill("100")
    tab.get_by_text("Axial", exact=True).click()
    wait_until(lambda: share_of(ORANGE, pixels(tab)) > 0.02 and share_of(BLUE, pixels(tab)) > 0.01)
    both = drawn(tab)
    tab.get_by_label("Show bright").uncheck()
    wait_until(lambda: share_of(BLUE, pixels(tab)) < 0.3 * share_of(BLUE, both))
    tab.locator("#opacity").fill("0")
    wait_until(lambda: share_of(ORANGE, pixels(tab)) < 0.3 * share_of(ORANGE, both))
    bare = drawn(tab)
    assert (bare.max(axis=-1) > 100).mean() > 0.02  # the volume itself is there
    tab.locator("#cross-z").fill("10")
    wait_until(lambda: bool((pixels(tab) != bare).any()))

    with tab.expect_download() as waiting:
        tab.locator("#get-nifti").click()
    found = nifti.decode(Path(waiting.value.path()).read_bytes())
    np.testing.assert_array_equal(found.array, mask)
    np.testing.assert_array_equal(found.geometry.affine, VOLUME.geometry.affine)


def test_a_zip_of_a_dicom_series_is_shown_and_given_back_as_dicom(
    tab: Page, viewer_installed: None
) -> None:
    series = zipped(as_bytes(each) for each in dicom_slices(VOLUME, Modality="MR"))
    segmented(tab, "series.zip", series)
    tab.locator("#viewer[data-ready=yes]").wait_for()
    assert (pixels(tab).max(axis=-1) > 60).mean() > 0.02
    with tab.expect_download() as waiting:
        tab.get_by_role("link", name="DICOM-SEG").click()
    assert Path(waiting.value.path()).read_bytes()[128:132] == b"DICM"


def test_what_is_no_volume_is_refused_in_words(tab: Page) -> None:
    tab.goto("/segment")
    tab.locator("#files").set_input_files(
        {"name": "a.nii", "mimeType": "text/plain", "buffer": b"Dear colleague"}
    )
    tab.get_by_text("This is no image or volume that the model can read.").wait_for()
    assert tab.locator("#work").is_hidden()  # no mask, and nothing to take home


def test_pictures_appear_while_they_form(tab: Page) -> None:
    tab.goto("/generate")
    tab.get_by_label("Number of images").fill("3")
    tab.get_by_label("Seed").fill("200")
    tab.locator("#draw").click()
    tab.locator(".gallery img:not([hidden])").first.wait_for()
    tab.get_by_text("Done. Images: 3").wait_for()
    sources = tab.locator(".gallery img").evaluate_all("all => all.map(image => image.src)")
    assert len(set(sources)) == 3
    assert tab.get_by_text("SYNTHETIC", exact=True).count() == 3
    assert tab.get_by_text("seed 202").is_visible()
    with tab.expect_download() as waiting:
        tab.locator("#sheet").click()
    with Image.open(waiting.value.path()) as sheet:
        assert sheet.width > 400
    with tab.expect_download() as waiting:
        tab.locator("#zip").click()
    with zipfile.ZipFile(waiting.value.path()) as archive:
        assert archive.testzip() is None
        names = [f"medserve-synthetic/medserve-synthetic-{seed}.png" for seed in (200, 201, 202)]
        assert archive.namelist() == names
        for name in names:
            Image.open(io.BytesIO(archive.read(name))).verify()
    with tab.expect_download() as waiting:
        tab.get_by_role("button", name="Image 2 as png").click()
    assert waiting.value.suggested_filename == "medserve-synthetic-201.png"


def test_the_forms_offer_the_options_that_each_task_declares(tab: Page) -> None:
    tab.goto("/segment")
    tab.locator("#model").select_option("tiny_volume@1.0")
    tab.get_by_text("Options", exact=True).click()
    names = "els => els.map(each => each.name)"
    assert tab.locator("#options [name]").evaluate_all(names) == [
        "channel", "spacing_mm", "select", "flips", "largest_component", "fill_holes",
        "uncertainty",
    ]  # fmt: skip
    assert not tab.locator("#rerun").is_visible()  # there is nothing to segment again
    tab.locator("#model").select_option("tiny_frame@1.0")
    assert tab.locator("#options [name]").evaluate_all(names) == [
        "view", "spacing_mm", "step_mm", "length_mm", "flips", "largest_component", "fill_holes",
    ]  # fmt: skip
    tab.goto("/generate")
    assert tab.locator("#options [name]").evaluate_all(names) == [
        "n", "class", "seed", "steps", "sampler", "size", "guidance", "format",
    ]  # fmt: skip
    assert tab.get_by_label("Files").input_value() == "png"


def test_chosen_options_count_for_the_next_run_and_stay_after_a_reload(tab: Page) -> None:
    tab.goto("/segment")
    tab.locator("#model").select_option("tiny_volume@1.0")
    tab.get_by_text("Options", exact=True).click()
    box = tab.get_by_label("Fill holes")
    own = box.is_checked()  # as the model's description says
    box.set_checked(not own)
    tab.get_by_label("Map of uncertainty").check()
    send(tab, "a.nii.gz", nifti.encode(VOLUME), 2)
    assert tab.get_by_role("link", name="Uncertainty, NIfTI").is_visible()
    if Templates().viewer is not None:
        without = pixels(tab)
        tab.get_by_label("Uncertainty", exact=True).check()
        wait_until(lambda: (pixels(tab) != without).any())
        tab.get_by_label("Uncertainty", exact=True).uncheck()
        wait_until(lambda: (pixels(tab) == without).all())
    tab.reload()
    tab.get_by_text("Done. Structures found: 2").wait_for()
    tab.get_by_text("Options", exact=True).click()
    assert tab.get_by_label("Fill holes").is_checked() is not own
    tab.get_by_label("Map of uncertainty").uncheck()
    tab.get_by_role("button", name="Segment again").click()
    tab.get_by_role("link", name="Uncertainty, NIfTI").wait_for(state="hidden")


def test_a_frame_is_no_volume_and_its_mask_is_a_png_first(tab: Page) -> None:
    tab.goto("/segment")
    tab.locator("#model").select_option("tiny_frame@1.0")
    tab.get_by_text("Options", exact=True).click()
    tab.get_by_label("Spacing, mm").fill("0.2, 0.3")
    send(tab, "frame.png", raster_bytes(scan()), 1)
    assert tab.locator("#overlay").is_visible()
    shown = "".join(tab.locator(f"#{part}").inner_text() for part in ("lead", "drop", "work"))
    assert "Area, cm²" in shown
    assert "Pixels" in shown
    assert re.search(r"0\.200 . 0\.300 mm", shown)
    assert not re.search("volume|voxel", shown, re.IGNORECASE)
    first = tab.locator("#downloads a:visible").first
    assert first.inner_text() == "Mask, PNG"
    with tab.expect_download() as waiting:
        first.click()
    with Image.open(waiting.value.path()) as mask:
        assert mask.size == (64, 48)
    with tab.expect_download() as waiting:
        tab.locator("#get-csv").click()
    [row] = csv.DictReader(Path(waiting.value.path()).read_text().splitlines())
    assert (row["status"], row["index"]) == ("ok", "0")
    assert float(row["area_cm2"]) == pytest.approx(int(row["pixels"]) * 0.06 / 100)


def test_a_stack_of_frames_is_shown_plane_by_plane(tab: Page, viewer_installed: None) -> None:
    stack = as_nifti(cine(3).transpose(2, 1, 0))
    segmented(tab, "stack.nii", stack, "tiny_frame", found=1)
    tab.locator("#viewer[data-ready=yes]").wait_for()
    shown = tab.locator("#work").inner_text()
    assert "Volume, ml" in shown
    assert "Pixels" in shown
    assert re.search(r"Found in frames\s+\d / 3", shown)
    assert "voxel" not in shown.lower()
    assert tab.locator("#get-png").is_hidden()


HALVES = Geometry((32, 28, 24), np.diag([1.0, 1.0, 1.0, 1.0]))  # the body's right half has I >= 16


TISSUE = np.indices(HALVES.shape, dtype=np.float32).sum(axis=0) % 2 * 20 + 100


def halved(request: Request) -> bytes:
    """Answer with a block in each half, unsure in the right one alone."""
    mask = np.zeros(HALVES.shape, dtype=np.uint8)
    mask[4:12, 8:20, 8:16], mask[20:28, 8:20, 8:16] = 1, 2
    unsure = np.zeros(HALVES.shape, dtype=np.float32)
    unsure[16:] = 1.0
    found = Segmentation(mask, HALVES, ("background", "first", "second")).to_result().to_json()
    found["entropy_nifti"] = base64.b64encode(nifti.encode(Volume(unsure, HALVES))).decode()
    head = {"model": request.model, "version": "1.0", "archive_digest": DIGEST, "status": "ok"}
    return compact({**head, **found})


def send_halves(tab: Page, page: FakePage, grey: npt.NDArray[np.float32] = TISSUE) -> None:
    page.engine.answers = halved
    tab.set_viewport_size({"width": 760, "height": 560})
    tab.goto("/segment?model=organs")
    send(tab, "a.nii.gz", nifti.encode(Volume(grey, HALVES)), 2)


def test_the_map_of_uncertainty_colours_where_the_model_is_unsure_and_nothing_else(
    fake_tab: Page, fake_page: FakePage, viewer_installed: None
) -> None:
    tab = fake_tab
    send_halves(tab, fake_page)
    tab.get_by_text("Axial", exact=True).click()
    tab.locator("#opacity").fill("0")
    wait_until(lambda: share_of(ORANGE, pixels(tab)) < 0.01)
    without = drawn(tab)
    tab.get_by_label("Uncertainty", exact=True).check()
    wait_until(lambda: bool((pixels(tab) != without).any()))
    with_map = drawn(tab)
    tissue = without.max(axis=-1) > 60
    columns = np.flatnonzero(tissue.any(axis=0))
    middle = int(columns.mean())  # the body's right half lies at the left of the picture
    margin = (columns[-1] - columns[0]) // 8
    unsure, sure = np.s_[:, : middle - margin], np.s_[:, middle + margin :]
    changed = np.abs(with_map - without).max(axis=-1) > 8
    assert changed[unsure][tissue[unsure]].mean() > 0.8
    assert changed[sure].mean() < 0.01
    red, _, blue = np.moveaxis(with_map[unsure][changed[unsure]], -1, 0)
    assert (red > blue + 30).mean() > 0.8  # inferno's upper end is yellow


def test_hiding_and_colouring_a_structure_acts_on_the_sheet_of_slices(
    fake_tab: Page, fake_page: FakePage
) -> None:
    tab = fake_tab
    tab.add_init_script(
        """const own = HTMLCanvasElement.prototype.getContext;
        HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
          return kind === "webgl2" ? null : own.call(this, kind, ...rest);
        };"""
    )
    send_halves(tab, fake_page)
    assert "slices are shown side by side" in tab.locator("#warnings").inner_text()
    sheet = tab.locator("#overlay[src^='data:']")

    def shown() -> npt.NDArray[np.int32]:
        content = str(sheet.get_attribute("src")).partition(",")[2]
        picture = Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")
        return np.asarray(picture, dtype=np.int32)

    tab.locator("#opacity").fill("100")
    orange, blue = share_of(ORANGE, shown()), share_of(BLUE, shown())
    assert orange > 0.01
    assert blue > 0.01
    tab.get_by_label("Show first").uncheck()
    assert share_of(ORANGE, shown()) == 0
    assert share_of(BLUE, shown()) == pytest.approx(blue)
    tab.get_by_label("Colour of second").fill("#e69f00")
    assert share_of(BLUE, shown()) == 0
    assert share_of(ORANGE, shown()) == pytest.approx(orange, rel=0.2)
    tab.get_by_label("Show second").uncheck()
    bare = shown()
    np.testing.assert_array_equal(bare.min(axis=-1), bare.max(axis=-1))


def test_the_letters_of_a_view_are_readable_on_bright_tissue(
    fake_tab: Page, fake_page: FakePage, viewer_installed: None
) -> None:
    tab = fake_tab
    bright = np.full(HALVES.shape, 1000, dtype=np.float32)
    bright[0, 0, 0] = 0
    send_halves(tab, fake_page, bright)
    tab.get_by_text("Axial", exact=True).click()
    tab.locator("#opacity").fill("0")
    for axis in "xy":
        tab.locator(f"#cross-{axis}").fill("3")  # away from the letter
    wait_until(lambda: bool((pixels(tab) > 230).all(axis=-1).mean() > 0.2))
    shown = drawn(tab)
    white = (shown > 230).all(axis=-1)
    rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
    top, middle = rows[0], int(columns.mean())
    letter = shown[top : top + 24, middle - 12 : middle + 12]  # A, the front of the body
    assert (letter < 60).all(axis=-1).sum() > 15  # its rim
    assert white[top : top + 24, middle + 12 : middle + 36].all()


def test_the_sliders_move_the_crosshair_by_a_slice(
    fake_tab: Page, fake_page: FakePage, viewer_installed: None
) -> None:
    tab = fake_tab
    send_halves(tab, fake_page)
    place = tab.locator("#place")
    tab.locator("#cross-z").fill("10")
    tab.locator("#place", has_text="/ 10.0 mm").wait_for()
    before = place.inner_text().partition(" mm")[0].rpartition(" / ")
    tab.locator("#cross-z").focus()
    tab.keyboard.press("ArrowRight")
    tab.locator("#place", has_text="/ 11.0 mm").wait_for()
    assert place.inner_text().partition(" mm")[0].rpartition(" / ")[0] == before[0]
    tab.keyboard.press("Home")
    tab.locator("#place", has_text="/ 0.0 mm").wait_for()
    tab.keyboard.press("End")
    tab.locator("#place", has_text="/ 23.0 mm").wait_for()
