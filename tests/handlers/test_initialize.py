from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from handlers.mednist import MednistHandler
from medserve.errors import ArchiveError, ConfigError, MedserveError, ModelNotReadyError
from medserve.spec import EngineName
from tests.artifacts import BRIGHTNESS_CONFIG
from tests.handlers.worker import answer, context, picture, ready, unpacked


def change_output(folder: Path, **changes: Any) -> None:
    with np.load(folder / "golden_output.npz") as archive:
        arrays = dict(archive)
    arrays.update(changes)
    np.savez(folder / "golden_output.npz", **{k: v for k, v in arrays.items() if v is not None})


def no_output(folder: Path) -> None:
    (folder / "golden_output.npz").unlink()


def no_input(folder: Path) -> None:
    (folder / "golden_input.png").unlink()


def two_inputs(folder: Path) -> None:
    shutil.copy(folder / "golden_input.png", folder / "golden_input.jpg")


def other_picture(folder: Path) -> None:
    (folder / "golden_input.png").write_bytes(picture(0.9))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_output, "expected golden_output.npz with tolerance, got FileNotFoundError"),
        (no_input, r"expected one file golden_input\.\*, got 0"),
        (two_inputs, r"expected one file golden_input\.\*, got 2"),
        (other_picture, "logits within 0.0001 of the golden output, got a difference of"),
        (lambda folder: change_output(folder, tolerance=None), "with tolerance, got KeyError"),
        (lambda folder: change_output(folder, novelty=np.full(1, 9.0)), "novelty within 0.0001"),
        (lambda folder: change_output(folder, logits=np.full((1, 3), np.nan)), "difference of nan"),
        (lambda folder: change_output(folder, logits=np.zeros((1, 4))), r"shape \(1, 4\), got"),
        (lambda folder: change_output(folder, mask=np.zeros(1)), "expected output mask, got only"),
    ],
)
def test_a_worker_that_cannot_prove_itself_fails(
    artifact: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    folder = unpacked(artifact, tmp_path)
    spoil(folder)
    with pytest.raises(ModelNotReadyError, match=message):
        ready(folder)


def test_a_pickled_golden_output_is_never_unpickled(artifact: Path, tmp_path: Path) -> None:
    folder = unpacked(artifact, tmp_path)
    change_output(folder, logits=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ModelNotReadyError, match="got ValueError"):
        ready(folder)


def test_labels_that_do_not_fit_the_artifact_are_refused(artifact: Path) -> None:
    config = copy.deepcopy(BRIGHTNESS_CONFIG)
    config["medserve"]["labels"] = ["dark", "bright"]  # type: ignore[index]
    with pytest.raises(ModelNotReadyError, match=r"2 labels.*belongs to another model"):
        MednistHandler().initialize(context(artifact, config))


def test_without_torchserve_s_copy_the_configuration_is_read_from_the_archive(
    artifact: Path, tmp_path: Path
) -> None:
    folder = unpacked(artifact, tmp_path)
    (folder / "model-config.yaml").write_text(yaml.safe_dump(BRIGHTNESS_CONFIG))
    handler = MednistHandler()
    handler.initialize(context(folder, None))
    assert answer(handler, data=picture(0.1))["label"] == "dark"


@pytest.mark.parametrize("name", list(EngineName))
def test_every_engine_can_be_chosen_by_the_environment_and_agrees(
    artifact: Path, handler: MednistHandler, name: EngineName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSERVE_ENGINE", name)
    other = ready(artifact)
    assert other.engine.name is name
    expected = answer(handler, data=picture(0.3))["probabilities"]
    assert answer(other, data=picture(0.3))["probabilities"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MEDSERVE_ENGINE", "cuda", "expected one of openvino"),
        ("MEDSERVE_MAX_RESPONSE_BYTES", "6 MB", "expected a number"),
    ],
)
def test_a_wrong_environment_is_named(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"{variable}: {message}"):
        ready(artifact)


def test_a_missing_artifact_keeps_the_worker_unready(artifact: Path, tmp_path: Path) -> None:
    folder = unpacked(artifact, tmp_path)
    (folder / "model.onnx").unlink()
    with pytest.raises(ArchiveError, match=r"expected the artifact model\.onnx"):
        ready(folder)


def test_a_golden_input_that_is_refused_keeps_the_worker_unready(
    artifact: Path, tmp_path: Path
) -> None:
    folder = unpacked(artifact, tmp_path)
    (folder / "golden_input.png").write_bytes(b"")
    with pytest.raises(MedserveError, match="got no bytes"):
        ready(folder)
