"""Classifiers of pictures in files of ONNX and TorchScript, with a description."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as pillow
from torch import nn

from handlers.classification import ClassificationHandler
from medserve.errors import ConfigError
from medserve.imaging import Image
from medserve.importing.golden import as_png
from medserve.inference.fit import fit_image, place_image
from medserve.inference.scores import as_logits, probabilities
from medserve.spec import InputSpec, ModelSpec, OutputSpec, Proportions
from medserve.spec.volumes import ScoreKind
from tests.cli.conftest import medserve as medserve
from tests.handlers.worker import answer, context
from tests.importing.picture_networks import (
    DESCRIPTION,
    LABELS,
    THRESHOLDS,
    a_coloured_frame,
    a_picture,
    label_network,
    own_probabilities,
    own_shares,
    the_network,
    write_classifier,
    write_frames,
    write_labels,
    write_structures,
)
from tests.importing.test_described import parsed

onnx = pytest.importorskip("onnx", reason="needs the import extra")
pytest.importorskip("onnxscript", reason="needs the import extra")
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's exporters


class Untrained(nn.Module):
    """Gives one half for the second of three labels, whatever the image."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (N, 3) -> logits (N, 3)."""
        return logits * torch.tensor([1.0, 0.0, 1.0])


def spec_of(**changes: object) -> ModelSpec:
    own = DESCRIPTION["medserve"]
    return ModelSpec.from_mapping(
        DESCRIPTION | {"medserve": own | {"input": own["input"] | changes}}
    )


@pytest.mark.archive
@pytest.mark.parametrize("kind", ["onnx", "torchscript"])
def test_a_described_classifier_becomes_an_archive_that_answers_as_its_own_tool(
    tmp_path: Path, medserve: Any, kind: str
) -> None:
    file, *described = write_classifier(tmp_path)
    if kind == "torchscript":
        file = tmp_path / "skin.pt"
        torch.jit.save(torch.jit.trace(the_network(), torch.rand(2, 3, 40, 32)), file)  # type: ignore[no-untyped-call]
    store = ("--store", tmp_path / "store")
    plan = medserve("import", kind, file, *described, *store, "--dry-run")
    assert "40 x 32" in plan.out
    assert not (tmp_path / "store").exists()
    run = medserve("import", kind, file, *described, *store)
    assert run.code == 0, run.err
    assert [parsed(line) for line in re.findall("`(medserve .*?)`", run.out)] == [
        "serve",
        "predict",
    ]
    assert "<img" in (tmp_path / "store/skin-1.0.report.html").read_text()
    pictures = [tmp_path / f"{seed}.png" for seed in range(6)]
    for seed, path in enumerate(pictures):
        path.write_bytes(a_picture(seed))
    run = medserve("try", tmp_path / "store/skin-1.0.mar", *pictures)
    assert run.code == 0, run.err
    for line, path in zip(run.out.splitlines(), pictures, strict=True):
        own = own_probabilities(path.read_bytes())
        _, label, probability = line.split()
        assert label == "abc"[int(np.argmax(own))]
        assert float(probability) == pytest.approx(max(own), abs=5e-3)


@pytest.mark.archive
@pytest.mark.parametrize(
    ("kind", "scores"), [("onnx", "logits"), ("onnx", "probabilities"), ("torchscript", "logits")]
)
def test_a_described_network_of_several_labels_says_which_are_present(
    tmp_path: Path, medserve: Any, kind: str, scores: str
) -> None:
    layers = [nn.Sigmoid()] if scores == "probabilities" else []
    file, *described = write_labels(tmp_path, *layers, scores=scores, review_below=0.9)
    if kind == "torchscript":
        file = tmp_path / "skin.pt"
        torch.jit.save(torch.jit.trace(label_network(), torch.rand(2, 3, 40, 32)), file)  # type: ignore[no-untyped-call]
    run = medserve("import", kind, file, *described, "--store", tmp_path / "store")
    assert run.code == 0, run.err
    assert "of the labels of the pictures" in run.out
    archive = tmp_path / "store/colours-1.0.mar"
    with zipfile.ZipFile(archive) as opened:
        assert {"golden_input.png", "golden_output.npz"} <= set(opened.namelist())
        assert "| 2 | Blue | 0.6 |" in opened.read("MODEL_CARD.md").decode()
    pictures = [tmp_path / f"{seed}.png" for seed in range(12)]
    random = np.random.default_rng(0)
    for path in pictures:
        colour = random.integers(0, 256, 3) * np.ones((70, 50, 1))
        path.write_bytes(as_png((colour + random.normal(0, 20, (70, 50, 3))).clip(0, 255)))
    run = medserve("try", archive, *pictures)
    assert run.code == 0, run.err
    counts = set()
    for line, path in zip(run.out.splitlines(), pictures, strict=True):
        told = line.partition(": ")[2].removesuffix(", look")
        found = dict(each.split() for each in told.split("; ")) if told != "none" else {}
        own = dict(zip(LABELS, own_shares(path.read_bytes()), strict=True))
        wanted = [
            each for each, least in zip(LABELS, THRESHOLDS, strict=True) if own[each] >= least
        ]
        assert list(found) == wanted
        for label, share in found.items():
            assert float(share) == pytest.approx(own[label], abs=0.02)  # its tool rounds to 8 bits
        assert line.endswith(", look") == any(float(share) < 0.9 for share in found.values())
        counts.add(len(found))
    assert {0, 1, 2} <= counts


@pytest.mark.archive
def test_an_explanation_of_several_labels_names_the_one_that_it_explains(
    tmp_path: Path, medserve: Any
) -> None:
    run = medserve("import", "onnx", *write_labels(tmp_path), "--store", tmp_path / "store")
    assert run.code == 0, run.err
    folder = tmp_path / "unpacked"
    with zipfile.ZipFile(tmp_path / "store/colours-1.0.mar") as opened:
        opened.extractall(folder)
    handler = ClassificationHandler()
    handler.initialize(context(folder, yaml.safe_load((folder / "model-config.yaml").read_text())))
    blue = np.zeros((60, 60, 3), np.uint8)
    blue[..., 2] = 255
    found = answer(handler, data=as_png(blue), params=b'{"explain": true, "top_k": 2}')
    assert (found["present"], found["explanation"]["label"]) == (["Blue"], "Blue")
    assert "label" not in found
    assert found["top"][0]["label"] == "Blue"
    assert len(found["top"]) == 2


@pytest.mark.archive
def test_a_described_network_of_frames_becomes_an_archive_that_finds_what_it_finds(
    tmp_path: Path, medserve: Any
) -> None:
    arguments = write_frames(tmp_path)
    run = medserve("import", "onnx", *arguments, "--store", tmp_path / "store")
    assert run.code == 0, run.err
    assert "of the pixels" in run.out
    picture = tmp_path / "frame.png"
    bright = np.zeros((60, 90), np.uint8)
    bright[10:30, 20:70] = 220
    bright[40:50, 5:15] = 90
    picture.write_bytes(as_png(bright))
    archive, out = tmp_path / "store/glow-1.0.mar", tmp_path / "out"
    run = medserve("try", archive, picture, "--out", out)
    assert run.code == 0, run.err
    mask = np.asarray(pillow.open(out / "frame_mask.png")) > 0
    assert mask.shape == bright.shape
    wrong = mask != (bright > 128)
    assert wrong.sum() <= 2 * (20 + 50) * 2  # its edge, which lies between pixels of the network
    assert (out / "frame_overlay.png").is_file()
    assert "--overwrite" in medserve("try", archive, picture, "--out", out).err
    manifest = medserve("inspect", archive).out
    assert "golden_input.png" in manifest


@pytest.mark.archive
@pytest.mark.parametrize(
    "frame",
    [
        {},
        {"activation": "softmax"},
        {"scores": "probabilities"},
        {"activation": "softmax", "scores": "probabilities"},
    ],
    ids=str,
)
def test_a_network_of_several_structures_in_colour_finds_each_of_them(
    frame: dict[str, str], tmp_path: Path, medserve: Any
) -> None:
    arguments = write_structures(tmp_path, **frame)
    run = medserve("import", "onnx", *arguments, "--store", tmp_path / "store")
    assert run.code == 0, run.err
    content, ids = a_coloured_frame()
    (tmp_path / "frame.png").write_bytes(content)
    archive, out = tmp_path / "store/colours-1.0.mar", tmp_path / "out"
    run = medserve("try", archive, tmp_path / "frame.png", "--out", out)
    assert run.code == 0, run.err
    assert re.search(r"red \d+, green \d+, blue \d+", run.out)
    mask = np.asarray(pillow.open(out / "frame_mask.png"))
    assert (mask != ids).mean() < 0.05  # edges
    assert set(np.unique(mask)) == {0, 1, 2, 3}


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("layers", "frame", "told"),
    [
        ([nn.Sigmoid()], {}, "set frame.scores to probabilities"),
        ([], {"scores": "probabilities"}, "set frame.scores to logits"),
        ([], {"activation": "softmax"}, "the description contradicts the network"),
    ],
)
def test_scores_of_frames_are_as_described(
    layers: list[nn.Module], frame: dict[str, str], told: str, tmp_path: Path, medserve: Any
) -> None:
    arguments = write_frames(tmp_path, *layers)
    path = arguments[-1]
    described = yaml.safe_load(path.read_text())
    described["medserve"]["frame"] |= frame
    path.write_text(yaml.safe_dump(described))
    run = medserve("import", "onnx", *arguments, "--store", tmp_path / "store")
    assert (run.code, told in run.err) == (2, True), run.err
    assert not list((tmp_path / "store").glob("*"))


@pytest.mark.archive
@pytest.mark.parametrize("scores", ["logits", "probabilities"])
def test_an_explanation_of_probabilities_is_that_of_their_logits(
    tmp_path: Path, medserve: Any, scores: str
) -> None:
    layers = [nn.Softmax(1)] if scores == "probabilities" else []
    arguments = write_classifier(tmp_path, the_network(*layers))
    _described(tmp_path, output={"scores": scores})
    run = medserve("import", "onnx", *arguments, "--store", tmp_path / "store")
    assert run.code == 0, run.err
    folder = tmp_path / "unpacked"
    with zipfile.ZipFile(tmp_path / "store/skin-1.0.mar") as opened:
        opened.extractall(folder)
    handler = ClassificationHandler()
    handler.initialize(context(folder, yaml.safe_load((folder / "model-config.yaml").read_text())))
    plain = answer(handler, data=a_picture(2))
    explained = answer(handler, data=a_picture(2), params=b'{"explain": true}')
    assert explained["probabilities"] == pytest.approx(plain["probabilities"], abs=1e-5)
    assert explained["label"] == explained["explanation"]["label"] == plain["label"]
    assert explained["explanation"]["without_warmest"] < plain["probability"]


@pytest.mark.archive
def test_pictures_of_the_user_are_compared_and_the_first_one_travels(
    tmp_path: Path, medserve: Any
) -> None:
    pictures = [tmp_path / "first.png", tmp_path / "second.png"]
    for seed, path in enumerate(pictures):
        path.write_bytes(a_picture(seed))
    given = [argument for path in pictures for argument in ("--example", path)]
    arguments = write_classifier(tmp_path)
    run = medserve("import", "onnx", *arguments, *given, "--store", tmp_path / "store")
    assert run.code == 0, run.err
    assert "golden_input.png" in medserve("inspect", tmp_path / "store/skin-1.0.mar").out
    assert "2 given pictures" in (tmp_path / "store/skin-1.0.report.html").read_text()


def _fixed(folder: Path) -> None:
    path = folder / "skin.onnx"
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save_model(model, path)


def _described(folder: Path, **own: object) -> None:
    content = yaml.safe_load((folder / "skin.yaml").read_text())
    content["medserve"] |= own
    (folder / "skin.yaml").write_text(yaml.safe_dump(content))


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("layers", "change", "told"),
    [
        ([nn.Softmax(1)], lambda _: None, "set output.scores to probabilities"),
        ([], lambda folder: _described(folder, output={"scores": "probabilities"}),
         "set output.scores to logits"),
        ([nn.Sigmoid()], lambda folder: _described(folder, output={"scores": "probabilities"}),
         "labels do not exclude each other"),
        ([], lambda folder: _described(folder, labels=["a", "b"]),
         "scores of shape (16, 2) for 16 pictures, got (16, 3)"),
        ([], _fixed, "with a free first axis"),
    ],
)  # fmt: skip
def test_what_contradicts_the_description_is_refused_and_nothing_is_left(
    tmp_path: Path, medserve: Any, layers: list[nn.Module], change: Any, told: str
) -> None:
    arguments = write_classifier(tmp_path, the_network(*layers))
    change(tmp_path)
    run = medserve("import", "onnx", *arguments, "--store", tmp_path / "store")
    assert run.code == 2
    assert told in run.err
    assert not list((tmp_path / "store").glob("*"))


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("layers", "output", "told"),
    [
        ([nn.Sigmoid()], {}, "set output.scores to probabilities"),
        ([], {"scores": "probabilities"}, "set output.scores to logits"),
        ([nn.Softmax(1)], {"scores": "probabilities"}, "set output.classes to exclusive"),
        ([nn.Sigmoid()], {"classes": "exclusive", "threshold": None},
         "set output.classes to independent"),
        ([Untrained()], {}, "probabilities of 'Green' that differ between pictures, got 0.5"),
    ],
)  # fmt: skip
def test_scores_that_are_no_independent_labels_are_refused_and_nothing_is_left(
    tmp_path: Path, medserve: Any, layers: list[nn.Module], output: dict[str, Any], told: str
) -> None:
    arguments = write_labels(tmp_path, *layers, **output)
    run = medserve("import", "onnx", *arguments, "--store", tmp_path / "store")
    assert run.code == 2
    assert told in run.err
    assert not list((tmp_path / "store").glob("*"))


@pytest.mark.cpu
def test_a_script_that_cannot_be_exported_is_refused_in_one_sentence(
    tmp_path: Path, medserve: Any
) -> None:
    _, *described = write_classifier(tmp_path)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(147, 3)).eval()
    traced = torch.jit.trace(network, torch.rand(2, 3, 40, 32))  # type: ignore[no-untyped-call]
    traced.save(str(tmp_path / "skin.pt"))
    arguments = (tmp_path / "skin.pt", *described, "--store", tmp_path / "store")
    run = medserve("import", "torchscript", *arguments)
    assert run.code == 2
    assert "import the ONNX file" in run.err
    assert "Traceback" not in run.err


@pytest.mark.parametrize("task", ["classification", "regression", "frames"])
def test_the_description_that_init_prints_is_a_good_one(
    tmp_path: Path, medserve: Any, task: str
) -> None:
    (tmp_path / "spec.yaml").write_text(medserve("init", "--task", task).out)
    run = medserve("spec", "check", tmp_path / "spec.yaml")
    assert (run.code, run.err) == (0, "")
    assert f"my_model 1.0, {task}: " in run.out
    assert (
        "volumes, classification, regression, frames"
        in medserve("init", "--task", "generation").err
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mean": [0.5]}, "each of 3 channels"),
        ({"mean": []}, "each of 3 channels"),
        ({"deviation": [1, 1, 0]}, "> 0"),
        ({"proportions": "torn"}, "kept, stretched"),
        ({"middle": 0.875}, "input.middle with input.proportions cropped"),
        ({"proportions": "cropped", "middle": 1.5}, "<= 1"),
    ],
)
def test_a_preprocessing_that_cannot_be_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        spec_of(**changes)


@given(
    height=st.integers(8, 90),
    width=st.integers(8, 90),
    aspect=st.sampled_from([1.0, 0.5, 1.7]),
)
@settings(max_examples=40, deadline=None)
def test_a_stretched_image_fills_the_plane_and_a_kept_one_its_own_share(
    height: int, width: int, aspect: float
) -> None:
    image = Image(np.full((height, width), 0.5, np.float32), aspect)
    spec = InputSpec(
        kinds=(), size=(40, 32), proportions=Proportions.STRETCHED, mean=(0.25,), deviation=(0.5,)
    )
    box = place_image(image, spec)
    assert (box.top, box.left, box.height, box.width) == (0, 0, 40, 32)
    np.testing.assert_allclose(fit_image(image, spec), np.full((1, 40, 32), 0.5), atol=1e-6)


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=9))
def test_probabilities_are_the_same_of_logits_and_of_their_softmax(logits: list[float]) -> None:
    scores = np.array(logits)
    shares = probabilities(scores, OutputSpec())
    assert shares.sum() == pytest.approx(1)
    told = OutputSpec(scores=ScoreKind.PROBABILITIES)
    again = probabilities(as_logits(shares, told), told)
    np.testing.assert_allclose(again, shares, atol=1e-12)
