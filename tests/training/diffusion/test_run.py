"""A whole run on drawn images: train, export, judge, compare samplers; and what it leaves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medserve.errors import ConfigError
from medserve.inference.engines import load_engine
from medserve.inference.fingerprints import FingerprintIndex
from medserve.inference.generation import DiffusionPipeline, SampleSettings
from medserve.spec import EngineName, ModelSpec, Precision, Task
from medserve.spec.generation import SamplerKind
from tests.training.guide import ROOT, guided
from training import diffusion_sampler
from training.core.config import TrainPrecision
from training.core.ini import parse_with_file
from training.diffusion.evaluation import DiffusionEvaluation, evaluate_diffusion
from training.diffusion.finish import stored
from training.diffusion.images import FolderRequest, read_folder
from training.diffusion.pictures import write_png
from training.diffusion.sampler_comparison import ComparisonConfig, parse_ways
from training.diffusion.sampler_comparison import main as compare_samplers
from training.diffusion.settings import INI_KEYS, DiffusionConfig, implied
from training.diffusion.ship import ARTIFACT_FILES, install, room_config

SIDE = 16
CONFIG = DiffusionConfig(
    image_size=SIDE, width=8, stages=2, blocks=1, epochs=1, batch_size=32, judge_every=1,
    judge_images=16, precision=TrainPrecision.F32, debug=False, steps=40, samples=4, threads=1,
)  # fmt: skip


def drawn_folder(root: Path, count: int = 60) -> Path:
    """Discs of many places and brightnesses in two classes, by size; one file is broken."""
    draws = np.random.default_rng(0)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    for name, radius in (("large", 5.0), ("small", 3.0)):
        for n in range(count):
            top, left = draws.uniform(5, 11, size=2)
            inside = np.hypot(rows - top, columns - left) < radius
            picture = np.where(inside, draws.uniform(90, 250), draws.uniform(0, 30))
            write_png(root / name / f"{n:03d}.png", picture.astype(np.uint8))
    (root / "large" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> DiffusionConfig:
    """The configuration of a run that has ended; its folders hold what it wrote."""
    root = tmp_path_factory.mktemp("diffusion")
    flags = guided(
        "training.diffusion_sampler", "--data-dir", drawn_folder(root / "data"),
        "--out-dir", root / "run", "--image-size", SIDE, "--width", 8, "--stages", 2,
        "--blocks", 1, "--epochs", 1, "--batch-size", 32, "--judge-every", 1,
        "--judge-images", 16, "--precision", "32-true", "--no-debug", "--steps", 40,
        "--samples", 4, "--threads", 1,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        config = parse_with_file(DiffusionConfig, flags, INI_KEYS, implied)
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        diffusion_sampler.main(config)
    torch.set_num_threads(threads)
    return config


@pytest.mark.training
def test_a_run_leaves_everything_that_a_room_ships(finished: DiffusionConfig) -> None:
    folder = finished.out_dir / "artifact"
    assert {path.name for path in folder.iterdir()} == {*ARTIFACT_FILES, "model-config.yaml"}
    spec = ModelSpec.from_file(folder / "model-config.yaml")
    assert (spec.task, spec.labels) == (Task.GENERATION, ("large", "small"))
    assert spec.generation is not None
    assert (spec.generation.steps, spec.generation.sizes) == (40, (SIDE,))
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert settings["width"] == 8
    assert not {"data_dir", "out_dir"} & set(settings)  # of the machine that trained


@pytest.mark.training
@pytest.mark.parametrize("engine", list(EngineName))
def test_every_engine_reproduces_the_golden_answer(
    finished: DiffusionConfig, engine: EngineName
) -> None:
    folder = finished.out_dir / "artifact"
    spec = ModelSpec.from_file(folder / "model-config.yaml")
    loaded = load_engine(engine, folder, precision=Precision.F32, threads=1)
    params = json.loads((folder / "golden_input.json").read_text(encoding="utf-8"))
    settings = SampleSettings(
        params["steps"], SamplerKind(params["sampler"]), params["guidance"], SIDE
    )
    label_id = spec.labels.index(params["class"])
    found = DiffusionPipeline(spec, loaded.run).golden(params["seed"], label_id, settings)
    with np.load(folder / "golden_output.npz") as golden:
        assert set(golden) == {*found, "tolerance"}
        for name, array in found.items():
            np.testing.assert_allclose(array, golden[name], atol=float(golden["tolerance"]))


@pytest.mark.training
def test_images_on_disk_say_that_they_are_synthetic(finished: DiffusionConfig) -> None:
    paths = sorted((finished.out_dir / "samples").iterdir())
    assert len(paths) == finished.samples
    with Image.open(paths[0]) as picture:
        assert picture.size == (SIDE, SIDE)
        assert "SYNTHETIC" in picture.text["Synthetic"]  # type: ignore[attr-defined]
    for name in ("samples", "noising", "denoising", "loss_curve"):
        assert (finished.out_dir / f"{name}.png").is_file()


@pytest.mark.training
def test_the_metrics_put_real_images_beside_synthetic_ones(finished: DiffusionConfig) -> None:
    text = (finished.out_dir / "artifact" / "metrics.json").read_text(encoding="utf-8")
    metrics = json.loads(text)
    assert metrics["n"] == 12  # as many as there are validation images
    assert metrics["frechet_ratio"] == pytest.approx(
        metrics["frechet_distance"] / metrics["frechet_distance_real"], rel=0.01
    )
    assert metrics["frechet_distance"] > metrics["frechet_distance_real"]  # one epoch
    assert set(metrics["taught"]) == {"n", "commonest_class", "synthetic", "real"}
    assert set(metrics["appearance"]) == {"synthetic", "real"}
    assert metrics["appearance"]["synthetic"] != metrics["appearance"]["real"]
    assert metrics["training"]["train_images"] == 96
    page = (finished.out_dir / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page.partition("<style>")[2]  # it carries all it shows


@pytest.mark.training
def test_training_images_are_known_by_their_fingerprints(finished: DiffusionConfig) -> None:
    index = FingerprintIndex.load(finished.out_dir / "artifact" / "fingerprints.npz")
    split = (finished.out_dir / "split.csv").read_text(encoding="utf-8")
    images = read_folder(FolderRequest(finished.data_dir, SIDE))
    trained = np.array([path not in split for path in images.paths])
    assert index.is_copy(images.images[trained]).all()
    assert len(index.codes) == trained.sum() == 96


@pytest.mark.training
def test_a_stopped_run_is_finished_from_its_best_checkpoint(
    finished: DiffusionConfig, tmp_path: Path
) -> None:
    config = DiffusionConfig(data_dir=tmp_path, out_dir=finished.out_dir, finish=True)
    restored = stored(config)
    assert (restored.width, restored.steps, restored.precision) == (8, 40, TrainPrecision.F32)
    assert (restored.data_dir, restored.finish) == (tmp_path, True)


@pytest.mark.training
def test_the_artifact_becomes_a_room(finished: DiffusionConfig, tmp_path: Path) -> None:
    install(finished, tmp_path)
    assert {path.name for path in (tmp_path / "weights").iterdir()} == set(ARTIFACT_FILES)
    assert ModelSpec.from_file(tmp_path / "model-config.yaml").labels == ("large", "small")


@pytest.mark.training
def test_a_file_of_the_asked_keys_trains_in_colour_at_128_pixels(tmp_path: Path) -> None:
    _draw_colours(tmp_path / "data")
    path = tmp_path / "config.ini"
    path.write_text(
        f"[DEFAULT]\ndataset = {tmp_path / 'data'}\nclass =\nmodel =\nimg_size = 128\n"
        "n_channel = 3\nbatch_size = 16\nn_epochs = 1\nlr = 0.0005\nn_steps = 40\n"
        "min_beta = 0.0001\nmax_beta = 0.02\ndebug = False\n"
        f"[Output]\nn_images = 2\noutput_path = {tmp_path}/run\n",
        encoding="utf-8",
    )
    flags = "--width 8 --stages 2 --blocks 1 --patch 4 --judge-images 16 --precision 32-true"
    given = ["--config", str(path), *flags.split(), "--threads", "1"]
    with torch.random.fork_rng():
        diffusion_sampler.main(parse_with_file(DiffusionConfig, given, INI_KEYS, implied))
    spec = ModelSpec.from_file(tmp_path / "run/artifact/model-config.yaml")
    assert spec.generation is not None
    assert (spec.input.channels, spec.generation.sizes) == (3, (128,))
    assert spec.generation.schedule.value == "linear"
    with Image.open(tmp_path / "run/samples/00000.png") as picture:
        assert (picture.size, picture.mode) == ((128, 128), "RGB")


@pytest.mark.training
def test_a_run_starts_from_the_checkpoint_of_another(finished: DiffusionConfig) -> None:
    best = finished.out_dir / "checkpoints" / "best.ckpt"
    images = read_folder(FolderRequest(finished.data_dir, SIDE))
    module = diffusion_sampler.new_module(dataclasses.replace(finished, model=best), images)
    state = torch.load(best, weights_only=True)["state_dict"]
    for name, value in module.network.state_dict().items():
        torch.testing.assert_close(value, state[f"average.module.{name}"])


def _draw_colours(root: Path, count: int = 40) -> None:
    """Write colour pictures of 100 x 120: a disc in red or in green on noise."""
    draws = np.random.default_rng(0)
    rows, columns = np.mgrid[0:100, 0:120]
    for channel, name in enumerate(("red", "green")):
        for n in range(count):
            top, left = draws.uniform(30, 70, size=2)
            picture = draws.uniform(0, 60, (100, 120, 3))
            picture[..., channel] += 160.0 * (np.hypot(rows - top, columns - left) < 20)
            write_png(root / name / f"{n:03d}.png", picture.astype(np.uint8))


@pytest.mark.training
def test_samplers_are_compared_from_equal_noise(finished: DiffusionConfig, tmp_path: Path) -> None:
    asked = ComparisonConfig(
        data_dir=finished.data_dir, weights=finished.out_dir / "artifact", out=tmp_path,
        ways="ddim:10,ddim:10,dpm-solver++:3", images=8, threads=1,
    )  # fmt: skip
    compare_samplers(asked)
    rows = json.loads((tmp_path / "samplers.json").read_text(encoding="utf-8"))
    assert [(row["sampler"], row["calls"]) for row in rows] == [
        ("ddim", 10), ("ddim", 10), ("dpm-solver++", 3),
    ]  # fmt: skip
    assert (rows[1]["versus"], rows[1]["apart"]) == (1.0, 0.0)
    assert rows[2]["apart"] > 0
    assert (tmp_path / "samplers.md").read_text(encoding="utf-8").count("\n") == 5


@pytest.mark.training
def test_unseen_images_of_other_classes_are_refused(
    finished: DiffusionConfig, tmp_path: Path
) -> None:
    (tmp_path / "middling").mkdir()
    source = next((finished.data_dir / "small").glob("*.png"))
    (tmp_path / "middling" / "one.png").write_bytes(source.read_bytes())
    asked = DiffusionEvaluation(
        data_dir=finished.data_dir, weights=finished.out_dir / "artifact", unseen_dir=tmp_path,
        threads=1,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="expected the classes large, small, got middling"):
        evaluate_diffusion(asked)


def test_a_room_without_classes_has_no_labels() -> None:
    import yaml

    spec = ModelSpec.from_mapping(yaml.safe_load(room_config(CONFIG, ())))
    assert spec.labels == ()
    assert spec.input.size == (SIDE, SIDE)


@pytest.mark.parametrize("text", ["ddim", "ddim:", "ddim:-5", "euler:20", "", "ddim:20,,ddim:5"])
def test_ways_that_name_no_sampler_and_calls_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected SAMPLER:CALLS"):
        parse_ways(text)


def test_ways_are_samplers_with_their_calls() -> None:
    assert parse_ways("ddpm:1000, dpm-solver++:20") == [
        (SamplerKind.DDPM, 1000), (SamplerKind.DPM_SOLVER, 20),
    ]  # fmt: skip
