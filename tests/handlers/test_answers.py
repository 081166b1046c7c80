from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handlers.mednist import MednistHandler
from medserve.inference.engines import Outputs
from medserve.tasks.classification import Classification
from tests.handlers.worker import answer, answers, picture, ready
from tests.phantoms import dicom_bytes, disc


class CountingEngine:
    """Passes calls on and remembers how many rows each had."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.name, self.rows = engine, engine.name, list[int]()

    def run(self, tensor: Any) -> Outputs:
        """As `Engine.run`."""
        self.rows.append(len(tensor))
        outputs: Outputs = self.engine.run(tensor)
        return outputs


@pytest.fixture
def counting(handler: MednistHandler, monkeypatch: pytest.MonkeyPatch) -> CountingEngine:
    engine = CountingEngine(handler.engine)
    monkeypatch.setattr(handler, "engine", engine)
    return engine


def packed(payloads: list[bytes]) -> dict[str, bytes]:
    return {f"data.{index}": payload for index, payload in enumerate(payloads)}


@pytest.mark.parametrize(("mean", "label"), [(0.1, "dark"), (0.5, "middle"), (0.9, "bright")])
def test_an_image_gets_its_class(handler: MednistHandler, mean: float, label: str) -> None:
    assert answer(handler, data=picture(mean))["label"] == label


def test_an_answer_names_model_version_and_status(handler: MednistHandler) -> None:
    got = answer(handler, data=picture(0.1))
    assert list(got)[:4] == ["model", "version", "archive_digest", "status"]
    assert (got["model"], got["version"], got["status"]) == ("brightness", "2.1", "ok")


def test_a_client_reads_the_same_result_that_the_handler_built(handler: MednistHandler) -> None:
    result = Classification.from_json(answer(handler, data=picture(0.5)))
    assert result.labels == ("dark", "middle", "bright")
    assert sum(result.probabilities) == pytest.approx(1.0)


def test_an_uncertain_answer_asks_for_a_review(handler: MednistHandler) -> None:
    assert answer(handler, data=picture(0.29))["review"] is True
    assert answer(handler, data=picture(0.1))["review"] is False


def test_a_dicom_is_answered_like_the_same_pixels_as_png(handler: MednistHandler) -> None:
    from tests.artifacts import brightness_plane

    dicom = answer(handler, data=dicom_bytes(brightness_plane(0.6)))
    assert dicom == answer(handler, data=picture(0.6))


def test_an_item_is_answered_the_same_alone_in_a_batch_and_packed(handler: MednistHandler) -> None:
    pictures = [picture(mean) for mean in np.linspace(0.05, 0.95, 23)]
    alone = [answer(handler, data=each)["probabilities"] for each in pictures]
    in_batch = [
        each["probabilities"] for each in answers(handler, *[{"data": p} for p in pictures])
    ]
    in_pack = [each["probabilities"] for each in answers(handler, packed(pictures))[0]["items"]]
    for one, two, three in zip(alone, in_batch, in_pack, strict=True):
        assert two == pytest.approx(one, abs=1e-5)
        assert three == pytest.approx(one, abs=1e-5)


def test_a_gathered_batch_is_one_call_of_the_engine(
    handler: MednistHandler, counting: CountingEngine
) -> None:
    answers(handler, {"data": picture(0.1)}, packed([picture(0.5)] * 5), {"data": picture(0.9)})
    assert counting.rows == [7]


def test_a_large_pack_runs_in_bounded_calls(
    handler: MednistHandler, counting: CountingEngine
) -> None:
    got = answer(handler, **{f"data_{i}": picture(0.5) for i in range(150)})
    assert counting.rows == [64, 64, 22]
    assert [each["index"] for each in got["items"]] == list(range(150))


def test_three_broken_files_of_three_hundred_cost_only_themselves(handler: MednistHandler) -> None:
    payloads = [picture(mean) for mean in np.linspace(0.05, 0.95, 300)]
    broken = {7: b"", 128: payloads[128][: len(payloads[128]) // 2], 299: b"not an image"}
    for index, content in broken.items():
        payloads[index] = content
    items = answers(handler, packed(payloads))[0]["items"]
    assert [each["index"] for each in items if each["status"] != "ok"] == sorted(broken)
    assert {each["error"]["code"] for each in items if each["status"] != "ok"} == {"INVALID_IMAGE"}


def test_a_bad_request_costs_no_other_request_of_its_batch(handler: MednistHandler) -> None:
    got = answers(
        handler,
        {"data": picture(0.1)},
        {"data": b"rubbish"},
        {"dat": picture(0.1)},
        {},
        {"data": picture(0.9)},
    )
    assert [each["status"] for each in got] == ["ok", "error", "error", "error", "ok"]
    assert (got[0]["label"], got[4]["label"]) == ("dark", "bright")


def test_a_batch_without_one_good_image_never_reaches_the_engine(
    handler: MednistHandler, counting: CountingEngine
) -> None:
    assert answer(handler, data=b"text")["status"] == "error"
    assert counting.rows == []


def test_top_k_limits_the_list_and_not_the_probabilities(handler: MednistHandler) -> None:
    got = answer(handler, data=picture(0.1), params=b'{"top_k": 1}')
    assert [each["label"] for each in got["top"]] == ["dark"]
    assert len(got["probabilities"]) == 3
    assert len(answer(handler, data=picture(0.1))["top"]) == 2  # the model's own default


def test_the_digest_names_the_archive_s_manifest(artifact: Path, tmp_path: Path) -> None:
    import hashlib

    from tests.handlers.worker import unpacked

    folder = unpacked(artifact, tmp_path)
    (folder / "medserve-manifest.json").write_bytes(b'{"format": 1}')
    expected = "sha256:" + hashlib.sha256(b'{"format": 1}').hexdigest()
    assert answer(ready(folder), data=picture(0.1))["archive_digest"] == expected


def test_an_answer_is_plain_utf_8_json(handler: MednistHandler) -> None:
    from tests.handlers.worker import FakeContext

    raw = handler.handle([{"data": bytearray(dicom_bytes(disc()))}], FakeContext({}))[0]
    assert json.loads(raw.decode("utf-8"))["status"] == "ok"
