"""From members to what a room ships: one graph, a volume that is nobody's, honest figures."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models
from medserve.errors import ArchiveError, ConfigError
from medserve.imaging.codecs import nifti
from medserve.importing import golden
from medserve.inference.engines import load_engine
from medserve.inference.roi import Box
from medserve.inference.volume_pipeline import Inverse, VolumePipeline
from medserve.spec import EngineName, Precision
from tests.training.volumes.drawn import CHANNELS, case, tiny_spec, write_channels, write_folder
from training import segmentation_3d
from training.core.config import refuse_to_overwrite, run
from training.core.ensemble import Ensemble
from training.core.evaluation import EvaluationRequest
from training.core.export import LEAST_AGREEMENT, require_agreement
from training.segmentation_3d import TrainConfig
from training.volumes import ship
from training.volumes.data import LoadedCase, find_cases, load_cases
from training.volumes.evaluation import evaluate_segmentation
from training.volumes.exemplar import LEAST_CASES, average_volume


class Fixed(nn.Module):
    """Says the same of every voxel."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits).reshape(1, -1, 1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Image (N, C, I, J, K) -> logits of the same sides."""
        return self.get_buffer("logits") + 0.0 * image


def loaded(count: int) -> list[LoadedCase]:
    cases = []
    for n in range(count):
        volume, mask = case(n)
        image = volume.array / volume.array.max()
        grid = volume.geometry
        inverse = Inverse(grid, grid.axis_order("RAS"), Box.whole(grid.shape), grid, grid)
        cases.append(LoadedCase(str(n), torch.from_numpy(image)[None], torch.from_numpy(mask),
                                inverse))  # fmt: skip
    return cases


def test_softmax_of_the_ensemble_is_the_mean_of_the_members_probabilities() -> None:
    members = [Fixed(0.0, 2.0, -1.0), Fixed(1.0, 0.0, 3.0)]
    image = torch.zeros(2, 1, 2, 3, 4)
    found = torch.softmax(Ensemble(members)(image), dim=1)
    one, two = (torch.softmax(member.get_buffer("logits"), dim=1) for member in members)
    torch.testing.assert_close(found, ((one + two) / 2).expand(2, 3, 2, 3, 4))


def test_one_member_keeps_its_logits() -> None:
    image = torch.zeros(1, 1, 2, 2, 2)
    assert torch.equal(Ensemble([Fixed(0.0, 9.0)])(image), Fixed(0.0, 9.0)(image))


def test_an_impossible_label_stays_finite() -> None:
    logits = Ensemble([Fixed(0.0, 200.0), Fixed(0.0, 300.0)])(torch.zeros(1, 1, 1, 1, 1))
    assert bool(torch.isfinite(logits).all())
    assert float(logits[0, 0]) < -10.0


def test_an_ensemble_of_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one member"):
        Ensemble([])


def test_the_average_of_many_is_like_all_and_none_of_them() -> None:
    cases = loaded(LEAST_CASES)
    average = average_volume(cases, (16, 24, 16), (1.0, 1.0, 1.0))
    assert average.array.dtype == np.int16
    middle = average.array[6:10, 14:18, 6:10].mean()
    behind = average.array[6:10, 7:10, 6:10].mean()
    assert middle > 1.4 * behind > 3.0 * average.array[0].mean()
    for each in cases:
        image = 1000.0 * each.image[0].numpy()
        parts = image[1:17, :24, :16], average.array
        correlation = np.corrcoef(parts[0].ravel(), parts[1].ravel())[0, 1]
        assert correlation < 0.99


def test_a_few_volumes_are_not_averaged() -> None:
    with pytest.raises(ConfigError, match=f"at least {LEAST_CASES} volumes"):
        average_volume(loaded(LEAST_CASES - 1), (16, 24, 16), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("drawn"), 20)


def flags(data_dir: Path, out_dir: Path, *more: str) -> list[str]:
    """Flags of the smallest training of two members."""
    size = ["--width", "8", "--epochs", "1", "--validate-every", "1", "--precision", "32-true",
            "--threads", "1", "--folds", "3", "--test-share", "0.15", "--members", "2"]  # fmt: skip
    return ["--data-dir", str(data_dir), "--out-dir", str(out_dir), *size, *more]


@pytest.fixture(scope="module")
def out_dir(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    room = folder / "room"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "spec", lambda name, variant="": tiny_spec())
        patch.setattr(models, "room", lambda name: room)
        room.mkdir()
        arguments = flags(data_dir, folder, "--install")
        assert run(segmentation_3d.main, TrainConfig, arguments) == 0
    return folder


@pytest.mark.training
def test_a_training_leaves_everything_that_a_room_ships(out_dir: Path) -> None:
    installed = {path.name for path in (out_dir / "room" / "weights").iterdir()}
    assert installed == {
        "model.onnx", "model.pt", "golden_input.nii.gz", "golden_output.npz", "metrics.json",
        "config.json", "split.csv",
    }  # fmt: skip
    example = (out_dir / "room/examples" / ship.EXAMPLE).read_bytes()
    assert nifti.decode(example).geometry.spacing_mm == (1.0, 1.0, 1.0)


@pytest.mark.training
def test_the_golden_input_is_not_on_the_grid_of_the_network(out_dir: Path) -> None:
    golden = nifti.decode((out_dir / "room/weights/golden_input.nii.gz").read_bytes())
    assert all(abs(mm - 1.0) > 0.1 for mm in golden.geometry.spacing_mm)
    assert golden.geometry.shape != tiny_spec().input.size


@pytest.mark.training
def test_no_artifact_names_a_folder_of_the_machine_that_trained(out_dir: Path) -> None:
    here = str(Path(segmentation_3d.__file__).parent.parent).encode()
    for path in (out_dir / "artifact").iterdir():
        if path.suffix == ".pt":
            with zipfile.ZipFile(path) as archive:
                content = b"".join(archive.read(name) for name in archive.namelist())
        else:
            content = path.read_bytes()
        assert here not in content, path.name
        assert str(out_dir).encode() not in content, path.name


@pytest.mark.training
def test_members_are_trained_on_different_folds_and_never_on_the_test_part(out_dir: Path) -> None:
    configs = json.loads((out_dir / "artifact/config.json").read_text())["members"]
    assert [(each["fold"], each["seed"]) for each in configs] == [(0, 0), (1, 1)]
    assert not any("_dir" in name for each in configs for name in each)
    rows = list(csv.DictReader((out_dir / "artifact/split.csv").read_text().splitlines()))
    assert sum(row["part"] == "test" for row in rows) == 3
    assert all(row["fold"] == "" for row in rows if row["part"] == "test")


@pytest.mark.training
def test_metrics_are_of_the_test_part_and_say_what_members_and_flips_add(out_dir: Path) -> None:
    metrics = json.loads((out_dir / "artifact/metrics.json").read_text())
    assert metrics["n"] == 3
    rows = metrics["training"]["what_parts_add"]
    assert {(row["network"], row["flips"]) for row in rows} == {
        (name, flips) for name in ("all members", "member 0", "member 1") for flips in (False, True)
    }
    assert len(metrics["training"]["members"]) == 2
    agreeing = metrics["training"]["agreement_with_eager"]
    assert {row["engine"] for row in agreeing} == {name.value for name in EngineName}
    assert all(row["agreement"] >= LEAST_AGREEMENT for row in agreeing)


@pytest.mark.training
def test_the_golden_input_gives_the_golden_output_in_every_engine(out_dir: Path) -> None:
    folder = out_dir / "artifact"
    pipeline = VolumePipeline(tiny_spec())
    prepared = pipeline.prepare(nifti.decode((folder / "golden_input.nii.gz").read_bytes()))
    window = pipeline.golden_window(prepared)
    golden = np.load(folder / "golden_output.npz", allow_pickle=False)
    for name in EngineName:
        engine = load_engine(name, folder, precision=Precision.F32, threads=1)
        difference = np.abs(engine.run(window)["logits"] - golden["logits"]).max()
        assert difference <= golden["tolerance"]


@pytest.mark.training
def test_a_finished_training_ships_again_without_training(
    data_dir: Path, out_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "spec", lambda name, variant="": tiny_spec())
    before = (out_dir / "member_0/checkpoints/last.ckpt").stat().st_mtime_ns
    assert run(segmentation_3d.main, TrainConfig, flags(data_dir, out_dir, "--resume")) == 0
    assert (out_dir / "member_0/checkpoints/last.ckpt").stat().st_mtime_ns == before
    assert len(list((out_dir / "member_0/logs").iterdir())) == 1


@pytest.mark.training
def test_finished_members_of_other_widths_ship_as_one_graph_of_half_the_size(
    data_dir: Path, out_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "spec", lambda name, variant="": tiny_spec())
    shutil.copytree(out_dir / "member_0", tmp_path / "member_0")
    arguments = [*flags(data_dir, tmp_path), "--width", "16", "--fp16-weights", "--resume"]
    assert run(segmentation_3d.main, TrainConfig, arguments) == 0
    described = json.loads((tmp_path / "artifact/metrics.json").read_text())["training"]
    narrow, wide = (each["parameters"] for each in described["members"])
    assert 3.5 * narrow < wide < 4.5 * narrow
    settings = json.loads((tmp_path / "artifact/config.json").read_text())["members"]
    assert [each["width"] for each in settings] == [8, 16]
    for name in ("model.onnx", "model.pt"):
        size = (tmp_path / "artifact" / name).stat().st_size
        assert 2.0 * (narrow + wide) < size < 2.6 * (narrow + wide), name


@pytest.mark.training
def test_an_artifact_that_says_something_else_is_refused(data_dir: Path, out_dir: Path) -> None:
    pipeline = VolumePipeline(tiny_spec())
    cases = load_cases(find_cases(data_dir)[:2], pipeline)
    [first, *_] = ship.agreement(
        pipeline, Ensemble([Fixed(0.0, 0.0, 5.0)]).eval(), out_dir / "artifact", cases, 1
    )
    assert first.share < LEAST_AGREEMENT
    assert first.voxels == sum(each.mask.numel() for each in cases)


@pytest.mark.training
def test_labels_that_are_equally_likely_may_differ(data_dir: Path, out_dir: Path) -> None:
    pipeline = VolumePipeline(tiny_spec())
    cases = load_cases(find_cases(data_dir)[:2], pipeline)
    tie = Ensemble([Fixed(1.0, 1.0, 1.0)]).eval()
    [first, *_] = ship.agreement(pipeline, tie, out_dir / "artifact", cases, 1)
    assert first.ties > 0
    assert (first.differing, first.share) == (0, 1.0)


def test_an_engine_that_differs_is_named_and_the_artifact_kept() -> None:
    require_agreement({"onnxruntime": 0.9999})
    with pytest.raises(ArchiveError, match=r"artifact and report are written.*onnxruntime.*99\.98"):
        require_agreement({"openvino": 1.0, "onnxruntime": 0.9998})


@pytest.mark.training
@pytest.mark.parametrize("in_one_file", [False, True])
def test_several_channels_train_and_ship(
    in_one_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(channels=CHANNELS)
    monkeypatch.setattr(models, "spec", lambda name, variant="": spec)
    data, out = write_channels(tmp_path / "data", 8, in_one_file=in_one_file), tmp_path / "run"
    assert run(segmentation_3d.main, TrainConfig, [*flags(data, out), "--members", "1"]) == 0
    folder = out / "artifact"
    pipeline = VolumePipeline(spec)
    given = golden.read_example([folder / "golden_input.nii.gz"], spec)
    window = pipeline.golden_window(pipeline.prepare(given.volumes))
    assert window.shape[1] == 2
    stored = np.load(folder / "golden_output.npz", allow_pickle=False)
    engine = load_engine(EngineName.OPENVINO, folder, precision=Precision.F32, threads=1)
    assert np.abs(engine.run(window)["logits"] - stored["logits"]).max() <= stored["tolerance"]
    assert json.loads((folder / "metrics.json").read_text())["n"] == 1


@pytest.mark.training
def test_overlapping_regions_are_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tiny_spec(regions={"head": 0, "tail": 1})
    monkeypatch.setattr(models, "spec", lambda name, variant="": spec)
    assert run(segmentation_3d.main, TrainConfig, flags(tmp_path, tmp_path / "run")) == 2
    assert "expected labels that exclude one another" in capsys.readouterr().err


@pytest.mark.training
def test_a_few_volumes_are_enough_for_everything_that_a_room_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "spec", lambda name, variant="": tiny_spec())
    data, out = write_folder(tmp_path / "data", 6), tmp_path / "run"
    assert run(segmentation_3d.main, TrainConfig, [*flags(data, out), "--members", "1"]) == 0
    assert [path.name for path in (out / "examples").iterdir()] == [ship.PHANTOM]
    answer = np.load(out / "artifact" / "golden_output.npz")["logits"]
    assert np.isfinite(answer).all()
    with pytest.raises(ConfigError, match="--resume"):
        refuse_to_overwrite(TrainConfig(data_dir=data, out_dir=out))


@pytest.mark.training
def test_the_command_for_evaluation_measures_a_training_artifact(
    data_dir: Path, out_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "spec", lambda name, variant="": tiny_spec())
    request = EvaluationRequest(tiny_spec(), out_dir / "artifact", data_dir, tmp_path, threads=1)
    evaluate_segmentation(request)
    assert json.loads((tmp_path / "metrics.json").read_text())["n"] == 20
