"""Imported archives are measured as rooms are, by the name that they have in the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image as pillow
from torch import nn

from medserve.imaging.codecs import nifti
from medserve.importing.artifacts import write_onnx
from medserve.importing.golden import as_png
from medserve.importing.package import Named
from tests.importing.picture_networks import (
    LABELS,
    THRESHOLDS,
    a_coloured_frame,
    a_picture,
    own_numbers,
    own_probabilities,
    own_shares,
    the_network,
    write_classifier,
    write_frames,
    write_labels,
    write_numbers,
    write_structures,
)
from tests.tiny_volume_room import VOLUME_CONFIG, known_mask, phantom
from tests.training.guide import guided
from training import evaluate, quality, robustness
from training.core.config import run

pytest.importorskip("onnxscript", reason="needs the import extra")
pytestmark = [pytest.mark.archive, pytest.mark.filterwarnings("ignore")]  # of torch's exporters

_CHANNELS = ("T1", "T2")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an imported classifier, model of frames, and model of two channels."""
    from typer.testing import CliRunner

    from medserve.cli.importing import import_

    folder = tmp_path_factory.mktemp("imported")
    networks = (
        _classifier,
        _findings,
        _photographs,
        _two_channels,
        write_numbers,
        write_structures,
    )
    for described in (network(folder) for network in networks):
        arguments = ["onnx", *map(str, described), "--store", str(folder / "store")]
        outcome = CliRunner().invoke(import_, arguments)
        assert outcome.exit_code == 0, outcome.output
    return folder / "store"


def _classifier(folder: Path) -> list[Any]:
    """Write a classifier that ends in a softmax, as many do."""
    described = write_classifier(folder, the_network(nn.Softmax(1)))
    content = yaml.safe_load((folder / "skin.yaml").read_text())
    content["medserve"]["output"] = {"scores": "probabilities", "review_below": 0.35}
    (folder / "skin.yaml").write_text(yaml.safe_dump(content))
    return described


def _findings(folder: Path) -> list[Any]:
    """Write a classifier of independent labels."""
    return write_labels(folder, name="findings")


def _photographs(folder: Path) -> list[Any]:
    """Write a network of frames that are no ultrasound."""
    described = write_frames(folder)
    content = yaml.safe_load((folder / "glow.yaml").read_text())
    content["medserve"]["frame"]["ultrasound"] = False
    (folder / "glow.yaml").write_text(yaml.safe_dump(content))
    return described


def _two_channels(folder: Path) -> list[Any]:
    """Write what calls the mean of two images dim or bright, as `tests.tiny_volume_room` does."""
    network = nn.Conv3d(2, 3, 1)
    with torch.no_grad():
        network.weight.copy_(
            torch.tensor([0.0, 24, 48]).reshape(3, 1, 1, 1, 1).expand(3, 2, 1, 1, 1)
        )
        network.bias.copy_(torch.tensor([0.0, -16, -48]))  # type: ignore[union-attr]
    file = folder / "pair.onnx"
    write_onnx(Named(network).eval(), file, {"image": torch.rand(2, 2, 16, 16, 16)}, ("scores",))
    own = {key: value for key, value in VOLUME_CONFIG["medserve"].items() if key != "engine"}
    window = own["volume"]["normalisation"]
    own |= {
        "name": "pair",
        "input": own["input"] | {"channels": 2},
        "volume": own["volume"] | {"channels": {name: window for name in _CHANNELS}},
    }
    del own["volume"]["normalisation"]
    description = folder / "pair.yaml"
    description.write_text(yaml.safe_dump(dict(VOLUME_CONFIG) | {"medserve": own}))
    return [file, "--spec", description]


@pytest.fixture
def measured(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Measures a model of the store and returns what was written."""
    monkeypatch.setenv("MEDSERVE_STORE", str(store))

    def measure(model: object, data: Path, *flags: str) -> dict[str, Any]:
        out = tmp_path / "evaluation"
        small = ("--data-dir", data, "--out", out, "--threads", 1, *flags)
        _, *arguments = guided("training.evaluate liver", *small)
        assert run(evaluate.main, evaluate.EvaluateConfig, [str(model), *arguments]) == 0
        content: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        return content

    return measure


@pytest.fixture
def spoilt(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Spoils the inputs of a model of the store and returns the rows by kind and strength."""
    monkeypatch.setenv("MEDSERVE_STORE", str(store))

    def spoil(model: str, data: Path) -> dict[tuple[str, str], dict[str, Any]]:
        out = tmp_path / "robustness"
        arguments = [model, "--data-dir", str(data), "--out-dir", str(out), "--threads", "1"]
        assert run(robustness.main, robustness.RobustnessConfig, arguments) == 2  # not held out
        arguments += ["--no-held-out", "--n", "2"]
        assert run(robustness.main, robustness.RobustnessConfig, [*arguments, "--install"]) == 2
        assert run(robustness.main, robustness.RobustnessConfig, arguments) == 0
        content = json.loads((out / "robustness.json").read_text(encoding="utf-8"))
        return {(row["kind"], row["strength"]): row for row in content["rows"]}

    return spoil


def _pictures(folder: Path, count: int = 4) -> Path:
    """Write pictures below the classes that the network itself tells, and one below another."""
    for seed in range(count):
        picture = a_picture(seed)
        found = int(np.argmax(own_probabilities(picture)))
        label = "abc"[(found + (seed == 0)) % 3]
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"{seed}.png").write_bytes(picture)
    return folder


def test_a_classifier_that_tells_no_novelty_is_evaluated(
    measured: Any, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _pictures(tmp_path / "data")
    found = measured("skin", data)
    assert (found["model"], found["n"], found["errors"]) == ("skin", 4, 1)
    assert found["novelty"] is None
    shares = [max(own_probabilities(a_picture(seed))) for seed in range(4)]
    assert found["review"]["images"] == sum(share < 0.35 for share in shares)
    page = (tmp_path / "evaluation/report.html").read_text(encoding="utf-8")
    assert "ovelty" not in page
    assert found == measured(store / "skin-1.0.mar", data)
    shown = np.asarray(pillow.open(tmp_path / "evaluation/errors/000.png"), dtype=np.float64)
    own = np.asarray(pillow.open(next(data.rglob("0.png"))), dtype=np.float64)
    np.testing.assert_allclose(shown.mean(axis=(0, 1)), own.mean(axis=(0, 1)), atol=2)
    flags = ["skin", "--data-dir", str(data), "--foreign-dir", str(data)]
    assert run(evaluate.main, evaluate.EvaluateConfig, flags) == 2
    assert "no --foreign-dir: skin does not tell" in capsys.readouterr().err


def test_a_classifier_that_tells_no_novelty_is_spoilt(spoilt: Any, tmp_path: Path) -> None:
    rows = spoilt("skin", _pictures(tmp_path / "data", count=2))
    assert rows["none", ""]["wrong"] == 1
    assert len(rows) == len(robustness.CHANGES)


def _labelled(folder: Path, count: int = 12) -> tuple[Path, list[list[float]], list[list[str]]]:
    """Write pictures with a table of their colours, of which some are not known or wrong."""
    folder.mkdir()
    shares = []
    for seed in range(count):
        (folder / f"{seed}.png").write_bytes(a_picture(seed))
        shares.append(own_shares(a_picture(seed)))
    middle = np.median(shares, axis=0)
    rows = [[str(int(each)) for each in np.array(share) >= middle] for share in shares]
    rows[int(np.argmax([each[0] for each in shares]))][0] = "0"
    rows[1][1] = ""
    lines = [",".join(["name", *LABELS])]
    lines += [",".join([f"{seed}.png", *row]) for seed, row in enumerate(rows)]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder, shares, rows


def test_each_of_several_labels_is_judged_by_itself(measured: Any, tmp_path: Path) -> None:
    data, shares, rows = _labelled(tmp_path / "data")
    found = measured("findings", data)
    assert found["n"] == 12
    for place, label in enumerate(LABELS):
        own = found["labels"][label]
        known = [(row[place] == "1", share[place]) for row, share in zip(rows, shares, strict=True)
                 if row[place]]  # fmt: skip
        positives = [share for truth, share in known if truth]
        others = [share for truth, share in known if not truth]
        assert (own["n"], own["positives"]) == (len(known), len(positives))
        wins = sum((a > b) + (a == b) / 2 for a in positives for b in others)
        area = wins / (len(positives) * len(others))
        assert own["auroc"] == pytest.approx(area, abs=1e-4)
        hits = sum(share >= THRESHOLDS[place] for share in positives)
        assert own["sensitivity"] == pytest.approx(hits / len(positives), abs=1e-4)
    areas = [found["labels"][label]["auroc"] for label in LABELS]
    assert areas[0] < 1 == areas[1] == areas[2]  # one reference of the first is wrong
    page = (tmp_path / "evaluation/report.html").read_text(encoding="utf-8")
    assert page.count("<td>") >= 30
    pixels = np.stack([np.asarray(pillow.open(data / f"{seed}.png").resize((50, 70)))
                       for seed in range(12)])  # fmt: skip
    stored = np.array([[int(each or 0) for each in row] for row in rows])
    np.savez(tmp_path / "chest.npz", test_images=pixels, test_labels=stored)
    assert measured("findings", tmp_path / "chest.npz")["n"] == 12


def test_several_labels_are_spoilt_and_scored_by_the_share_told_rightly(
    spoilt: Any, measured: Any, tmp_path: Path
) -> None:
    data, shares, rows = _labelled(tmp_path / "data", count=2)
    unchanged = spoilt("findings", data)["none", ""]
    right = [
        [(share[place] >= THRESHOLDS[place]) == (row[place] == "1")
         for place in range(len(LABELS)) if row[place]]
        for share, row in zip(shares, rows, strict=True)
    ]  # fmt: skip
    assert unchanged["score"] == pytest.approx(np.mean([np.mean(each) for each in right]), abs=1e-3)
    assert unchanged["wrong"] == sum(not all(each) for each in right)
    said = (tmp_path / "robustness/robustness.md").read_text(encoding="utf-8")
    assert "the share of labels told rightly" in said


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace("Green", "Verdant"), "expected a column 'Green'"),
        (lambda text: text.replace("3.png,", "../3.png,"), "expected an image below"),
        (lambda text: text.replace("\n2.png,", "\n2.png,maybe,"), "expected 1, 0 or nothing"),
        (lambda text: text.replace("11.png", "10.png"), "each image once"),
        (lambda text: text.splitlines()[0], "expected images, got none"),
    ],
)
def test_a_table_of_labels_that_says_something_else_is_refused(
    change: Callable[[str], str],
    told: str,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MEDSERVE_STORE", str(store))
    data, _, _ = _labelled(tmp_path / "data")
    table = data / "labels.csv"
    table.write_text(change(table.read_text(encoding="utf-8")), encoding="utf-8")
    flags = ["findings", "--data-dir", str(data), "--out", str(tmp_path / "out")]
    assert run(evaluate.main, evaluate.EvaluateConfig, flags) == 2
    assert told in capsys.readouterr().err


def _aged(folder: Path) -> Path:
    """Write pictures of one colour with a table of what was measured in them."""
    folder.mkdir()
    lines = ["name,subject,bone age,ossified"]
    for number, (red, green) in enumerate([(0, 51), (255, 102), (204, 153), (102, 204)]):
        path = folder / f"{number}.png"
        path.write_bytes(as_png(np.broadcast_to(np.array([red, green, 0]), (60, 50, 3))))
        age, ossified = own_numbers(path.read_bytes())
        known = "" if number == 3 else ossified  # one was not measured
        lines.append(f"{number}.png,{number // 2},{age + (-2, 4)[number % 2]},{known}")
    (folder / "values.csv").write_text("\n".join(lines))
    return folder


def test_numbers_are_evaluated_by_their_agreement_with_measured_ones(
    measured: Any, tmp_path: Path
) -> None:
    found = measured("hand", _aged(tmp_path / "data"))
    assert (found["n"], found["subjects"], found["skipped"]) == (4, 2, 0)
    age, ossified = found["values"]["bone age"], found["values"]["ossified"]
    assert (age["n"], ossified["n"]) == (4, 3)
    assert age["mean_absolute_error"] == pytest.approx(3, abs=1e-3)  # told - measured: 2, -4
    assert age["bias"] == pytest.approx(-1, abs=1e-3)
    assert age["limits_of_agreement"][1] == pytest.approx(-1 + 1.96 * 12**0.5, abs=1e-2)
    assert ossified["mean_absolute_error"] == pytest.approx(0, abs=1e-3)
    assert ossified["pearson"] == pytest.approx(1, abs=1e-6)
    page = (tmp_path / "evaluation/report.html").read_text(encoding="utf-8")
    assert "bone age (months)" in page
    assert (tmp_path / "evaluation/value_1.png").is_file()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace("ossified", "grown"), "expected a column 'ossified'"),
        (lambda text: text.replace("\n3.png", "\n4.png"), "expected an image below"),
        (lambda text: text.replace(",1,", ",1,old"), "expected a number or nothing"),
        (lambda text: text.replace(",1,", ",1,inf "), "expected a number or nothing"),
        (lambda text: text.replace("2.png,1,", '2.png,1,"1,000",'), "expected a number or nothing"),
    ],
)
def test_a_table_of_numbers_that_says_something_else_is_refused(
    change: Callable[[str], str],
    told: str,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MEDSERVE_STORE", str(store))
    table = _aged(tmp_path / "data") / "values.csv"
    table.write_text(change(table.read_text(encoding="utf-8")), encoding="utf-8")
    flags = ["hand", "--data-dir", str(table.parent), "--out", str(tmp_path / "out")]
    assert run(evaluate.main, evaluate.EvaluateConfig, flags) == 2
    assert told in capsys.readouterr().err
    assert run(robustness.main, robustness.RobustnessConfig, [*flags[:3], "--no-held-out"]) == 2
    assert "expected a model that classifies or segments" in capsys.readouterr().err


def _frames(folder: Path) -> Path:
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(2):
        frame = np.zeros((60, 90), np.uint8)
        frame[10 + 5 * number : 40, 20:70] = 220
        (folder / f"images/{number}.png").write_bytes(as_png(frame))
        (folder / f"masks/{number}.png").write_bytes(as_png(frame))
    return folder


def test_a_model_of_frames_is_evaluated_and_spoilt(
    measured: Any, spoilt: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _frames(tmp_path / "data")
    found = measured("glow", data)
    assert (found["n"], found["dice"] > 0.97) == (2, True)
    flags = ["glow", "--data-dir", str(data)]
    assert run(quality.main, quality.QualityConfig, flags) == 2  # nobody split its data
    assert "models that were trained here" in capsys.readouterr().err
    unchanged = spoilt("glow", data)["none", ""]
    assert unchanged["score"] == pytest.approx(found["dice"], abs=1e-3)
    assert unchanged["flagged"] == 0  # nothing is told of what is no ultrasound


def _coloured(folder: Path) -> Path:
    """Write two frames whose masks hold label ids; in the second one green is missing."""
    content, ids = a_coloured_frame()
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(2):
        reference = np.where(ids == 2, 0, ids) if number else ids
        (folder / f"images/{number}.png").write_bytes(content)
        (folder / f"masks/{number}.png").write_bytes(as_png(reference))
    return folder


def test_each_of_several_structures_of_frames_is_evaluated_by_itself(
    measured: Any, spoilt: Any, tmp_path: Path
) -> None:
    data = _coloured(tmp_path / "data")
    found = measured("colours", data)
    own = found["structures"]
    assert list(own) == ["red", "green", "blue"]
    assert [each["n"] for each in own.values()] == [2, 1, 2]
    assert [each["false_positive_rate"] for each in own.values()] == [None, 1.0, None]
    assert min(each["dice"] for each in own.values()) > 0.9
    assert (found["n"], found["n_empty"], len(found["frames"])) == (5, 1, 6)
    assert found["dice"] == pytest.approx(
        sum(each["n"] * each["dice"] for each in own.values()) / 5, abs=1e-3
    )
    page = (tmp_path / "evaluation/report.html").read_text(encoding="utf-8")
    assert "<td>green</td>" in page
    unchanged = spoilt("colours", data)["none", ""]
    assert 0.7 < unchanged["score"] < 0.95  # a third of one frame is wrong


def test_a_reference_with_an_id_of_no_label_is_refused(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDSERVE_STORE", str(store))
    data = _coloured(tmp_path / "data")
    (data / "masks/1.png").write_bytes(as_png(np.full((80, 64), 255, np.uint8)))
    flags = ["colours", "--data-dir", str(data), "--out", str(tmp_path / "out")]
    assert run(evaluate.main, evaluate.EvaluateConfig, flags) == 2
    assert "expected ids of 4 labels, 0 to 3, got 255" in capsys.readouterr().err


def test_a_model_of_several_channels_is_evaluated_and_spoilt(
    measured: Any, spoilt: Any, tmp_path: Path
) -> None:
    data, volume = tmp_path / "data", phantom()
    for kind in ("imagesTr", "labelsTr"):
        (data / kind).mkdir(parents=True)
    for number in range(len(_CHANNELS)):
        (data / f"imagesTr/case_{number:04d}.nii.gz").write_bytes(nifti.encode(volume))
    mask = known_mask(volume)
    (data / "labelsTr/case.nii.gz").write_bytes(nifti.encode(type(volume)(mask, volume.geometry)))
    assert measured("pair", data)["dice"]["mean"] == 1.0
    rows = spoilt("pair", data)
    assert rows["none", ""]["score"] == 1.0
    assert rows["turn", "90°"]["score"] > 0.9  # both channels turn
    assert rows["noise", "30 %"]["score"] < 0.9


def test_what_neither_room_nor_store_has_is_refused_by_the_names_of_both(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDSERVE_STORE", str(store))
    assert run(evaluate.main, evaluate.EvaluateConfig, ["pairs", "--data-dir", "."]) == 2
    told = capsys.readouterr().err
    assert "mednist" in told
    assert "glow, hand, pair, skin" in told
