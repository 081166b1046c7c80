"""The commands around the data of ultrasound frames, beside the training itself.

python -m training.trus_prostate simulate --help
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from training.config import run
from training.ultrasound.simulated_set import SimulateConfig, simulate_set

__all__ = ["COMMANDS", "run_command"]

COMMANDS = {
    "simulate": (simulate_set, SimulateConfig),
}


def run_command(arguments: Sequence[str]) -> int | None:
    """Run the command that the first argument names; None where it names none.

    `training.trus_prostate` asks this before it reads the flags of a training.
    """
    if not arguments or arguments[0] not in COMMANDS:
        return None
    main, config = COMMANDS[arguments[0]]
    return run(main, config, arguments[1:])


if __name__ == "__main__":
    code = run_command(sys.argv[1:])
    if code is None:
        print(f"error: expected one of {', '.join(COMMANDS)}", file=sys.stderr)
    sys.exit(2 if code is None else code)
