"""`medserve models …` and `medserve promote` against a gateway over an engine in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medserve.archive.read import verify_archive
from medserve.archive.store import select_archives
from medserve.cli.main import app
from medserve.client import Client
from medserve.gateway.server import GatewayServer
from tests.gateway.fake_engine import FakeEngine, Request
from tests.gateway.running import quick_settings, running_gateway_of
from tests.plain_archive import write_archive

pytestmark = pytest.mark.loopback


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GatewayServer]:
    """A gateway with `tiny` 1.0 and 2.0 in its store; both see `dark` in everything."""
    store = tmp_path / "store"
    write_archive(store, "tiny", "1.0")
    archives = select_archives(store)
    write_archive(store, "tiny", "2.0")

    seen = {
        "label": "dark",
        "label_id": 0,
        "probability": 1.0,
        "probabilities": {"dark": 1.0},
        "top": [{"label": "dark", "probability": 1.0}],
        "review": False,
        "novelty": 0.1,
        "unlike_training": False,
    }

    def answer(request: Request) -> bytes:
        digest = verify_archive(store / f"tiny-{request.version}.mar").digest
        content = {"status": "ok", "version": request.version, "archive_digest": digest}
        packed = sorted(each for each in request.inputs if each.startswith("data."))
        items = [{"index": place, "status": "ok", **seen} for place, _ in enumerate(packed)]
        return json.dumps(content | ({"items": items} if items else seen)).encode()

    server = GatewayServer(quick_settings(store), lambda: FakeEngine(answer), archives)
    with running_gateway_of(server):
        monkeypatch.setenv("MEDSERVE_ADDRESS", server.addresses.grpc)
        yield server


def medserve(*arguments: str) -> str:
    """Return what a command prints; it must succeed."""
    found = CliRunner().invoke(app, list(arguments))
    assert found.exit_code == 0, found.output
    return found.output


def refused(*arguments: str) -> str:
    """Return the line in which a command ends that is refused."""
    found = CliRunner().invoke(app, list(arguments))
    assert found.exit_code == 2, found.output
    return " ".join(found.output.split())


def test_a_model_goes_from_one_version_to_the_next_and_back(gateway: GatewayServer) -> None:
    assert medserve("models", "add", "tiny-2.0.mar").startswith("tiny 2.0 is served")
    assert "already" in refused("models", "add", "tiny-2.0.mar")
    assert medserve("models", "default", "tiny", "2.0") == "2.0 is the default version of tiny\n"
    listed = json.loads(medserve("models", "list", "--json"))
    assert [(each["version"], each["default"]) for each in listed] == [
        ("1.0", False),
        ("2.0", True),
    ]
    assert json.loads(medserve("models", "--json")) == listed
    assert "2 workers" in medserve("models", "scale", "tiny", "2")
    assert medserve("models", "rollback", "tiny").startswith("1.0 is the default")
    assert "default version" in refused("models", "remove", "tiny", "1.0")
    assert "unregistered" in medserve("models", "remove", "tiny", "2.0")
    assert "no intact archive" not in medserve("models", "add", "tiny-2.0.mar", "--default")
    assert "a path or an address" in refused("models", "add", "../tiny-2.0.mar")


class Balanced(HTMLParser):
    """Counts the elements of a page; each must end."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        """Note an element."""
        self.seen.append(tag)
        if tag not in ("meta", "line", "circle", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close the element."""
        if tag not in ("line", "circle", "rect"):
            assert self.open.pop() == tag


def test_a_version_is_promoted_when_the_comparison_allows_it(
    gateway: GatewayServer, tmp_path: Path
) -> None:
    medserve("models", "add", "tiny-2.0.mar")
    report = tmp_path / "report.html"
    assert "has been copied" in refused("promote", "tiny", "2.0", "--report", str(report))
    told = medserve("models", "route", "tiny", "--shadow", "2.0", "--shadow-share", "1")
    assert told == "tiny: 100% of the calls are copied to 2.0\n"
    assert "a route leads to" in refused("models", "remove", "tiny", "2.0")
    with Client(gateway.addresses.grpc) as client:
        pairs = 0
        while pairs < 20:
            client.classify_one("tiny", b"\x89PNG\r\n\x1a\n image")
            pairs = json.loads(medserve("models", "evidence", "tiny", "--json"))["pairs"]
    told = refused("promote", "tiny", "2.0", "--report", str(report))
    assert "may be worse by" in told
    assert "1.0 stays the default version." in report.read_text(encoding="utf-8")
    told = medserve("promote", "tiny", "2.0", "--allowed", "0.5", "--report", str(report))
    assert told.startswith("2.0 is the default version of tiny: ")
    page = Balanced()
    page.feed(report.read_text(encoding="utf-8"))
    assert page.open == []
    assert page.seen.count("svg") == 2
    assert medserve("models", "rollback", "tiny").startswith("1.0 is the default")
