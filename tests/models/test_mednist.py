"""The shipped MedNIST classifier: what its card promises, checked on what is committed."""

from __future__ import annotations

import hashlib
import json
import random
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

import models
from medserve.imaging.codecs import sniff
from medserve.inference.engines import load_engine
from medserve.inference.fit import fit_grey
from medserve.spec import EngineName, Precision
from models.mednist.network import MednistNet
from training import evaluate
from training.core.config import run

ROOM = models.room("mednist")
SPEC = models.spec("mednist")
WEIGHTS = ROOM / "weights"
LARGEST_ARTIFACT = 1_000_000  # bytes
PER_CLASS = 200  # images a class of the sample


def read(path: Path) -> npt.NDArray[np.float32]:
    """A picture as serving brings it to the network: (1, 64, 64)."""
    return fit_grey(sniff.decode(path.read_bytes(), SPEC.input), (64, 64))


def answer(
    tensor: npt.NDArray[np.float32], name: EngineName = EngineName.ONNXRUNTIME
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Probabilities (N, K) and novelty (N,) of the shipped artifact."""
    outputs = load_engine(name, WEIGHTS, precision=Precision.F32, threads=1).run(tensor)
    logits = torch.from_numpy(outputs["logits"])
    return logits.softmax(dim=1).numpy(), outputs["novelty"]


def test_labels_are_in_the_order_of_the_archive_not_of_sorted() -> None:
    assert SPEC.labels == ("AbdomenCT", "BreastMRI", "ChestCT", "CXR", "Hand", "HeadCT")


def test_both_artifacts_stay_below_one_megabyte() -> None:
    for name in ("model.onnx", "model.pt"):
        assert (WEIGHTS / name).stat().st_size <= LARGEST_ARTIFACT


def test_the_network_halves_any_side_that_eight_divides() -> None:
    maps = MednistNet(width=4).eval().features(torch.rand(2, 1, 48, 80))
    assert [tuple(each.shape) for each in maps] == [(2, 4, 24, 40), (2, 8, 12, 20), (2, 16, 6, 10)]


def test_the_card_counts_the_parameters() -> None:
    count = sum(each.numel() for each in MednistNet().parameters())
    assert f"{count:,} parameters" in (ROOM / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list(EngineName))
def test_every_engine_reproduces_the_golden_output(name: EngineName) -> None:
    golden = np.load(WEIGHTS / "golden_output.npz", allow_pickle=False)
    engine = load_engine(name, WEIGHTS, precision=Precision.F32, threads=1)
    outputs = engine.run(read(WEIGHTS / "golden_input.png")[np.newaxis])
    for key in ("logits", "novelty"):
        np.testing.assert_allclose(outputs[key], golden[key], rtol=0, atol=golden["tolerance"])


@pytest.mark.parametrize("label", SPEC.labels)
def test_each_example_is_known_for_sure_and_is_not_novel(label: str) -> None:
    probabilities, novelty = answer(read(ROOM / "examples" / f"{label}.png")[np.newaxis])
    assert probabilities[0, SPEC.labels.index(label)] >= SPEC.classifier.review_below
    assert novelty[0] < 1.0


@pytest.mark.parametrize("grey", [0.0, 0.3, 1.0])
def test_a_blank_image_is_unlike_the_training_data(grey: float) -> None:
    _, novelty = answer(np.full((1, 1, 64, 64), grey, dtype=np.float32))
    assert novelty[0] > 1.0


def test_noise_is_unlike_the_training_data() -> None:
    noise = np.random.default_rng(0).random((16, 1, 64, 64), dtype=np.float32)
    assert (answer(noise)[1] > 1.0).all()


def test_metrics_are_about_this_artifact() -> None:
    metrics = json.loads((WEIGHTS / "metrics.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256((WEIGHTS / "model.onnx").read_bytes()).hexdigest()
    assert metrics["artifact_sha256"] == digest
    assert metrics["labels"] == list(SPEC.labels)
    assert metrics["review"]["below"] == SPEC.classifier.review_below
    assert metrics["accuracy"] >= 0.9995


@pytest.mark.data
def test_a_sample_of_the_archive_is_recognised(medserve_data: Path, tmp_path: Path) -> None:
    _unpack_sample(medserve_data / "MedNIST.tar.gz", tmp_path / "sample")
    flags = ("--data-dir", str(tmp_path / "sample"), "--out", str(tmp_path / "out"))
    assert run(evaluate.main, evaluate.EvaluateConfig, ("mednist", *flags)) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["n"] == PER_CLASS * len(SPEC.labels)
    assert metrics["accuracy"] >= 0.999
    assert metrics["novelty"]["flagged"] <= 0.01 * metrics["n"]
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.data
def test_no_example_is_an_image_of_the_archive(medserve_data: Path) -> None:
    examples = [read(path)[0] for path in sorted((ROOM / "examples").glob("*.png"))]
    least = np.full(len(examples), np.inf)
    with tarfile.open(medserve_data / "MedNIST.tar.gz") as archive:
        for member in archive:
            if not member.isfile() or not member.name.endswith(".jpeg"):
                continue
            stream = archive.extractfile(member)
            assert stream is not None
            image = fit_grey(sniff.decode(stream.read(), SPEC.input), (64, 64))[0]
            rms = [float(np.sqrt(np.square(each - image).mean())) for each in examples]
            least = np.minimum(least, rms)
    assert (255.0 * least > 3.0).all()


def _unpack_sample(archive: Path, folder: Path) -> None:
    """Unpack `PER_CLASS` images of each class, drawn with a fixed seed."""
    with tarfile.open(archive) as packed:
        members = [each for each in packed.getmembers() if each.name.endswith(".jpeg")]
        chosen: set[str] = set()
        for label in SPEC.labels:
            names = sorted(each.name for each in members if Path(each.name).parent.name == label)
            chosen.update(random.Random(0).sample(names, PER_CLASS))
        for member in members:  # in the order of the archive, which is read once only
            if member.name not in chosen:
                continue
            stream = packed.extractfile(member)
            assert stream is not None
            path = folder / Path(member.name).parent.name / Path(member.name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(stream.read())
