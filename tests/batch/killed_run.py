"""A run in a process of its own, to be killed: notes in a file what it was asked.

python -m tests.batch.killed_run STUDIES OUT LOG
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medserve.batch.asking import Outcome
from medserve.batch.inputs import Content
from tests.batch.stand_in import StandIn, joined, run_batch

_ANSWER_S = 0.002


class _Noting(StandIn):
    def ask(self, inputs: Sequence[Content], params: Mapping[str, Any]) -> Sequence[Outcome]:
        """Note the inputs, in one write each, and answer a little later."""
        log = os.open(sys.argv[3], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.write(log, b"".join(joined(content) + b"\n" for content in inputs))
        os.close(log)
        time.sleep(_ANSWER_S)
        return super().ask(inputs, params)


if __name__ == "__main__":
    run_batch(Path(sys.argv[1]), Path(sys.argv[2]), _Noting())
