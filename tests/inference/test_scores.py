"""Labels that are independent: their specification, their scores and their results."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medserve.archive.reference import Reference, read_answer_items
from medserve.batch.receipts import Receipt
from medserve.batch.report import summarise
from medserve.batch.tables import measures_of
from medserve.errors import ConfigError, InvalidRequestError, ServerFailedError
from medserve.gateway.core.comparison import Comparison
from medserve.gateway.core.metrics import GatewayMetrics
from medserve.gateway.core.watching import Watching
from medserve.inference.fit import Box
from medserve.inference.occlusion import occlude
from medserve.inference.scores import as_logits, classified, threshold_logits
from medserve.results.sorted_folders import doubt_first, folder_of_labels, found_cells
from medserve.spec import Classes, ModelSpec, OutputSpec, Task
from medserve.spec.volumes import ScoreKind
from medserve.tasks.classification import Classification, as_finding, read_finding
from tests.gateway.fake_engine import model

LABELS = ("Effusion", "Mass", "No Finding")
THRESHOLDS = (0.5, 0.2, 0.9)


def spec_of(labels: tuple[str, ...] = LABELS, **output: object) -> ModelSpec:
    own = {
        "name": "chest",
        "version": "1.0",
        "title": "Findings of a radiograph",
        "task": "classification",
        "labels": list(labels),
        "input": {"kinds": ["raster"], "size": [64, 64]},
        "output": {"classes": "independent", "novelty": False, **output},
    }
    return ModelSpec.from_mapping({"minWorkers": 1, "maxWorkers": 1, "medserve": own})


def found_by(*probabilities: float) -> Classification:
    shares = np.array(probabilities)
    spec = spec_of(threshold=list(THRESHOLDS))
    return classified({"logits": np.log(shares / (1 - shares))}, spec)


SEVERAL = found_by(0.8, 0.3, 0.1)
NOTHING = found_by(0.1, 0.1, 0.1)


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ({"threshold": [0.5, 0.5]}, "one for each of 3 labels, got 2"),
        ({"threshold": 1.0}, "output.threshold"),
        ({"threshold": 0}, "output.threshold"),
        ({"threshold": [0.5, 0.5, 1.5]}, "output.threshold"),
        ({"classes": "exclusive", "threshold": 0.5}, "expected none for exclusive classes"),
        ({"classes": "several"}, "exclusive, independent"),
    ],
)
def test_a_threshold_that_cannot_be_is_refused(output: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        spec_of(**output)


@pytest.mark.parametrize("label", ["a; b", "none", ""])
def test_a_label_that_a_table_could_not_tell_is_refused(label: str) -> None:
    with pytest.raises(ConfigError, match="without a semicolon"):
        spec_of(("Effusion", label))


def test_classes_exclude_each_other_unless_it_is_said() -> None:
    assert OutputSpec().classes is Classes.EXCLUSIVE
    assert not model().spec.has_independent_labels
    assert spec_of(("Fracture",)).classifier.thresholds(1) == (0.5,)


@given(
    st.lists(st.floats(-20, 20), min_size=3, max_size=3),
    st.floats(0, 1),
    st.sampled_from(ScoreKind),
)
def test_each_label_is_present_by_its_own_threshold_and_unsure_by_the_limit_of_review(
    logits: list[float], limit: float, kind: ScoreKind
) -> None:
    spec = spec_of(threshold=list(THRESHOLDS), review_below=limit, scores=kind.value)
    shares = [1 / (1 + math.exp(-each)) for each in logits]
    scores = np.array(logits if kind is ScoreKind.LOGITS else shares)
    found = classified({"logits": as_logits(scores, spec.classifier)}, spec)
    assert found.probabilities == pytest.approx(shares, abs=1e-9)
    known = dict(zip(LABELS, found.probabilities, strict=True))
    least = dict(zip(LABELS, THRESHOLDS, strict=True))
    assert found.present == tuple(each for each in LABELS if known[each] >= least[each])
    assert found.review == any(known[each] < limit for each in found.present)
    assert Classification.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_an_answer_with_several_labels_names_no_single_class() -> None:
    assert SEVERAL.present == ("Effusion", "Mass")
    content = SEVERAL.to_json(top_k=1)
    assert not {"label", "label_id", "probability"} & content.keys()
    assert content["top"] == [{"label": "Effusion", "probability": pytest.approx(0.8)}]
    assert (SEVERAL.label, SEVERAL.label_id) == ("", -1)
    assert math.isnan(SEVERAL.probability)
    assert "Effusion; Mass" in SEVERAL._repr_html_()
    assert (NOTHING.present, NOTHING.finding, NOTHING.found) == ((), "none", ())


def test_a_label_that_the_model_does_not_have_is_no_answer() -> None:
    with pytest.raises(ServerFailedError):
        Classification.from_json(SEVERAL.to_json() | {"present": ["Fracture"]})


@given(st.sets(st.sampled_from(LABELS)))
def test_labels_as_one_text_are_read_back(present: set[str]) -> None:
    labels = tuple(each for each in LABELS if each in present)
    assert read_finding(as_finding(labels), LABELS) == labels
    assert folder_of_labels(labels) == (
        labels[0] if len(labels) == 1 else "_several" if labels else "_none"
    )
    with pytest.raises(InvalidRequestError, match="separated by semicolons"):
        read_finding("; ".join([*labels, "Fracture"]), LABELS)


def test_the_label_furthest_above_its_threshold_is_explained() -> None:
    spec = spec_of(threshold=[0.9, 0.1, 0.5])

    def run(rows: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        bright = rows.mean(axis=(1, 2, 3))
        return {"logits": np.stack([0 * bright + 1.0, bright, 0 * bright - 3.0], axis=1)}

    row = np.zeros((1, 14, 14), np.float32)
    row[:, :7] = 1.0
    found = occlude(row, Box(0, 0, 14, 14), run, thresholds=threshold_logits(spec))
    assert LABELS[found.label_id] == "Mass"  # Effusion is more probable, and not present
    assert found.without_warmest < found.without_coolest


def test_tables_and_folders_tell_every_label() -> None:
    cells = found_cells(SEVERAL)
    assert cells == {"class": "Effusion; Mass", "class_id": "0; 1",
                     "probability": "0.800000; 0.300000"}  # fmt: skip
    rows = [
        {**found_cells(each), "status": status}
        for each, status in ((NOTHING, "ok"), (SEVERAL, "ok"), (SEVERAL, "review"))
    ]
    assert [doubt_first(row) for row in rows] == [(2, 1.0), (2, 0.3), (1, 0.3)]
    measured = measures_of(SEVERAL.to_json())
    assert measured["present"] == "Effusion; Mass"
    assert measured["p_No Finding"] == pytest.approx(0.1)
    assert "label" not in measured


def test_the_report_of_a_batch_counts_every_label_and_says_what_is_doubtful() -> None:
    answers = [each.to_json() for each in (SEVERAL, NOTHING)]
    answers[0]["review"] = True
    summary = summarise(
        Receipt(key="0", id=f"{number}", answer=each) for number, each in enumerate(answers)
    )
    assert summary.labels == {"Effusion": 1, "Mass": 1, "none": 1}
    assert summary.doubtful == [("0", "Effusion with 0.800; Mass with 0.300")]


def test_what_is_watched_counts_every_label_that_is_present() -> None:
    chest = model("chest", labels=LABELS, output=spec_of().output)
    metrics = GatewayMetrics()
    watching = Watching(metrics)
    items = [{"index": place, "status": "ok", **each.to_json()}
             for place, each in enumerate((SEVERAL, NOTHING, SEVERAL))]  # fmt: skip
    payload = json.dumps({"items": items}).encode()
    watching.answered(chest, payload)
    assert watching.of(chest).labels == {"Effusion": 2, "Mass": 2}
    reference = Reference.of("", list(read_answer_items(payload)) * 10)
    assert set(reference.signals) == {f"probability of {label}" for label in LABELS}


def test_two_versions_agree_where_they_find_the_same_labels() -> None:
    both = Comparison(Task.CLASSIFICATION, "1.0", "1.1")
    for other in (SEVERAL, NOTHING):
        both.add(*(json.dumps({"status": "ok", **each.to_json()}).encode()
                   for each in (SEVERAL, other)))  # fmt: skip
    assert both.labels == {("Effusion; Mass", "Effusion; Mass"): 1, ("Effusion; Mass", "none"): 1}
