"""Heat maps on request, from a network whose evidence is known: the brightest of six tiles."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from PIL import Image as pillow

from handlers.classification import ClassificationHandler
from medserve.imaging import Image
from medserve.inference.engines import Outputs
from medserve.inference.fit import fit_grey
from medserve.inference.occlusion import ROWS
from medserve.tasks.classification import EXPLAINED_PER_CALL, Classification
from tests.handlers.worker import answer, answers, context
from tests.phantoms import raster_bytes
from tests.tiny_room import LABELS, bright_tile, make_checkout

EXPLAIN = b'{"explain": true}'


class Tiles(ClassificationHandler):
    """As the handler of that room."""

    def to_network(self, source: Image) -> npt.NDArray[np.float32]:
        """Grey, between bars where it is wide."""
        return fit_grey(source, (64, 64))


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Tiles:
    room = make_checkout(tmp_path_factory.mktemp("tiles")) / "models" / "tiny"
    handler = Tiles()
    config = yaml.safe_load((room / "model-config.yaml").read_text())
    handler.initialize(context(room / "weights", config))
    return handler


@pytest.fixture
def rows(tiles: Tiles, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of the engine had."""
    calls: list[int] = []
    run = tiles.engine.run

    def counted(tensor: Any) -> Outputs:
        calls.append(len(tensor))
        return run(tensor)

    monkeypatch.setattr(tiles.engine, "run", counted)
    return calls


def wide_tile(tile: int) -> bytes:
    """The same picture at 192 x 96 pixels, seen by the network between two bars."""
    picture = pillow.open(io.BytesIO(bright_tile(tile))).resize(
        (192, 96), pillow.Resampling.NEAREST
    )
    return raster_bytes(np.asarray(picture))


def levels(explanation: dict[str, Any]) -> npt.NDArray[np.int64]:
    """The map as numbers around zero."""
    picture = pillow.open(io.BytesIO(base64.b64decode(explanation["heatmap_png"])))
    return np.asarray(picture).astype(np.int64) - 128


@pytest.mark.parametrize("tile", range(6))
def test_the_map_is_warmest_where_the_evidence_lies(tiles: Tiles, tile: int) -> None:
    got = answer(tiles, data=bright_tile(tile), params=EXPLAIN)
    assert got["label"] == got["explanation"]["label"] == LABELS[tile]
    warmth = levels(got["explanation"])
    assert warmth.shape == (64, 64)
    row, column = np.unravel_index(warmth.argmax(), warmth.shape)
    assert int(row) // 32 * 3 + min(int(column) // 21, 2) == tile


def test_the_map_has_the_size_of_the_input_and_fits_it(tiles: Tiles) -> None:
    # Between bars the upper half of the picture lies in rows 16 to 31: in tiles of the first row.
    got = answer(tiles, data=wide_tile(0), params=EXPLAIN)["explanation"]
    warmth = levels(got)
    assert warmth.shape == (96, 192)
    row, column = np.unravel_index(warmth.argmax(), warmth.shape)
    assert row < 48
    assert column < 64


def test_an_explained_answer_has_every_member_of_a_plain_one(tiles: Tiles) -> None:
    plain = answer(tiles, data=bright_tile(3))
    got = answer(tiles, data=bright_tile(3), params=EXPLAIN)
    explanation = got.pop("explanation")
    assert got == plain
    assert explanation.keys() == {
        *("method", "label", "full_colour", "without_warmest", "without_coolest", "heatmap_png")
    }
    assert explanation["method"] == "occlusion"
    assert explanation["without_warmest"] < explanation["without_coolest"]
    assert "explanation" not in plain


def test_an_explanation_comes_back_as_it_was_sent(tiles: Tiles) -> None:
    got = answer(tiles, data=bright_tile(3), params=EXPLAIN)
    read = Classification.from_json(got)
    assert read.explanation is not None
    assert read.explanation.to_json() == got["explanation"]
    assert read.to_json(top_k=2)["explanation"] == got["explanation"]


def test_cost_is_bounded_for_each_image(tiles: Tiles, rows: list[int]) -> None:
    answer(tiles, data=bright_tile(1), params=EXPLAIN)
    assert sum(rows) == ROWS
    assert max(rows) <= 32


def test_plain_images_of_a_batch_still_share_one_call(tiles: Tiles, rows: list[int]) -> None:
    got = answers(
        tiles,
        {"data": bright_tile(0)},
        {"data": bright_tile(1), "params": EXPLAIN},
        {"data": bright_tile(2)},
    )
    assert rows[0] == 2
    assert [each["label"] for each in got] == list(LABELS[:3])
    assert ["explanation" in each for each in got] == [False, True, False]


def test_packed_images_are_explained_up_to_a_bound(tiles: Tiles, rows: list[int]) -> None:
    most = {f"data_{place}": bright_tile(place % 6) for place in range(EXPLAINED_PER_CALL)}
    items = answer(tiles, **most, params=EXPLAIN)["items"]
    assert [each["explanation"]["label"] for each in items] == [each["label"] for each in items]
    rows.clear()
    got = answer(tiles, **most, **{f"data_{EXPLAINED_PER_CALL}": b"one more"}, params=EXPLAIN)
    assert {each["error"]["code"] for each in got["items"]} == {"PAYLOAD_TOO_LARGE"}
    assert "at most 8 files a call to explain, got 9" in got["items"][0]["error"]["message"]
    assert rows == []  # refused before any work


def test_a_broken_file_among_explained_ones_costs_only_itself(tiles: Tiles) -> None:
    items = answer(
        tiles, data_0=bright_tile(0), data_1=b"a letter", data_2=bright_tile(2), params=EXPLAIN
    )["items"]
    assert [each["status"] for each in items] == ["ok", "error", "ok"]
    assert items[1]["error"]["code"] == "INVALID_IMAGE"


def test_work_stops_when_the_caller_waits_no_longer(
    tiles: Tiles, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    run = tiles.engine.run

    def slow(tensor: Any) -> Outputs:
        clock[0] += 1.0
        return run(tensor)

    monkeypatch.setattr(tiles.engine, "run", slow)
    got = answer(tiles, data=bright_tile(0), params=EXPLAIN, deadline_ms=b"2500")
    assert got["error"]["code"] == "DEADLINE_EXCEEDED"
    assert len(rows) == 3


def test_explanations_leave_the_worker_time_to_live(
    tiles: Tiles, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TorchServe kills a worker after responseTimeout (here 30 s), and all its batch with it."""
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    run = tiles.engine.run

    def slow(tensor: Any) -> Outputs:
        clock[0] += 4.0
        return run(tensor)

    monkeypatch.setattr(tiles.engine, "run", slow)
    asked = {"data": bright_tile(0), "params": EXPLAIN}
    got = answers(tiles, asked, asked, {"data": bright_tile(5)})
    assert [each["status"] for each in got] == ["error", "error", "ok"]
    assert [each["error"]["code"] for each in got[:2]] == ["DEADLINE_EXCEEDED", "BUSY"]
    assert clock[0] <= 100 + 30 / 2 + 4 + 4  # the plain image, and the call in which time ran out


@pytest.mark.parametrize("value", [b"1", b'"yes"', b"null", b"[]"])
def test_explain_is_true_or_false(tiles: Tiles, value: bytes) -> None:
    got = answer(tiles, data=bright_tile(0), params=b'{"explain": %b}' % value)
    assert got["error"]["code"] == "INVALID_REQUEST"
    assert "explain: expected true or false" in got["error"]["message"]


def test_explain_false_is_a_plain_answer(tiles: Tiles, rows: list[int]) -> None:
    got = answer(tiles, data=bright_tile(0), params=b'{"explain": false}')
    assert "explanation" not in got
    assert rows == [1]


def test_the_answer_stays_one_that_the_server_can_send(
    tiles: Tiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "_max_response_bytes", 1500)
    assert "label" in answer(tiles, data=bright_tile(0))
    got = answer(tiles, data=bright_tile(0), params=EXPLAIN)
    assert got["error"]["code"] == "PAYLOAD_TOO_LARGE"


def test_a_network_that_breaks_on_covered_images_is_reported(
    tiles: Tiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiles.engine.run

    def broken(tensor: Any) -> Outputs:
        outputs = run(tensor)
        return outputs if len(tensor) == 1 else {**outputs, "logits": outputs["logits"] * np.nan}

    monkeypatch.setattr(tiles.engine, "run", broken)
    got = answer(tiles, data=bright_tile(0), params=EXPLAIN)
    assert got["error"]["code"] == "INTERNAL"
    assert answer(tiles, data=bright_tile(0))["status"] == "ok"
