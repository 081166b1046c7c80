from __future__ import annotations

import dataclasses
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from medserve.errors import ConfigError
from medserve.inference.samplers import Prediction
from medserve.inference.schedules import NoiseSchedule
from models.diffusion_sampler.network import DenoisingUNet
from tests.phantoms import disc
from training.classification.data import LabelledImages
from training.core.config import TrainPrecision
from training.core.fit import start_from
from training.core.ini import parse_with_file
from training.diffusion import fit as fitting
from training.diffusion.extractor import DomainExtractor
from training.diffusion.fit import ImageMetric, fit_diffusion
from training.diffusion.images import FolderRequest, read_folder
from training.diffusion.module import Diffusion, Sampling, loss_weights, sample
from training.diffusion.pictures import sheet, write_png
from training.diffusion.settings import INI_KEYS, DiffusionConfig, implied

CONFIG = DiffusionConfig(
    image_size=16, width=8, stages=2, blocks=1, epochs=2, batch_size=8, judge_every=1,
    judge_images=16, precision=TrainPrecision.F32, debug=True,
)  # fmt: skip


def slices(count: int = 24) -> LabelledImages:
    draws = np.random.default_rng(0)
    plane = np.asarray(disc(16, 16), dtype=np.float64)
    scaled = 255 * (plane - plane.min()) / np.ptp(plane)
    images = scaled * draws.uniform(0.5, 1.0, (count, 1, 1, 1))
    label_ids = np.arange(count) % 2
    paths = tuple(f"{n}.png" for n in range(count))
    return LabelledImages(images.astype(np.uint8), label_ids, paths, ("small", "large"))


def module(config: DiffusionConfig = CONFIG) -> Diffusion:
    torch.manual_seed(0)
    return Diffusion(DenoisingUNet(config.network_config(2)), 2, config)


def test_min_snr_caps_the_weight_of_nearly_clean_steps() -> None:
    schedule = NoiseSchedule()
    ratio = schedule.alpha_bar / (1 - schedule.alpha_bar)
    by_noise = loss_weights(schedule, Prediction.NOISE, 5.0)
    by_velocity = loss_weights(schedule, Prediction.VELOCITY, 5.0)
    np.testing.assert_allclose(by_noise, np.minimum(5.0, ratio) / ratio)
    np.testing.assert_allclose(by_velocity, np.minimum(5.0, ratio) / (ratio + 1))
    np.testing.assert_array_equal(loss_weights(schedule, Prediction.NOISE, 0.0), np.ones(1000))


def test_a_perfect_velocity_costs_nothing() -> None:
    config = dataclasses.replace(CONFIG, mirror=False)
    trained = module(config)
    clean = torch.zeros(8, 1, 16, 16)  # of which v is signal * epsilon, so noisy tells it all

    class Perfect(torch.nn.Module):
        def forward(self, noisy: torch.Tensor, step: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            signal, noise = trained._factor("signal", step), trained._factor("noise", step)
            return noisy * signal / noise

    trained.network = Perfect()
    loss = trained._loss(clean, torch.zeros(8, dtype=torch.long))
    assert float(loss) == pytest.approx(0.0, abs=1e-8)


@pytest.mark.training
def test_a_training_ends_with_its_best_average_and_goes_on_where_it_stopped(
    tmp_path: Path,
) -> None:
    images = slices()
    metric = ImageMetric(images, DomainExtractor(1, 2).eval(), tmp_path)
    fitted = fit_diffusion(module(), images, metric, tmp_path)
    assert np.isfinite(fitted.score)
    assert (tmp_path / "pictures" / "epoch_0002.png").is_file()
    longer = dataclasses.replace(CONFIG, epochs=3, resume=True)
    fit_diffusion(module(longer), images, metric, tmp_path)
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 2
    assert last["global_step"] == 9


@pytest.mark.training
@pytest.mark.parametrize(("epochs", "judge_every"), [(1, 5), (3, 2)])
def test_a_training_ends_with_a_judged_network_whatever_its_number_of_epochs(
    epochs: int, judge_every: int, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, epochs=epochs, judge_every=judge_every)
    metric = ImageMetric(slices(), DomainExtractor(1, 2).eval(), tmp_path)
    fitted = fit_diffusion(module(config), slices(), metric, tmp_path)
    assert np.isfinite(fitted.score)
    assert fitted.epoch in {each for each in range(1, epochs + 1)
                            if each % judge_every == 0 or each == epochs}  # fmt: skip


@pytest.mark.training
def test_what_was_trained_is_saved_before_it_is_judged(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=1)
    metric = ImageMetric(slices(), DomainExtractor(1, 2).eval(), tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "sample", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            fit_diffusion(module(config), slices(), metric, tmp_path)
    resumed = dataclasses.replace(config, resume=True)
    fitted = fit_diffusion(module(resumed), slices(), metric, tmp_path)
    assert fitted.checkpoint.name == "last.ckpt"


def test_resuming_from_nothing_says_what_is_missing(tmp_path: Path) -> None:
    metric = ImageMetric(slices(), DomainExtractor(1, 2).eval(), tmp_path)
    with pytest.raises(ConfigError, match="to resume from, found none"):
        fit_diffusion(module(dataclasses.replace(CONFIG, resume=True)), slices(), metric, tmp_path)


def test_samples_depend_on_the_seed_alone_and_have_the_size_and_type_of_images() -> None:
    trained, label_ids = module(), np.array([0, 1, 2])
    first, again = (sample(trained, label_ids, steps=3, seed=4) for _ in range(2))
    assert first.shape == (3, 1, 16, 16)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (sample(trained, label_ids, steps=3, seed=5) != first).any()


def test_guidance_without_classes_is_refused() -> None:
    plain = Diffusion(DenoisingUNet(CONFIG.network_config(0)), 0, CONFIG)
    with pytest.raises(ConfigError, match="trained with classes"):
        Sampling(plain, torch.zeros(1, dtype=torch.long), guidance=2.0)


def written_folder(folder: Path) -> Path:
    for name in ("left", "right"):
        for n in range(3):
            picture = np.full((20, 10), 40 * (n + 1), dtype=np.uint8)
            write_png(folder / name / f"{n}.png", picture)
    return folder


def test_class_folders_become_labels_and_a_broken_file_is_counted(tmp_path: Path) -> None:
    folder = written_folder(tmp_path)
    (folder / "left" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    images = read_folder(FolderRequest(folder, 16))
    assert images.images.shape == (6, 1, 16, 16)
    assert images.labels == ("left", "right")
    assert images.label_ids.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.skipped == ("left/broken.png",)


def test_one_class_alone_in_colour(tmp_path: Path) -> None:
    request = FolderRequest(written_folder(tmp_path), 16, channels=3, only_class="right")
    images = read_folder(request)
    assert images.images.shape == (3, 3, 16, 16)
    assert images.labels == ("right",)


def test_a_folder_without_classes_has_one_label(tmp_path: Path) -> None:
    images = read_folder(FolderRequest(written_folder(tmp_path) / "left", 16))
    assert (images.labels, len(images)) == (("all",), 3)


@pytest.mark.parametrize(
    ("only_class", "said"), [("middle", "found left, right"), ("", "found none that decodes")]
)
def test_a_folder_without_what_was_asked_says_what_is_there(
    tmp_path: Path, only_class: str, said: str
) -> None:
    folder = written_folder(tmp_path)
    if not only_class:
        folder = tmp_path / "empty"
        folder.mkdir()
    with pytest.raises(ConfigError, match=said):
        read_folder(FolderRequest(folder, 16, only_class=only_class))


ASKED = (
    "[DEFAULT]\ndataset = images\nclass = left\nmodel =\nimg_size = 32\nn_channel = 3\n"
    "batch_size = 4\nn_epochs = 7\nlr = 0.001\nn_steps = 500\nmin_beta = 0.0002\n"
    "max_beta = 0.03\ndebug = False\n[Output]\nn_images = 9\noutput_path = made\n"
)


def parsed(path: Path, text: str = ASKED, *flags: str) -> DiffusionConfig:
    path.write_text(text, encoding="utf-8")
    return parse_with_file(DiffusionConfig, ["--config", str(path), *flags], INI_KEYS, implied)


def test_the_asked_keys_of_the_file_are_read(tmp_path: Path) -> None:
    config = parsed(tmp_path / "config.ini")
    assert (config.data_dir, config.out_dir) == (Path("images"), Path("made"))
    assert (config.only_class, config.image_size, config.channels) == ("left", 32, 3)
    assert (config.batch_size, config.epochs, config.learning_rate) == (4, 7, 0.001)
    assert (config.steps, config.min_beta, config.max_beta) == (500, 0.0002, 0.03)
    assert (config.model, config.debug, config.samples) == (None, False, 9)


def test_the_asked_keys_alone_describe_linear_betas_and_a_network_that_says_the_noise(
    tmp_path: Path,
) -> None:
    config = parsed(tmp_path / "config.ini")
    schedule = module(dataclasses.replace(config, image_size=16, channels=1, width=8)).schedule
    betas = np.linspace(0.0002, 0.03, 500)  # Ho et al., arXiv:2006.11239, section 4
    np.testing.assert_allclose(schedule.alpha_bar, np.cumprod(1.0 - betas))
    assert config.prediction is Prediction.NOISE
    np.testing.assert_array_equal(
        loss_weights(schedule, config.prediction, config.snr_limit), np.ones(500)
    )


def test_a_choice_that_is_stated_beats_what_betas_mean(tmp_path: Path) -> None:
    text = ASKED.replace("debug = False", "debug = False\nprediction = v")
    config = parsed(tmp_path / "config.ini", text, "--schedule", "cosine")
    assert (config.prediction, config.schedule.value) == (Prediction.VELOCITY, "cosine")
    assert config.snr_limit == 0.0
    without = "".join(line for line in ASKED.splitlines(keepends=True) if "beta" not in line)
    assert parsed(tmp_path / "config.ini", without).prediction is Prediction.VELOCITY


def test_one_line_says_which_settings_came_from_where(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="training"):
        parsed(tmp_path / "config.ini", ASKED, "--epochs", "3")
    [line] = caplog.messages
    of_file, of_flags, meant, rest = line.split("; ")
    assert of_file.startswith(f"{tmp_path / 'config.ini'}: data_dir=images, only_class=left")
    assert "epochs" not in of_file
    assert of_flags == "flags: epochs=3"
    assert meant == "meant by these: schedule=linear, prediction=noise, snr_limit=0.0"
    assert rest == "the rest: defaults"


def test_a_training_starts_from_the_averaged_weights_of_a_checkpoint(tmp_path: Path) -> None:
    earlier = module()
    for value in earlier.average.module.parameters():
        value.data.fill_(0.25)
    torch.save({"state_dict": earlier.state_dict()}, tmp_path / "best.ckpt")
    started = module()
    start_from(started, tmp_path / "best.ckpt")
    for network in (started.network, started.average.module):
        assert all(bool((value == 0.25).all()) for value in network.parameters())


def test_a_checkpoint_to_start_from_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": module().state_dict()}, tmp_path / "best.ckpt")
    wider = module(dataclasses.replace(CONFIG, width=16))
    with pytest.raises(ConfigError, match=r"best\.ckpt holds a network of another shape"):
        start_from(wider, tmp_path / "best.ckpt")
    (tmp_path / "none.ckpt").write_bytes(b"no checkpoint")
    for name in ("none.ckpt", "absent.ckpt"):
        with pytest.raises(ConfigError, match="expected a checkpoint of a training to start from"):
            start_from(wider, tmp_path / name)


def test_a_sheet_holds_each_image_once_with_gaps_between() -> None:
    images = np.stack([np.full((1, 4, 4), n, dtype=np.uint8) for n in (10, 20, 30)])
    picture = sheet(images)
    assert picture.shape == (14, 14)
    for n in (10, 20, 30):
        assert (picture == n).sum() == 16
