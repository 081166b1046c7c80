"""A training keeps its folder for as long as it lives."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from medserve.errors import ConfigError
from training.core.fit import Score, checkpoints_of, fit

_SCORE = Score("loss")


class Line(L.LightningModule):
    """Learns a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        """Return the squared error of values (N, 1)."""
        [values] = batch
        loss = (self.layer(values) - values).square().mean()
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Descend plainly."""
        return torch.optim.SGD(self.parameters(), 0.1)


def train(out_dir: Path) -> None:
    values = TensorDataset(torch.linspace(0, 1, 4)[:, None])
    fit(Line(), out_dir, [DataLoader(values)], _SCORE, resume=False, threads=1, max_epochs=1)


@pytest.mark.process
@pytest.mark.cpu
def test_two_processes_never_train_in_one_folder(tmp_path: Path) -> None:
    folder = checkpoints_of(tmp_path)
    folder.mkdir(parents=True)
    hold = """
        import fcntl, os, sys
        fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
        print("held", flush=True)
        sys.stdin.read()
    """
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(hold), str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="another process trains in"):
            train(tmp_path)
        assert not list(folder.iterdir())
    finally:
        other.kill()
        other.communicate()
    train(tmp_path)  # the kernel let go of it
    assert (folder / "last.ckpt").is_file()
