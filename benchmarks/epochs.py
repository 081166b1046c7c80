"""What an epoch of training costs: this checkout beside an earlier one, in turns.

    git worktree add ../before COMMIT
    python -m benchmarks.epochs --before ../before training.mednist --data-dir data/MedNIST
    python -m benchmarks.epochs --before ../before training.trus_prostate --data-dir data/trus
    python -m benchmarks.epochs --before ../before training.diffusion_sampler --judge-images 16

Both trainings run with the same arguments in processes of their own, one after the other; the order
changes from round to round. What counts is the processor time of an epoch with its validation, the
first epoch left out, in which files are read for the first time. A process ends with its last
epoch: what a training exports and reports is not measured.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.machine import describe_machine
from benchmarks.ratios import Spread

__all__ = ["main"]

_ROOT = Path(__file__).parent.parent
_ALONE = {"OMP_NUM_THREADS": "1"}  # threads that wait for each other burn time on a busy machine
# What each process runs: the training itself, with a clock in Lightning's loop.
_CLOCKED = """
import os, resource, runpy, sys
import lightning.pytorch as L

out = sys.argv.pop(1)
fit = L.Trainer.fit

def seconds():
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)

class Clock(L.Callback):
    def note(self):
        with open(out, "a") as file:
            print(seconds(), file=file)

    def on_train_epoch_start(self, trainer, module):
        self.note()

    def on_train_end(self, trainer, module):
        self.note()
        os._exit(0)

def clocked(trainer, *args, **kwargs):
    if not any(isinstance(each, Clock) for each in trainer.callbacks):
        trainer.callbacks.append(Clock())
    return fit(trainer, *args, **kwargs)

L.Trainer.fit = clocked
module = sys.argv.pop(1)
sys.argv[0] = module
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print one ratio of speeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, required=True, help="The earlier checkout.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("module", help="Such as training.mednist.")
    options, rest = parser.parse_known_args(argv)
    console = Console()
    console.print(describe_machine())
    spent: dict[str, list[float]] = {"before": [], "now": []}
    trees = {"before": options.before.resolve(), "now": _ROOT}
    for number in range(options.rounds):
        for name in sorted(trees, reverse=number % 2 == 1):
            seconds = _epochs(trees[name], options.module, [*rest, f"--epochs={options.epochs}"])
            spent[name].append(sum(seconds) / len(seconds))
            console.print(f"{name}: {spent[name][-1]:.2f} s of CPU an epoch")
    ratios = [before / now for before, now in zip(spent["before"], spent["now"], strict=True)]
    console.print(f"{options.module}: speed over before {Spread.of(ratios).format()}")


def _epochs(tree: Path, module: str, arguments: Sequence[str]) -> list[float]:
    """Return the CPU seconds of each epoch but the first."""
    with tempfile.TemporaryDirectory() as scratch:
        clock = Path(scratch, "clock.txt")
        command = [sys.executable, "-c", _CLOCKED, str(clock), module, *arguments]
        command += [f"--out-dir={scratch}/run"]
        run = subprocess.run(
            command, cwd=tree, env=os.environ | _ALONE | {"PYTHONPATH": str(tree)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if not clock.exists():
            raise SystemExit(run.stdout[-2000:])
        times = [float(line) for line in clock.read_text().splitlines()]
    if len(times) < 3:
        raise SystemExit(f"expected at least 2 epochs, got {len(times) - 1}: {run.stdout[-2000:]}")
    return [end - start for start, end in itertools.pairwise(times[1:])]


if __name__ == "__main__":
    main()
