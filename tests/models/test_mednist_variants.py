"""The variants of the MedNIST room as shipped: artifacts, cards, and the table of versions."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import models
from medserve.imaging.codecs import sniff
from medserve.inference.engines import load_engine
from medserve.inference.fit import fit_grey
from medserve.spec import EngineName, Precision
from training import comparison

OWN = models.spec("mednist")
ROOM = models.room("mednist")
TARGETS = {"mednet": 0.995, "svm": 0.9985}  # accuracy on the test part

pytestmark = pytest.mark.parametrize("variant", sorted(TARGETS))


def weights(variant: str) -> Path:
    return models.room("mednist", variant) / "weights"


def test_a_variant_is_the_same_model_in_another_version(variant: str) -> None:
    spec = models.spec("mednist", variant)
    assert spec.version == f"{OWN.version}-{variant}"
    assert (spec.name, spec.task, spec.labels, spec.input) == (
        OWN.name, OWN.task, OWN.labels, OWN.input,
    )  # fmt: skip


def test_its_figures_reach_the_target(variant: str) -> None:
    metrics = json.loads((weights(variant) / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["n"] == 5323
    assert metrics["accuracy"] >= TARGETS[variant]


@pytest.mark.parametrize("form", ["served", "torchscript"])
def test_every_form_reproduces_the_golden_output(variant: str, form: str) -> None:
    served = models.spec("mednist", variant).engine.name
    name = served if form == "served" else EngineName.TORCHSCRIPT
    golden = np.load(weights(variant) / "golden_output.npz", allow_pickle=False)
    picture = (weights(variant) / "golden_input.png").read_bytes()
    plane = fit_grey(sniff.decode(picture, OWN.input), (64, 64))[np.newaxis]
    engine = load_engine(name, weights(variant), precision=Precision.F32, threads=1)
    for key, value in engine.run(plane).items():
        np.testing.assert_allclose(value, golden[key], rtol=0, atol=golden["tolerance"])


@pytest.mark.parametrize("label", OWN.labels)
def test_each_example_of_the_room_is_known(variant: str, label: str) -> None:
    name = models.spec("mednist", variant).engine.name
    engine = load_engine(name, weights(variant), precision=Precision.F32, threads=1)
    image = sniff.decode((ROOM / "examples" / f"{label}.png").read_bytes(), OWN.input)
    logits = engine.run(fit_grey(image, (64, 64))[np.newaxis])["logits"]
    assert OWN.labels[int(logits.argmax())] == label


def test_the_comparison_is_of_the_artifacts_that_are_shipped(variant: str) -> None:
    content = json.loads((ROOM / "comparison.json").read_text(encoding="utf-8"))
    rows = {row["version"]: row for row in content["versions"]}
    for name in ("", variant):
        onnx = models.room("mednist", name) / "weights" / "model.onnx"
        row = rows[models.spec("mednist", name).version]
        assert row["artifact_sha256"] == hashlib.sha256(onnx.read_bytes()).hexdigest()
    table = (ROOM / "comparison.md").read_text(encoding="utf-8")
    assert table == comparison.as_markdown(content)


def test_its_log_is_that_of_its_training(variant: str) -> None:
    name = {"mednet": "training.csv", "svm": "search.csv"}[variant]
    with (weights(variant) / name).open(newline="", encoding="utf-8") as stream:
        logged = list(csv.DictReader(stream))
    trained = json.loads((weights(variant) / "metrics.json").read_text(encoding="utf-8"))[
        "training"
    ]
    if variant == "svm":
        best = trained["search"]["best"]
        assert (logged[0]["kernel"], float(logged[0]["C"])) == (
            best["svc__kernel"], float(best["svc__C"]),
        )  # fmt: skip
        assert len(logged) == 12
    else:
        errors = {int(row["epoch"]): int(row["validation_errors"]) for row in logged}
        assert errors[trained["best_epoch"]] == min(errors.values()) == trained["validation_errors"]
        assert logged[-1]["epochs_apart"] == "3"  # it ended by the rule
