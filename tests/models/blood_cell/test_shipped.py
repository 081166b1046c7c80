"""The shipped classifier of blood cells: what its card promises, checked on what is committed."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as PillowImage

import models
from medserve.imaging import Image
from medserve.imaging.codecs import sniff
from medserve.inference.engines import Engine, load_engine
from medserve.inference.fit import fit_lanczos
from medserve.spec import EngineName, Precision
from models.blood_cell.network import BloodCellNet
from training import evaluate
from training.classification.cells import FOLDERS
from training.core.config import run

ROOM = models.room("blood_cell")
SPEC = models.spec("blood_cell")
WEIGHTS = ROOM / "weights"
LARGEST_ARTIFACT = 10_000_000  # bytes
ORIGINALS = "PBC_original_sample.tar.gz"
Frame = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_engine(EngineName.OPENVINO, WEIGHTS, precision=Precision.F32, threads=1)


@pytest.fixture(scope="module")
def examples() -> dict[str, Frame]:
    """The example picture of each label, float32 (H, W, 3)."""
    return {
        label: decoded((ROOM / "examples" / f"{label}.png").read_bytes()) for label in SPEC.labels
    }


@pytest.fixture(scope="module")
def originals(medserve_data: Path) -> list[tuple[str, Frame]]:
    """Label and frame of the archive's 400 pictures in their original size."""
    if not (medserve_data / ORIGINALS).is_file():
        pytest.skip(f"MEDSERVE_DATA has no {ORIGINALS}")
    found = []
    with tarfile.open(medserve_data / ORIGINALS) as archive:
        for member in archive:
            if not member.isfile():
                continue
            stream = archive.extractfile(member)
            assert stream is not None
            folder = Path(member.name).parent.name
            found.append((FOLDERS.get(folder, folder), decoded(stream.read())))
    return found


def decoded(payload: bytes) -> Frame:
    return sniff.decode(payload, SPEC.input).array


def answers(engine: Engine, frames: list[Frame]) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Label and novelty of each frame, by the way of serving."""
    tensor = np.stack([fit_lanczos(Image(frame), (128, 128)) for frame in frames])
    labels: list[str] = []
    novelty = []
    for start in range(0, len(tensor), 50):
        outputs = engine.run(tensor[start : start + 50])
        labels += [SPEC.labels[i] for i in outputs["logits"].argmax(axis=1)]
        novelty.append(outputs["novelty"])
    return labels, np.concatenate(novelty)


def tinted(frame: Frame) -> Frame:
    """Bluish: the ratio of the grounds of the archive's bluish and cream frames."""
    return np.clip(frame * np.array([0.89, 0.96, 1.12], np.float32), 0.0, 1.0)


def padded(frame: Frame, grey: float) -> Frame:
    """A margin of a sixteenth of the side all round, of one grey."""
    margin = frame.shape[0] // 16
    around = ((margin, margin), (margin, margin), (0, 0))
    return np.pad(frame, around, constant_values=np.float32(grey))


def test_labels_have_their_real_names_in_the_order_of_bloodmnist() -> None:
    assert SPEC.labels == (
        "basophil",
        "eosinophil",
        "erythroblast",
        "immature_granulocyte",
        "lymphocyte",
        "monocyte",
        "neutrophil",
        "platelet",
    )


def test_both_artifacts_stay_below_ten_megabytes() -> None:
    for name in ("model.onnx", "model.pt"):
        assert (WEIGHTS / name).stat().st_size <= LARGEST_ARTIFACT


def test_the_card_counts_the_parameters_and_says_what_is_no_white_cell() -> None:
    card = (ROOM / "README.md").read_text(encoding="utf-8")
    count = sum(each.numel() for each in BloodCellNet().parameters())
    assert f"{count:,} parameters" in card
    assert "Erythroblasts and platelets are not white blood cells" in card


def test_metrics_are_about_this_artifact() -> None:
    metrics = json.loads((WEIGHTS / "metrics.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256((WEIGHTS / "model.onnx").read_bytes()).hexdigest()
    assert metrics["artifact_sha256"] == digest
    assert metrics["labels"] == list(SPEC.labels)
    assert metrics["review"]["below"] == SPEC.classifier.review_below
    assert metrics["accuracy"] >= 0.99
    assert metrics["macro_f1"] >= 0.99


@pytest.mark.parametrize("name", list(EngineName))
def test_every_engine_reproduces_the_golden_output(name: EngineName) -> None:
    golden = np.load(WEIGHTS / "golden_output.npz", allow_pickle=False)
    engine = load_engine(name, WEIGHTS, precision=Precision.F32, threads=1)
    frame = decoded((WEIGHTS / "golden_input.png").read_bytes())
    outputs = engine.run(fit_lanczos(Image(frame), (128, 128))[np.newaxis])
    for key in ("logits", "novelty"):
        np.testing.assert_allclose(outputs[key], golden[key], rtol=0, atol=golden["tolerance"])


def test_each_example_is_known(engine: Engine, examples: dict[str, Frame]) -> None:
    labels, novelty = answers(engine, list(examples.values()))
    assert labels == list(examples)
    assert (novelty < 1.0).all()


def test_a_bluish_tint_changes_no_sure_answer(engine: Engine, examples: dict[str, Frame]) -> None:
    labels, _ = answers(engine, [tinted(each) for each in examples.values()])
    assert labels == list(examples)


@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_padding_changes_no_answer(grey: float, engine: Engine, examples: dict[str, Frame]) -> None:
    labels, _ = answers(engine, [padded(each, grey) for each in examples.values()])
    assert labels == list(examples)


def test_a_cell_turned_by_a_quarter_gets_the_very_answer(
    engine: Engine, examples: dict[str, Frame]
) -> None:
    frames = np.stack([fit_lanczos(Image(each), (128, 128)) for each in examples.values()])
    turned = np.ascontiguousarray(np.rot90(frames, axes=(2, 3)))
    upright, lying = engine.run(frames)["logits"], engine.run(turned)["logits"]
    np.testing.assert_allclose(lying, upright, atol=1e-3)


def test_a_large_frame_is_answered_as_a_small_one(
    engine: Engine, examples: dict[str, Frame]
) -> None:
    large = []
    for each in examples.values():
        picture = PillowImage.fromarray(np.rint(255 * each).astype(np.uint8))
        buffer = io.BytesIO()
        picture.resize((360, 363), PillowImage.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
        large.append(decoded(buffer.getvalue()))
    assert answers(engine, large)[0] == list(examples)


@pytest.mark.parametrize("grey", [0.0, 0.3, 1.0])
def test_a_blank_frame_is_unlike_the_training_data(grey: float, engine: Engine) -> None:
    outputs = engine.run(np.full((1, 3, 128, 128), grey, dtype=np.float32))
    assert outputs["novelty"][0] > 1.0


def test_noise_is_unlike_the_training_data(engine: Engine) -> None:
    noise = np.random.default_rng(0).random((8, 3, 128, 128), dtype=np.float32)
    assert (engine.run(noise)["novelty"] > 1.0).all()


@pytest.mark.data
def test_originals_are_answered_right_in_their_own_size(
    engine: Engine, originals: list[tuple[str, Frame]]
) -> None:
    labels, _ = answers(engine, [frame for _, frame in originals])
    right = np.array([label == truth for label, (truth, _) in zip(labels, originals, strict=True)])
    assert len(right) == 400
    assert right.mean() >= 0.985  # most of these were trained on, at 128 pixels


@pytest.mark.data
def test_neither_tint_nor_padding_gives_a_label_away(
    engine: Engine, originals: list[tuple[str, Frame]]
) -> None:
    plain, _ = answers(engine, [frame for _, frame in originals])
    bluish, _ = answers(engine, [tinted(frame) for _, frame in originals])
    framed, _ = answers(engine, [padded(frame, 0.0) for _, frame in originals])
    for changed in (bluish, framed):
        same = np.array([one == other for one, other in zip(plain, changed, strict=True)])
        assert same.mean() >= 0.97


@pytest.mark.data
def test_the_evaluation_command_reads_the_folders_of_the_archive(
    medserve_data: Path, tmp_path: Path
) -> None:
    with tarfile.open(medserve_data / ORIGINALS) as archive:
        archive.extractall(tmp_path, filter="data")
    flags = ("--data-dir", str(tmp_path / "PBC_original"), "--out", str(tmp_path / "out"))
    assert run(evaluate.main, evaluate.EvaluateConfig, ("blood_cell", *flags)) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["n"], metrics["skipped"]) == (400, 0)
    assert metrics["macro_f1"] >= 0.985


def test_the_network_of_the_room_is_the_one_that_was_trained() -> None:
    metrics = json.loads((WEIGHTS / "metrics.json").read_text(encoding="utf-8"))
    count = sum(each.numel() for each in BloodCellNet().parameters())
    assert metrics["training"]["parameters"] == count
