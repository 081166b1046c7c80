"""What every training over Lightning does alike: where it resumes, logs, and hands over."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import nn
from torch.optim.swa_utils import AveragedModel

from medserve.errors import ConfigError

__all__ = ["epoch_of", "expected_remarks", "loggers", "plain_network", "resumed_from"]

# Lightning's remarks on what is meant, and on its own inside.
_EXPECTED = (
    ".*does not have many workers",  # the data are in memory already
    ".*is smaller than the logging interval",  # a tiny set
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # its use of torch's
    ".*exists and is not empty",  # resuming
    ".*lr_scheduler.step\\(\\)` before `optimizer.step",  # its own order on the first step
)


@contextmanager
def expected_remarks(*more: str) -> Iterator[None]:
    """Keep back the warnings that are known and meant, and those that match `more`."""
    with warnings.catch_warnings():
        for message in (*_EXPECTED, *more):
            warnings.filterwarnings("ignore", message)
        yield


def resumed_from(folder: Path, resume: bool) -> str | None:
    """The checkpoint to go on from; ConfigError where one is wanted and there is none."""
    if not resume:
        return None
    last = folder / "last.ckpt"
    if not last.is_file():
        raise ConfigError(f"expected {last} to resume from, found none; leave out --resume")
    return str(last)


def epoch_of(checkpoint: Mapping[str, Any]) -> int:
    """Return the epoch, counted from 1, at whose end a checkpoint of Lightning was written."""
    return int(checkpoint["epoch"]) + 1  # Lightning counts from 0


def loggers(out_dir: Path) -> list[Logger]:
    """For TensorBoard, and as `metrics.csv`; each attempt in a folder of its own."""
    attempt = f"attempt_{len(list((out_dir / 'logs').glob('attempt_*')))}"  # resuming adds one
    return [kind(out_dir, name="logs", version=attempt) for kind in (TensorBoardLogger, CSVLogger)]


def plain_network(average: AveragedModel) -> nn.Module:
    """The averaged weights as a network in eval mode on the CPU, ready for export."""
    network: nn.Module = average.module.cpu()
    return network.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
