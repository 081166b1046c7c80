"""A node in a process of its own, with a stand-in for the gateway: STATE RULES PORT SINK.

A file named `engine-down` in the state folder makes the stand-in unreachable.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from medserve.dicom.ask import Answer, Gateway
from medserve.dicom.node import Clock, Node, NodeSettings, Room
from medserve.dicom.peers import read_destination
from medserve.dicom.receive import ReceiverSettings
from medserve.dicom.rules import Rule, Rules
from medserve.dicom.send import Sender
from medserve.dicom.spool import Spool
from medserve.errors import ServerUnreachableError
from medserve.settings import Address
from tests.dicom.series import answer_volume


class StandIn(Gateway):
    """Answers as a gateway does, without one."""

    def __init__(self, folder: Path) -> None:
        self.timeout_s = 10.0
        self._folder = folder

    def ask(self, rule: Rule, files: Sequence[Path], inputs: Sequence[str] = ()) -> Answer:
        """Return two boxes."""
        if (self._folder / "engine-down").exists():
            raise ServerUnreachableError("nobody answers at the address of the test")
        return answer_volume(rule, files)


def main(state: str, rules: str, port: str, sink: str) -> None:
    """Run until the process is killed."""
    logging.basicConfig(level="INFO", format="%(levelname)s %(name)s %(message)s")
    folder = Path(state)
    settings = NodeSettings(
        receiver=ReceiverSettings("NODE", Address("127.0.0.1", int(port))),
        destinations=(read_destination(sink),),
        room=Room(free_share=0.0),
        tick_s=0.1,
    )
    node = Node(
        settings,
        Rules.read(Path(rules)),
        Spool(folder, Clock()),
        StandIn(folder),
        Sender("NODE"),
    )
    node.start()
    print("ready", flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
