"""The training of every network over Lightning: checkpoints, resume, logs, and the best weights."""

from __future__ import annotations

import datetime
import fcntl
import json
import logging
import math
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from medserve.errors import ConfigError
from training.core.config import FitConfig
from training.core.files import write_json

__all__ = [
    "AveragedNetwork",
    "Fitted",
    "Score",
    "as_it_comes",
    "checkpoints_of",
    "epoch_of",
    "expected_remarks",
    "fit",
    "fit_best",
    "is_fitted",
    "load_best",
    "load_fitted",
    "loggers",
    "one_cycle",
    "plain_network",
    "seen_in_order",
    "start_from",
    "warmed_average",
]

_log = logging.getLogger(__name__)

ParameterList = tuple[Tensor, ...] | list[Tensor]
_FITTED = "fitted.json"  # beside the checkpoints of a training that came to its end

# Remarks of Lightning on what is meant, and on its own inside.
_EXPECTED = (
    ".*does not have many workers",  # the data are in memory already
    ".*is smaller than the logging interval",  # a tiny set
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # its use of torch's
    ".*exists and is not empty",  # resuming
    ".*lr_scheduler.step\\(\\)` before `optimizer.step",  # its own order on the first step
)


@dataclass(frozen=True)
class Score:
    """The logged value that tells which epoch is best, and which direction is better."""

    name: str
    higher_is_better: bool = False

    @property
    def mode(self) -> str:
        """Return the direction in the words of Lightning."""
        return "max" if self.higher_is_better else "min"


@dataclass(frozen=True)
class Fitted:
    """The best network of a training and where it came from.

    Attributes:
        network: In eval mode, on the CPU, weights averaged.
        checkpoint: Holds its weights.
        epoch: Counted from 1; the one whose weights ship.
        score: Of its validation.
    """

    network: nn.Module
    checkpoint: Path
    epoch: int
    score: float


class AveragedNetwork(L.LightningModule):
    """A network in training with a running average of its weights.

    The average is what is validated, checkpointed as best and exported: it makes fewer errors than
    any single step and costs nothing at serving.
    """

    def __init__(
        self,
        network: nn.Module,
        config: FitConfig,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        super().__init__()
        self.config = config
        self.network = network.to(memory_format=memory_format)  # type: ignore[call-overload]
        self.average = AveragedModel(
            self.network, multi_avg_fn=warmed_average(config.ema_decay), use_buffers=True
        ).requires_grad_(False)
        self.draws = torch.Generator()

    def on_train_epoch_start(self) -> None:
        """Seed what is drawn by epoch and rank, so that a resumed run draws the same."""
        seed = self.config.seed * 1_000_003 + 1009 * self.current_epoch + self.global_rank
        self.draws.manual_seed(seed)

    def on_train_batch_end(self, *_: object) -> None:
        """Move the average one step."""
        self.average.update_parameters(self.network)

    def progress(self, share_of_steps: float) -> float:
        """Return the share of the training that is done; here that of its steps."""
        return share_of_steps

    def on_one_cycle(self, optimiser: torch.optim.Optimizer) -> dict[str, object]:
        """Return the optimiser with a learning rate that goes through one cycle by `progress`."""
        steps = max(2, int(self.trainer.estimated_stepping_batches))
        schedule = LambdaLR(optimiser, lambda step: one_cycle(self.progress(step / steps)))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(
    module: L.LightningModule,
    out_dir: Path,
    loaders: Sequence[DataLoader[Any]],
    score: Score,
    *,
    resume: bool,
    threads: int,
    callbacks: Sequence[Callback] = (),
    remarks: Sequence[str] = (),
    **options: Any,
) -> L.Trainer:
    """Train, and write what a later run and a reader need.

    Writes `checkpoints/best.ckpt` and `checkpoints/last.ckpt` (every epoch), and into `logs/` what
    TensorBoard shows and a `metrics.csv`.

    Args:
        module: Logs the score.
        out_dir: Receives the folders.
        loaders: Of the training, and of the validation where there is one.
        score: Chooses the best epoch.
        resume: Go on from the last checkpoint in `out_dir`.
        threads: Of the CPU; 0 leaves torch's choice.
        callbacks: Further ones; they run before the checkpoints are written.
        remarks: Warnings of Lightning that are meant in this training.
        options: Of Lightning's `Trainer`.

    Raises:
        ConfigError: there is nothing to resume, or another process trains in this folder.
    """
    folder = checkpoints_of(out_dir)
    resumed = _resumed_from(folder) if resume else None
    best = ModelCheckpoint(
        folder, filename="best", monitor=score.name, mode=score.mode, enable_version_counter=False,
        save_on_train_epoch_end=None if len(loaders) > 1 else True,
    )  # fmt: skip
    every = ModelCheckpoint(
        folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True
    )
    if threads:
        torch.set_num_threads(threads)
    trainer = L.Trainer(
        callbacks=[*callbacks, best, every, RichProgressBar()],
        logger=loggers(out_dir),
        num_sanity_val_steps=0,
        log_every_n_steps=20,
        enable_model_summary=False,
        default_root_dir=out_dir,
        **options,
    )
    with _held(folder, is_first=trainer.global_rank == 0), expected_remarks(*remarks):
        train, *validation = loaders
        trainer.fit(module, train, validation[0] if validation else None, ckpt_path=resumed)
    return trainer


@contextmanager
def _held(folder: Path, *, is_first: bool) -> Iterator[None]:
    """Keep other trainings out of a folder until this one ends, however it ends.

    Args:
        folder: Of the checkpoints.
        is_first: Whether this is the first of the processes that train one network; the others
            share its folder.

    Raises:
        ConfigError: another process trains there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if is_first:
            _lock(held, folder)
        yield
    finally:
        os.close(held)


def _lock(held: int, folder: Path) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"another process trains in {folder.parent}: wait for its end, or give another "
            "--out-dir"
        ) from None
    except OSError:  # some network disks lock no folders
        _log.info("%s: this file system keeps no second training out", folder)


def fit_best(
    module: AveragedNetwork,
    loaders: Sequence[DataLoader[Any]],
    score: Score,
    out_dir: Path,
    *,
    minutes: float = 0.0,
    last: bool = False,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> Fitted:
    """Train by the settings of a network, and return the averaged weights of the best epoch.

    A training with a validation ends after `patience` validations without a better one. At its end
    it writes what `load_fitted` reads.

    Args:
        module: Logs the score.
        loaders: Of the training, and of the validation where there is one.
        score: Chooses the best epoch.
        out_dir: Receives what `fit` writes.
        minutes: Wall time after which the training ends, its schedule included; 0: it ends after
            its epochs. The schedule ended where the clock said, so the last weights are returned.
        last: Return the last weights in any case, which the validation then did not choose.
        callbacks: Further ones.
        options: Of `fit` and of Lightning's `Trainer`.
    """
    config, folder = module.config, checkpoints_of(out_dir)
    (folder / _FITTED).unlink(missing_ok=True)  # of an earlier training in this folder
    stopping = [EarlyStopping(score.name, mode=score.mode, patience=config.patience)]
    trainer = fit(
        module, out_dir, loaders, score, resume=config.resume, threads=config.threads,
        callbacks=[*callbacks, *(stopping if len(loaders) > 1 else ()), LearningRateMonitor()],
        max_epochs=config.epochs, devices=config.devices or "auto",
        max_time=datetime.timedelta(minutes=minutes) if minutes else None,
        precision=config.precision.value, **options,
    )  # fmt: skip
    if minutes or last:
        checkpoint = folder / "last.ckpt"
        with expected_remarks():
            trainer.save_checkpoint(checkpoint)
            [measured] = trainer.validate(module, loaders[1], verbose=False)
        network = plain_network(module.average)
        fitted = Fitted(network, checkpoint, trainer.current_epoch, float(measured[score.name]))
    else:
        fitted = load_best(module, folder / "best.ckpt", score)
    noted = {"checkpoint": fitted.checkpoint.name, "epoch": fitted.epoch, score.name: fitted.score}
    write_json(folder / _FITTED, noted)
    return fitted


def is_fitted(out_dir: Path) -> bool:
    """Tell whether the training of this folder came to its end."""
    return (checkpoints_of(out_dir) / _FITTED).is_file()


def load_fitted(module: AveragedNetwork, out_dir: Path, score: Score) -> Fitted:
    """Return what `fit_best` returned when it came to its end in this folder."""
    folder = checkpoints_of(out_dir)
    noted = json.loads((folder / _FITTED).read_text(encoding="utf-8"))
    checkpoint = folder / noted["checkpoint"]
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module.load_state_dict(content["state_dict"])
    return Fitted(plain_network(module.average), checkpoint, noted["epoch"], noted[score.name])


def load_best(module: AveragedNetwork, checkpoint: Path, score: Score) -> Fitted:
    """Return the averaged weights of a checkpoint, as a plain network ready for export.

    Where no epoch was judged, as its training ended before that, the last one's are taken.
    """
    if not checkpoint.is_file():
        _log.warning("no epoch was judged; the weights of the last one are taken")
        checkpoint = checkpoint.with_name("last.ckpt")
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module.load_state_dict(content["state_dict"])
    savers = [state for name, state in content["callbacks"].items() if score.name in name]
    scores = [each.get("best_model_score") for each in savers]
    reached = [float(score) for score in scores if score is not None]
    best = (max if score.higher_is_better else min)(reached, default=math.nan)
    _log.info("best epoch %d, %s %.4f", epoch_of(content), score.name.replace("_", " "), best)
    return Fitted(plain_network(module.average), checkpoint, epoch_of(content), best)


def start_from(module: AveragedNetwork, checkpoint: Path, head: str = "") -> list[str]:
    """Give a network and its average the weights of another training; return what stays new.

    Weights are those of the average where the checkpoint has one.

    Args:
        module: Keeps its own weights where the other network has none.
        checkpoint: Of a training, of a network's tensors alone, or the `model.pt` of masks that a
            room ships.
        head: How the names of the last layer begin, which may be of another shape, as it knows the
            labels. Everything else is of the same shape.

    Raises:
        ConfigError: no checkpoint, or one of another network.
    """
    given = _tensors(checkpoint)
    own = module.network.state_dict()
    new = [name for name in own if name not in given or given[name].shape != own[name].shape]
    if foreign := [name for name in new if not (head and name.startswith(head))]:
        raise ConfigError(
            f"{checkpoint} holds a network of another shape than these settings give: expected the "
            f"weights of the same network, but {foreign[0]} differs; train with the settings of "
            "its config.json"
        )
    taken = {name: given[name] for name in own if name not in new}
    for network in (module.network, module.average.module):
        network.load_state_dict(taken, strict=False)
    _log.info("weights of %s; new: %s", checkpoint, ", ".join(new) or "nothing")
    return new


def _tensors(checkpoint: Path) -> Mapping[str, Tensor]:
    """Return the tensors in a file by their names in the network; errors as of `start_from`."""
    try:
        if zipfile.is_zipfile(checkpoint) and _is_torchscript(checkpoint):
            with expected_remarks(".*torch.jit"):
                network = torch.jit.load(checkpoint, "cpu")  # type: ignore[no-untyped-call]
            return _shipped_tensors(network, checkpoint)
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        state: Mapping[str, Tensor] = content.get("state_dict", content)
    except (OSError, RuntimeError, ValueError, EOFError, AttributeError,
            pickle.UnpicklingError) as error:  # fmt: skip
        raise ConfigError(
            f"{checkpoint}: cannot be read as a checkpoint ({type(error).__name__}); expected a "
            "checkpoint of a training to start from, such as checkpoints/best.ckpt of its --out-dir"
        ) from None  # torch's own text is a page long
    averaged = "average.module."
    return {
        name.removeprefix(averaged): value
        for name, value in state.items()
        if name.startswith(averaged)
    } or state


def _is_torchscript(checkpoint: Path) -> bool:
    with zipfile.ZipFile(checkpoint) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _shipped_tensors(network: torch.jit.ScriptModule, path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of an artifact of masks, whose kernels may be stored in 16 bits."""
    state = {
        name.replace(".parametrizations.weight.original", ".weight"): value.float()
        if value.is_floating_point() else value
        for name, value in network.state_dict().items()
    }  # fmt: skip
    if not state or any(not name.startswith("members.0.") for name in state):
        raise ConfigError(
            f"{path} holds no single network whose weights can be told apart: expected the "
            "model.pt of a room of masks with one member, or a checkpoint of a training"
        )
    return {name.removeprefix("members.0."): value for name, value in state.items()}


def checkpoints_of(out_dir: Path) -> Path:
    """Return the folder of the checkpoints of a training."""
    return out_dir / "checkpoints"


def _resumed_from(folder: Path) -> Path:
    last = folder / "last.ckpt"
    if not last.is_file():
        raise ConfigError(f"expected {last} to resume from, found none; leave out --resume")
    return last


@contextmanager
def expected_remarks(*more: str) -> Iterator[None]:
    """Keep back the warnings that are known and meant, and those that match `more`."""
    with warnings.catch_warnings():
        for message in (*_EXPECTED, *more):
            warnings.filterwarnings("ignore", message)
        yield


def epoch_of(checkpoint: Mapping[str, Any]) -> int:
    """Return the epoch, counted from 1, at whose end a checkpoint of Lightning was written."""
    return int(checkpoint["epoch"]) + 1  # Lightning counts from 0


def loggers(out_dir: Path) -> list[Logger]:
    """Return loggers for TensorBoard and for `metrics.csv`; each attempt has a folder."""
    attempt = f"attempt_{len(list((out_dir / 'logs').glob('attempt_*')))}"  # resuming adds one
    return [kind(out_dir, name="logs", version=attempt) for kind in (TensorBoardLogger, CSVLogger)]


def plain_network(average: AveragedModel) -> nn.Module:
    """Return the averaged weights as a network in eval mode on the CPU, ready for export."""
    network: nn.Module = average.module.cpu()
    return network.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]


def as_it_comes(batch: Any) -> Any:
    """Return the batch: collates for data sets that hand out whole batches."""
    return batch


def seen_in_order(seed: int) -> torch.Generator:
    """Return what decides the order in which a training sees its data."""
    return torch.Generator().manual_seed(seed)


def one_cycle(progress: float, warm_up: float = 0.2, start: float = 0.04) -> float:
    """Return the share of the peak learning rate at a progress in [0, 1]: up, then down to 0.

    After Smith and Topin, arXiv:1708.07120. A function of progress alone, so that a resumed
    training may have more epochs than the first one asked for.
    """
    if progress < warm_up:
        return start + (1.0 - start) * 0.5 * (1.0 - math.cos(math.pi * progress / warm_up))
    left = (progress - warm_up) / (1.0 - warm_up)
    return 0.5 * (1.0 + math.cos(math.pi * min(left, 1.0)))


def warmed_average(decay: float) -> Callable[[ParameterList, ParameterList, Tensor | int], None]:
    """Return an exponential average that forgets the random start: its memory grows to `decay`.

    For `torch.optim.swa_utils.AveragedModel(multi_avg_fn=...)`.
    """

    @torch.no_grad()
    def step(averaged: ParameterList, current: ParameterList, count: Tensor | int) -> None:
        kept = min(decay, (1.0 + float(count)) / (10.0 + float(count)))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value.to(mean.dtype), 1.0 - kept)
            else:  # batch norm's step counter
                mean.copy_(value)

    return step
