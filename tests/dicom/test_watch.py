from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from medserve.dicom.ask import Gateway
from medserve.dicom.node import Node, NodeSettings
from medserve.dicom.panel import render
from medserve.dicom.peers import read_destination
from medserve.dicom.receive import ReceiverSettings
from medserve.dicom.rules import Rules
from medserve.dicom.send import Sender
from medserve.dicom.spool import Spool
from medserve.dicom.watch import Watch
from medserve.settings import Address
from tests.dicom.series import RULES
from tests.dicom.test_spool import made, receive, settle_all

HERE = Address("127.0.0.1", 0)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """Give a node that does nothing, with a task of each state in its table."""
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES.format(quiet_s=0))
    spool = Spool(tmp_path / "state")
    for number in (1, 2, 3):
        receive(spool, number, 1)
    settle_all(spool)
    spool.change(1, "held", "INVALID_IMAGE: expected slices <b>of 1 mm</b>", tried=True)
    task = spool.task(3)
    assert task is not None
    spool.finish(task, [made(spool, "9.9")], ["PACS@h:1"])
    [delivery] = spool.deliveries("PACS@h:1")
    spool.delivered(delivery, "held", "the archive answers 0122")
    spool.count("unreadable")
    settings = NodeSettings(ReceiverSettings("NODE", HERE), (read_destination("PACS@h:1"),))
    gateway = cast(Gateway, SimpleNamespace(timeout_s=10.0))  # nobody asks it
    running = Node(settings, Rules.read(rules), spool, gateway, Sender("NODE"))
    yield running
    running.receiver.stop()
    spool.close()


def test_the_page_shows_what_waits_and_what_is_held_and_why(node: Node) -> None:
    page = render(node, [])
    for text in (
        "DICOM node NODE",
        "It makes progress.",
        "<td>tasks waiting for the model</td><td>1</td>",
        "<td>tasks held</td><td>1</td>",
        "<td>tasks answered</td><td>1</td>",
        "expected slices &lt;b&gt;of 1 mm&lt;/b&gt;",  # a reason is text, whatever it holds
        "<td>PACS@h:1</td><td>1</td><td>held</td><td>the archive answers 0122</td>",
        "<td>objects that cannot be read</td><td>1</td>",
    ):
        assert text in page, text
    assert "No progress: answer." in render(node, ["answer"])


def test_the_page_names_no_study(node: Node) -> None:
    page = render(node, [])
    uids = [image.facts for series in (1, 2, 3) for image in node.spool.images(series)]
    assert uids
    for facts in uids:
        for text in (facts.sop_uid, facts.study_uid, facts.series_uid):
            assert text
            assert f">{text}<" not in page


@pytest.mark.loopback
def test_page_metrics_and_health_are_served_and_nothing_else(node: Node) -> None:
    watch = Watch(node, HERE)

    def get(path: str) -> tuple[str, str]:
        with urllib.request.urlopen(f"http://{watch.address}{path}", timeout=30) as answer:
            return answer.headers["Content-Type"], answer.read().decode()

    try:
        kind, page = get("/dicom")
        assert kind.startswith("text/html")
        assert "tasks held" in page
        assert 'medserve_dicom_tasks{state="held"} 1.0' in get("/metrics")[1]
        assert get("/healthz")[1] == "ok\n"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get("/state/node.sqlite")
    finally:
        watch.stop()
