"""A whole small training: frames on disk become an artifact that is measured through an engine."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import models
import training.trus_prostate as trus
from medserve.errors import ConfigError
from medserve.inference.engines import load_engine
from medserve.inference.frame_pipeline import FramePipeline
from medserve.spec import EngineName, ModelSpec, Precision
from models.trus_prostate.network import NetworkName, build
from tests.training.frames.drawn import frame_spec, write_frames
from tests.training.guide import guided
from training.core.config import run
from training.core.ensemble import Ensemble
from training.core.evaluation import EvaluationRequest, predict_with
from training.core.fit import start_from
from training.frames import report
from training.frames.augment import Augmentation
from training.frames.config import FrameConfig
from training.frames.data import find_frames, load_frames
from training.frames.evaluation import evaluate_frames, measure_frames
from training.frames.module import FrameSegmenter
from training.frames.sheets import SheetsConfig, write_sheets

_CONFIG = {
    "minWorkers": 1,
    "maxWorkers": 1,
    "medserve": {
        "name": "trus_prostate",
        "version": "1.0",
        "title": "Ellipses",
        "task": "frames",
        "labels": ["background", "prostate"],
        "input": {"kinds": ["raster"], "size": [64, 96]},
        "frame": {"filter": {"kind": "perona_malik", "iterations": 2}},
        "engine": {"name": "onnxruntime"},
    },
}


class Brightness(torch.nn.Module):
    """What a trained network would say of the drawn frames, with one weight to learn."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Above 0 where a frame is bright, speckle smoothed away."""
        smooth = torch.nn.functional.avg_pool2d(image, 5, stride=1, padding=2)
        return 20.0 * self.weight * (smooth - 0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("frames"), patients=8, frames=2, empty=2)


@pytest.fixture(scope="module")
def model_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "model-config.yaml"
    path.write_text(yaml.safe_dump(_CONFIG), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(data: Path, model_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("run")
    trus.main(config_for(data, model_config, out_dir))
    return out_dir


def config_for(data: Path, model_config: Path, out_dir: Path) -> trus.TrainConfig:
    return trus.TrainConfig(
        data_dir=data, out_dir=out_dir, model_config=model_config, epochs=1, batch_size=4,
        folds=2, members=2, encoder="tu-mobilenetv3_small_050", threads=1, test_share=0.25,
    )  # fmt: skip


def test_masks_are_measured_on_the_frames_own_pixels(data: Path) -> None:
    pipeline = FramePipeline(frame_spec())
    measured = measure_frames(pipeline, predict_with(Brightness()), find_frames(data))
    shown = [each.score for each in measured if each.score.reference]
    assert len(measured) == 16
    assert len(shown) == 12
    assert min(score.dice for score in shown) > 0.85
    picture = report.gallery(pipeline, predict_with(Brightness()), report.worst(measured))[0]
    assert picture.found.shape == picture.reference.shape == picture.frame.shape == (48, 72)


@pytest.mark.cpu  # imports MONAI
def test_one_epoch_of_training_lowers_the_loss_and_moves_the_average(data: Path) -> None:
    frames = load_frames(find_frames(data), FramePipeline(frame_spec()))
    module = FrameSegmenter(Brightness(), FrameConfig(augment=False))
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    images, masks = (
        torch.from_numpy(np.stack([getattr(each, name) for each in frames]))[:, None]
        for name in ("plane", "mask")
    )
    optimiser = torch.optim.Adam(module.network.parameters(), lr=0.05)
    losses = []
    for _ in range(8):
        loss = module.training_step((images.float(), masks), 0)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        module.on_train_batch_end()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    average = module.average.module.get_parameter("weight")
    assert float(average) != 1.0


def test_an_encoder_from_a_file_can_learn_at_a_lower_rate_than_its_decoder() -> None:
    network = build(NetworkName.FPN, encoder="tu-mobilenetv3_small_050")
    config = FrameConfig(learning_rate=1e-3, encoder_rate=0.3)
    optimiser = FrameSegmenter(network, config).configure_optimizers()["optimizer"]
    rates = {id(each): group["lr"] for group in optimiser.param_groups for each in group["params"]}
    assert len(rates) == len(list(network.parameters()))
    encoder = {id(each) for each in network.get_submodule("encoder").parameters()}
    for parameter, rate in rates.items():
        assert rate == pytest.approx(3e-4 if parameter in encoder else 1e-3)


def test_several_networks_become_the_mean_of_their_probabilities() -> None:
    logits = torch.tensor([[[[-2.0, 0.5, 30.0]]]])

    class Constant(torch.nn.Module):
        def __init__(self, offset: float) -> None:
            super().__init__()
            self.offset = offset

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            """The image itself, shifted."""
            return image + self.offset

    members = [Constant(0.0), Constant(1.0), Constant(-3.0)]
    mean = torch.stack([torch.sigmoid(logits + each.offset) for each in members]).mean(dim=0)
    found = torch.sigmoid(Ensemble(members, exclusive=False)(logits))
    torch.testing.assert_close(found, mean, atol=2e-6, rtol=0)
    torch.testing.assert_close(Ensemble(members[:1], exclusive=False)(logits), logits)
    with pytest.raises(ConfigError, match="at least one member"):
        Ensemble([], exclusive=False)


def test_evaluation_refuses_a_folder_without_an_artifact(data: Path, tmp_path: Path) -> None:
    request = EvaluationRequest(frame_spec(), tmp_path, data, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"expected the artifact model\.onnx in .*; train and"):
        evaluate_frames(request)
    assert not (tmp_path / "out").exists()


def test_sides_that_the_networks_cannot_halve_are_refused_before_anything_is_read(
    data: Path, tmp_path: Path
) -> None:
    odd = json.loads(json.dumps(_CONFIG))
    odd["medserve"]["input"]["size"] = [60, 96]
    path = tmp_path / "model-config.yaml"
    path.write_text(yaml.safe_dump(odd), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"divides by 32, .* got \[60, 96\]"):
        trus.main(config_for(data, path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_more_members_than_folds_are_refused(
    data: Path, model_config: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(config_for(data, model_config, tmp_path), members=3)
    with pytest.raises(ConfigError, match="at most 2 members"):
        trus.main(config)


@pytest.mark.cpu
def test_sheets_show_every_filter_and_every_change(
    data: Path, model_config: Path, tmp_path: Path
) -> None:
    write_sheets(SheetsConfig(data, tmp_path, model_config, frames=1))
    for name in ("filters.png", "augmentations.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert len(dataclasses.fields(Augmentation)) == 11  # a new change needs a look at its sheet


@pytest.mark.training
def test_a_k_fold_training_writes_what_a_room_ships(trained: Path, data: Path) -> None:
    artifact = trained / "artifact"
    expected = {
        "model.onnx", "model.pt", "golden_input.png", "golden_output.npz", "metrics.json",
        "config.json", "split.csv", "model-config.yaml", "training.json",
    }  # fmt: skip
    assert expected <= {each.name for each in artifact.iterdir()}
    metrics = json.loads((artifact / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["n"] + metrics["n_empty"] == 4  # a quarter of 8 patients with 2 frames each
    assert {"dice", "iou", "false_positive_rate", "intervals"} <= set(metrics)
    parity = {each["engine"]: each["differing"] for each in metrics["training"]["parity"]}
    assert set(parity) == {"eager torch", *EngineName}
    assert parity["onnxruntime"] <= 2
    with (trained / "folds.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["fold"] for row in rows] == ["0", "1"]
    assert sum(int(row["frames"]) for row in rows) == 12
    table = (trained / "folds.md").read_text(encoding="utf-8").splitlines()
    assert table[-2].startswith("| mean ± deviation |")
    together = re.fullmatch(
        r"\| all frames \| 6 \| 12 \| +\| ([\d.]+) \(([\d.]+) to ([\d.]+)\) \|.*", table[-1]
    )
    assert together is not None
    dice, low, high = map(float, together.groups())
    assert low <= dice <= high
    weighed = sum(float(row["dice"]) * int(row["n"]) for row in rows)
    assert dice == pytest.approx(weighed / sum(int(row["n"]) for row in rows), abs=1e-4)
    assert "Agreement with the reference" in (
        (trained / "report" / "report.html").read_text(encoding="utf-8")
    )


@pytest.mark.training
def test_every_frame_can_judge_a_network_that_it_did_not_choose(
    data: Path, model_config: Path, tmp_path: Path
) -> None:
    flags = guided(
        "training.trus_prostate --members", "--data-dir", data, "--model-config", model_config,
        "--out-dir", tmp_path, "--folds", 2, "--members", 2, "--epochs", 2, "--batch-size", 4,
        "--encoder", "tu-mobilenetv3_small_050", "--threads", 1,
    )  # fmt: skip
    assert run(trus.main, trus.TrainConfig, flags) == 0
    with (tmp_path / "folds.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert sum(int(row["frames"]) for row in rows) == 16
    assert {row["best_epoch"] for row in rows} == {"2"}
    kept = json.loads((tmp_path / "member_1/checkpoints/fitted.json").read_text(encoding="utf-8"))
    assert (kept["checkpoint"], kept["epoch"]) == ("last.ckpt", 2)


@pytest.mark.training
def test_a_finished_training_that_is_resumed_ships_the_same_network(
    trained: Path, data: Path, model_config: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    shutil.copytree(trained, again)
    before = json.loads((again / "artifact" / "metrics.json").read_text(encoding="utf-8"))
    config = config_for(data, model_config, again)
    trus.main(dataclasses.replace(config, resume=True, ensemble=False))
    after = json.loads((again / "artifact" / "metrics.json").read_text(encoding="utf-8"))
    assert len(after["training"]["members"]) == 1
    best = max(before["training"]["members"], key=lambda each: each["validation_iou"])
    assert after["training"]["members"] == [best]


@pytest.mark.training
def test_an_artifact_is_evaluated_under_its_own_configuration(
    trained: Path, data: Path, tmp_path: Path
) -> None:
    artifact = trained / "artifact"
    content = evaluate_frames(
        EvaluationRequest(
            ModelSpec.from_file(artifact / "model-config.yaml"), artifact, data, tmp_path,
            artifact / "split.csv", "test", threads=1,
        )
    )  # fmt: skip
    stored = json.loads((artifact / "metrics.json").read_text(encoding="utf-8"))
    assert content["dice"] == stored["dice"]
    assert content["settings"]["filter"] == "perona_malik"
    assert [each["name"] for each in content["frames"]] == [
        each["name"] for each in stored["frames"]
    ]


@pytest.mark.cpu
def test_a_training_can_start_from_the_weights_that_the_room_ships() -> None:
    weights = models.room("trus_prostate") / "weights"
    network = build(NetworkName.UNET, encoder="tu-tf_efficientnet_lite0", size="compact")
    module = FrameSegmenter(network, FrameConfig())
    assert start_from(module, weights / "model.pt", "segmentation_head") == []
    plane = np.random.default_rng(0).random((2, 1, 192, 256), dtype=np.float32)
    engine = load_engine(EngineName.ONNXRUNTIME, weights, precision=Precision.F32, threads=1)
    found = predict_with(module.average.module.eval())(plane)
    np.testing.assert_allclose(found, engine.run(plane)["logits"], atol=1e-3)


def test_an_artifact_without_names_of_its_weights_is_no_start() -> None:
    network = build(NetworkName.FPN, encoder="tu-mobilenetv3_small_050")
    module = FrameSegmenter(network, FrameConfig())
    with pytest.raises(ConfigError, match="no single network whose weights can be told apart"):
        start_from(module, models.room("mednist") / "weights/model.pt", "segmentation_head")
