"""The commands around the data of ultrasound frames, beside the training itself.

python -m training.trus_prostate simulate --help
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from training.config import run
from training.ultrasound.annotations import ImportConfig, import_annotations
from training.ultrasound.annotator import AnnotateConfig, annotate
from training.ultrasound.prepare import PrepareConfig, prepare
from training.ultrasound.simulated_set import SimulateConfig, simulate_set

__all__ = ["COMMANDS", "run_command"]


def _prepare(config: PrepareConfig) -> None:
    prepare(config)


def _import(config: ImportConfig) -> None:
    import_annotations(config)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "simulate": lambda arguments: run(simulate_set, SimulateConfig, arguments),
    "prepare": lambda arguments: run(_prepare, PrepareConfig, arguments),
    "annotate": lambda arguments: run(annotate, AnnotateConfig, arguments),
    "import": lambda arguments: run(_import, ImportConfig, arguments),
}


def run_command(arguments: Sequence[str]) -> int | None:
    """Run the command that the first argument names; None where it names none.

    `training.trus_prostate` asks this before it reads the flags of a training.
    """
    if not arguments or arguments[0] not in COMMANDS:
        return None
    return COMMANDS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    code = run_command(sys.argv[1:])
    if code is None:
        print(f"error: expected one of {', '.join(COMMANDS)}", file=sys.stderr)
    sys.exit(2 if code is None else code)
