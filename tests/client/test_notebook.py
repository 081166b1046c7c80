"""How results show themselves in a notebook."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from medserve.client import Classification, FileResult
from medserve.errors import InvalidImageError
from medserve.tasks.classification import Explanation
from medserve.tasks.frames import (
    FailedFrame,
    FrameResult,
    MeasuredFrame,
    StackGrid,
    StackMeasure,
    View,
)
from medserve.tasks.generation import GenerationResult, SampleImage
from medserve.tasks.result import Doubt, DoubtReason, Provenance, as_html
from tests.gateway.faces import SEGMENTATION

_DOUBT = Doubt(DoubtReason.SIZE, "9 mm, in the training data 31 mm")
_VOLUMES = structs.replace(
    SEGMENTATION.to_result(),
    model="organs",
    version="1.0",
    overlay_png=b"picture",
    doubts=(_DOUBT,),
)


class _Read(HTMLParser):
    """Collects what a notebook would show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.pictures: list[bytes] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        if tag == "img":
            source = dict(attributes)["src"] or ""
            self.pictures.append(base64.b64decode(source.partition("base64,")[2]))

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def shown(result: object) -> _Read:
    return _Read(result._repr_html_())  # type: ignore[attr-defined]


def test_a_segmentation_shows_its_measures_its_doubts_and_the_overlay() -> None:
    read = shown(_VOLUMES)
    [measure] = _VOLUMES.measures
    for cell in (measure.label, str(measure.voxels), f"{measure.volume_ml:.3f}"):
        assert cell in read.cells
    assert any(_DOUBT.message in cell for cell in read.cells)
    assert read.pictures == [b"picture"]
    assert shown(structs.replace(_VOLUMES, overlay_png=None)).pictures == []


def test_frames_show_one_line_each_and_the_errors_of_those_that_failed() -> None:
    measured = MeasuredFrame(
        index=0, pixels=120, area_cm2=1.2, width_mm=None, height_mm=None, centroid=None,
        box_start=None, box_stop=None, touches_border=True, predicted_dice=0.87,
    )  # fmt: skip
    failed = FailedFrame(index=1, error={"code": "INVALID_IMAGE", "message": "too dark"})
    result = FrameResult(
        labels=("background", "gland"), shape=(2, 2, 2), affine=_VOLUMES.affine,
        spacing_mm=(1, 1, 1), measures=(), view=View.STORED, grid=StackGrid(2, 2, 2),
        stack=StackMeasure(1, 0, 1.2, None, None, None, None, None),
        frames=(measured, failed), mask_nifti=b"", mask_png=b"mask",
    )  # fmt: skip
    read = shown(result)
    first = ["0", "1.20", "120", "0.87", "reaches the edge"]
    assert read.cells[5:] == [*first, "1", "", "", "", "too dark"]
    assert read.pictures == [b"mask"]


def test_a_class_shows_the_probable_ones_and_what_it_rests_on() -> None:
    explanation = Explanation("Hand", 0.2, 0.8, 1.0, b"map")
    found = Classification(("CXR", "Hand"), (0.3, 0.7), True, 0.5, explanation)
    read = shown(FileResult(found, Provenance("mednist")))
    assert read.cells == ["class", "probability", "Hand", "0.7000", "CXR", "0.3000"]
    assert "let a person look" in found._repr_html_()
    assert read.pictures == [b"map"]


def test_synthetic_images_show_themselves() -> None:
    images = tuple(
        SampleImage(png=b"%d" % n, seed=n, label="t1", steps=2, sampler="ddim", guidance=1.0,
                    size=64, synthetic=True)
        for n in range(2)
    )  # fmt: skip
    read = shown(GenerationResult(images=images, withheld=0))
    assert read.pictures == [b"0", b"1"]
    assert read.cells[0] == "synthetic image"


def test_a_failed_file_shows_its_error() -> None:
    html = FileResult(InvalidImageError("a < b"), Provenance("m"))._repr_html_()
    assert "INVALID_IMAGE: a &lt; b" in html


@given(st.text(), st.lists(st.lists(st.text(), min_size=1)))
def test_no_text_becomes_markup(title: str, table: list[list[str]]) -> None:
    html = as_html(title, table, ())
    assert set(re.findall(r"<(/?[a-z]+)", html)) <= {
        *("p", "/p", "table", "/table", "tr", "/tr", "td", "/td", "th", "/th"),
    }
    assert html.count("<td>") + html.count("<th>") == sum(map(len, table))
