"""The training of every network over Lightning: checkpoints, resume, logs, and the best weights."""

from __future__ import annotations

import logging
import math
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from medserve.errors import ConfigError
from training.core.config import FitConfig

__all__ = [
    "AveragedNetwork",
    "Fitted",
    "Score",
    "as_it_comes",
    "checkpoints_of",
    "epoch_of",
    "expected_remarks",
    "fit",
    "load_best",
    "loggers",
    "one_cycle",
    "plain_network",
    "seen_in_order",
    "start_from",
    "warmed_average",
]

_log = logging.getLogger(__name__)

ParameterList = tuple[Tensor, ...] | list[Tensor]

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
        ConfigError: there is nothing to resume.
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
    with expected_remarks(*remarks):
        train, *validation = loaders
        trainer.fit(module, train, validation[0] if validation else None, ckpt_path=resumed)
    return trainer


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


def start_from(module: AveragedNetwork, checkpoint: Path) -> None:
    """Give a network and its average the averaged weights of a checkpoint.

    Raises:
        ConfigError: there is none, it is none of a training here, or its network has another shape.
    """
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        state = content["state_dict"]
    except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"expected a checkpoint of a training to start from, such as checkpoints/best.ckpt of "
            f"its --out-dir, at {checkpoint}: {reason}"
        ) from None
    averaged = "average.module."
    weights = {
        name.removeprefix(averaged): value
        for name, value in state.items()
        if name.startswith(averaged)
    }
    try:
        module.network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{checkpoint} holds a network of another shape than these settings give; train with "
            f"the settings of its config.json ({reason[:300]})"
        ) from None
    module.average.module.load_state_dict(weights)


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
