from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from medserve.dicom.peers import read_destination
from medserve.dicom.send import Sender, trusting
from medserve.dicom.spool import Delivery
from medserve.errors import ConfigError
from medserve.gateway.core.tls import CertificateFiles
from tests.client.certificates import HAVE_OPENSSL, self_signed
from tests.dicom.archive import Archive, running_archive
from tests.dicom.series import series

pytestmark = pytest.mark.loopback

UID = "2.25.1"


@pytest.fixture
def delivery(tmp_path: Path) -> Delivery:
    content = series(1)[0]
    path = tmp_path / "object.dcm"
    path.write_bytes(content)
    digest = sha256(content).hexdigest()
    return Delivery(UID, "1.2.840.10008.5.1.4.1.1.4", "d", path, digest, 1, 0, 0.0)


@pytest.fixture
def sink() -> Iterator[Archive]:
    with running_archive() as running:
        yield running


def test_an_archive_gets_the_bytes_of_the_file_each_time(delivery: Delivery, sink: Archive) -> None:
    for _ in range(2):
        [outcome] = Sender("NODE").send(read_destination(sink.destination), [delivery])
        assert outcome.state == "sent"
    [digests] = sink.digests.values()
    assert len(digests) == 2
    assert len(set(digests)) == 1


def test_an_archive_that_refuses_for_now_is_tried_again(delivery: Delivery, sink: Archive) -> None:
    sink.refusing.set()
    [outcome] = Sender("NODE").send(read_destination(sink.destination), [delivery])
    assert (outcome.state, outcome.reason) == ("waiting", "the archive answers A700")


def test_a_class_that_the_archive_does_not_take_is_held(delivery: Delivery, sink: Archive) -> None:
    other = replace(delivery, sop_class="1.2.840.10008.5.1.4.1.1.481.3")
    outcomes = Sender("NODE").send(read_destination(sink.destination), [other, delivery])
    assert [each.state for each in outcomes] == ["held", "sent"]


def test_nobody_there_is_tried_again(delivery: Delivery) -> None:
    [outcome] = Sender("NODE").send(read_destination("SINK@127.0.0.1:9"), [delivery])
    assert outcome.state == "waiting"


def test_a_file_that_was_altered_is_not_sent(delivery: Delivery, sink: Archive) -> None:
    assert delivery.path is not None
    delivery.path.write_bytes(delivery.path.read_bytes() + b"\0\0")
    [outcome] = Sender("NODE").send(read_destination(sink.destination), [delivery])
    assert outcome.state == "held"
    assert "altered" in outcome.reason
    assert sink.digests == {}


def _failed(reason: int) -> dict[str, Any]:
    item = {"00081155": {"Value": [UID]}, "00081197": {"Value": [reason]}}
    return {"00081198": {"Value": [item]}}


STORED = {"00081199": {"Value": [{"00081155": {"Value": [UID]}}]}}


@pytest.mark.parametrize(
    ("status", "answer", "state"),
    [
        (200, STORED, "sent"),
        (200, {}, "sent"),
        (400, STORED, "sent"),  # some services store an object beside one that they refuse
        (202, STORED, "sent"),
        (409, _failed(0x0111), "sent"),  # it is there already
        (409, _failed(0x0110), "waiting"),
        (409, _failed(0x0122), "held"),
        (409, _failed(0xA900), "held"),
        (415, None, "held"),
        (503, None, "waiting"),
        (500, None, "waiting"),
        (401, None, "waiting"),
    ],
)
def test_the_body_of_a_service_counts_before_its_status(
    delivery: Delivery, status: int, answer: dict[str, Any] | None, state: str
) -> None:
    seen: list[tuple[dict[str, str], bytes]] = []

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((dict(self.headers), body))
            content = b"<html>" if answer is None else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/dicom-web/studies"
        [outcome] = Sender("NODE", token="secret").send(read_destination(url), [delivery])
        thread.join()
    assert outcome.state == state
    headers, body = seen[0]
    assert delivery.path is not None
    assert delivery.path.read_bytes() in body
    assert headers["Authorization"] == "Bearer secret"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Return chain and key of an archive, of a node, and of somebody else."""
    if not HAVE_OPENSSL:
        pytest.skip("makes certificates with openssl")
    folder = tmp_path_factory.mktemp("tls")
    return {name: self_signed(folder, name) for name in ("archive", "node", "other")}


Certificates = dict[str, tuple[Path, Path]]


def test_objects_go_over_tls_to_an_archive_that_is_trusted_and_trusts_the_node(
    delivery: Delivery, certificates: Certificates
) -> None:
    theirs, own = certificates["archive"], certificates["node"]
    files = CertificateFiles(*theirs, client_ca=own[0])
    with running_archive(files.context()) as sink:
        there = read_destination(f"tls:SINK@localhost:{sink.port}")
        for tls, state in (
            (trusting(theirs[0], *own), "sent"),
            (trusting(theirs[0]), "waiting"),
            (trusting(theirs[0], *certificates["other"]), "waiting"),
            (trusting(certificates["other"][0], *own), "waiting"),
        ):
            [outcome] = Sender("NODE", tls=tls).send(there, [delivery])
            assert outcome.state == state
        assert outcome.reason.startswith("TLS with the archive fails (self")
    [digests] = sink.digests.values()
    assert len(digests) == 1


def test_a_name_that_is_not_in_the_certificate_is_not_trusted(
    delivery: Delivery, certificates: Certificates
) -> None:
    theirs = certificates["archive"]
    with running_archive(CertificateFiles(*theirs).context()) as sink:
        there = read_destination(f"tls:{sink.destination}")  # by address; it names localhost
        [outcome] = Sender("NODE", tls=trusting(theirs[0])).send(there, [delivery])
    assert outcome.state == "waiting"
    assert "TLS" in outcome.reason
    assert sink.digests == {}


def test_an_archive_without_tls_gets_nothing_that_was_meant_for_one_with_it(
    delivery: Delivery, certificates: Certificates, sink: Archive
) -> None:
    tls = trusting(certificates["archive"][0])
    there = read_destination(f"tls:SINK@localhost:{sink.port}")
    [outcome] = Sender("NODE", tls=tls).send(there, [delivery])
    assert outcome.state == "waiting"
    assert sink.digests == {}


@pytest.mark.parametrize(("trusted", "state"), [("archive", "sent"), ("other", "waiting")])
def test_a_service_over_https_has_to_be_trusted(
    delivery: Delivery, certificates: Certificates, trusted: str, state: str
) -> None:
    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Service) as server:
        context = CertificateFiles(*certificates["archive"]).context()
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"https://localhost:{server.server_address[1]}/studies"
        sender = Sender("NODE", tls=trusting(certificates[trusted][0]))
        [outcome] = sender.send(read_destination(url), [delivery])
        thread.join()
    assert outcome.state == state
    assert ("TLS" in outcome.reason) == (state == "waiting")


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.pem"):
        trusting(tmp_path / "none.pem")
