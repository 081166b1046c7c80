"""Training of one network of volumes: from the start, from a checkpoint, or read again."""

from __future__ import annotations

import datetime
import json
import logging
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from torch import nn
from torch.utils.data import DataLoader

from medserve.errors import ConfigError
from training.core.files import write_json
from training.core.fit import (
    Fitted,
    as_it_comes,
    checkpoints_of,
    expected_remarks,
    fit,
    load_best,
    plain_network,
    seen_in_order,
)
from training.volumes.data import LoadedCase
from training.volumes.module import SCORE, Cases, Segmenter

__all__ = ["fit_segmenter", "initialise_from", "is_fitted", "load_fitted"]

_log = logging.getLogger(__name__)

_FITTED = "fitted.json"  # beside the checkpoints of a training that came to its end


def fit_segmenter(
    module: Segmenter,
    train: Sequence[LoadedCase],
    validation: Sequence[LoadedCase],
    out_dir: Path,
) -> Fitted:
    """Train, and return the averaged weights of the epoch with the best validation.

    A training by minutes ends with its schedule: its last weights are returned instead. At the end
    it writes what `load_fitted` reads.
    """
    config, folder = module.config, checkpoints_of(out_dir)
    (folder / _FITTED).unlink(missing_ok=True)  # of an earlier training in this folder
    size = config.batch_size
    training: DataLoader[LoadedCase] = DataLoader(
        Cases(train), size, shuffle=True, generator=seen_in_order(config.seed),
        collate_fn=as_it_comes, drop_last=len(train) > size,
    )  # fmt: skip
    validating: DataLoader[LoadedCase] = DataLoader(Cases(validation), 1, collate_fn=as_it_comes)
    trainer = fit(
        module,
        out_dir,
        [training, validating],
        SCORE,
        resume=config.resume,
        threads=config.threads,
        callbacks=[
            EarlyStopping(SCORE.name, mode=SCORE.mode, patience=config.patience),
            LearningRateMonitor(),
        ],
        max_epochs=config.epochs,
        max_time=datetime.timedelta(minutes=config.minutes) if config.minutes else None,
        check_val_every_n_epoch=min(config.validate_every, config.epochs),
        devices=config.devices or "auto",
        precision=config.precision.value,
        gradient_clip_val=5.0,
    )
    if config.minutes:  # the schedule has ended where the clock said: no epoch is better
        last = folder / "last.ckpt"
        with expected_remarks():
            trainer.save_checkpoint(last)
            [measured] = trainer.validate(module, validating, verbose=False)
        network = plain_network(module.average)
        fitted = Fitted(network, last, trainer.current_epoch, float(measured[SCORE.name]))
    else:
        fitted = load_best(module, folder / "best.ckpt", SCORE)
    _note(fitted, folder)
    return fitted


def is_fitted(out_dir: Path) -> bool:
    """Whether the training of this folder came to its end."""
    return (out_dir / "checkpoints" / _FITTED).is_file()


def load_fitted(module: Segmenter, out_dir: Path) -> Fitted:
    """Return what `fit_segmenter` returned when it came to its end in this folder."""
    folder = checkpoints_of(out_dir)
    noted = json.loads((folder / _FITTED).read_text(encoding="utf-8"))
    checkpoint = folder / noted["checkpoint"]
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module.load_state_dict(content["state_dict"])
    network = plain_network(module.average)
    return Fitted(network, checkpoint, noted["epoch"], noted["validation_dice"])


def _note(fitted: Fitted, folder: Path) -> None:
    noted = {
        "checkpoint": fitted.checkpoint.name,
        "epoch": fitted.epoch,
        "validation_dice": fitted.score,
    }
    write_json(folder / _FITTED, noted)


def initialise_from(network: nn.Module, checkpoint: Path) -> list[str]:
    """Take over the weights of another training; returns the names that stay as they were.

    Weights are taken from the average where the checkpoint has one. The head of a network with
    other labels has another shape: it alone may differ, and then starts anew.

    Raises:
        ConfigError: no checkpoint, or one of another network.
    """
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        kind = type(error).__name__  # torch's own text is a page long
        raise ConfigError(f"{checkpoint}: cannot be read as a checkpoint ({kind})") from error
    state: dict[str, Any] = content.get("state_dict", content)
    prefix = "average.module."
    given = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    } or state
    own = network.state_dict()
    head = str(getattr(network, "head_path", "head"))
    differing = [name for name in own if name not in given or given[name].shape != own[name].shape]
    if foreign := [name for name in differing if not name.startswith(head)]:
        raise ConfigError(
            f"{checkpoint}: expected the weights of the same network, but {foreign[0]} differs; "
            "give the settings (network, size, width) that it was trained with"
        )
    network.load_state_dict({name: given[name] for name in own if name not in differing},
                            strict=False)  # fmt: skip
    _log.info("weights of %s; new: %s", checkpoint, ", ".join(differing) or "nothing")
    return differing
