from __future__ import annotations

import contextlib
import io
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless, JPEGLossless, RLELossless
from pynetdicom import _config, dimse_messages
from pynetdicom.ae import ApplicationEntity

from medserve.dicom import intake
from medserve.dicom.intake import Intake
from medserve.dicom.peers import Destination, Sender
from medserve.dicom.receive import Receiver, ReceiverSettings
from medserve.dicom.send import echo, trusting
from medserve.dicom.spool import Spool
from medserve.errors import ConfigError
from medserve.gateway.core.tls import CertificateFiles
from medserve.settings import Address
from tests.client.certificates import HAVE_OPENSSL, self_signed
from tests.dicom.archive import send
from tests.dicom.series import series
from tests.volume_phantoms import as_bytes

pytestmark = pytest.mark.loopback

HERE = Address("127.0.0.1", 0)


class Running:
    """A receiver whose room a test decides on."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.spool = Spool(folder / "state")
        self.has_room = True
        self.arrived: list[str] = []
        self.receiver = Receiver(
            ReceiverSettings("NODE", HERE, **settings),
            Intake(self.spool, lambda: self.has_room, self.arrived.append),
        )
        self.receiver.start()

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self.receiver.address

    def stop(self) -> None:
        """Close port and folder."""
        self.receiver.stop()
        self.spool.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    node = Running(tmp_path)
    yield node
    node.stop()


def test_a_receiver_that_cannot_listen_leaves_the_library_as_it_was(tmp_path: Path) -> None:
    def of_the_library() -> tuple[Any, ...]:
        return _config.STORE_RECV_CHUNKED_DATASET, vars(dimse_messages)["NamedTemporaryFile"]

    before = of_the_library()
    spool = Spool(tmp_path / "state")
    with contextlib.closing(spool), socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        receiver = Receiver(
            ReceiverSettings("NODE", address), Intake(spool, lambda: True, lambda _: None)
        )
        with pytest.raises(ConfigError, match="port"):
            receiver.start()
    assert of_the_library() == before


def test_what_is_acknowledged_is_on_the_disk_as_it_was_sent(running: Running) -> None:
    files = series(1)
    assert send(running.address, files) == [0] * 5
    [found] = running.spool.open_series()
    images = running.spool.images(found.id)
    sent = {dcmread(io.BytesIO(each)).SOPInstanceUID: each for each in files}
    for image in images:
        assert image.path is not None
        stored = dcmread(image.path)
        assert stored == dcmread(io.BytesIO(sent[image.facts.sop_uid]))
    assert len(running.arrived) == len(images) == 5
    assert list(running.spool.receiving.iterdir()) == []


def test_other_bytes_under_a_known_identifier_are_a_warning(running: Running) -> None:
    [file] = series(1)[:1]
    other = dcmread(io.BytesIO(file))
    other.PatientName = "Corrected^Name"
    assert send(running.address, [file, as_bytes(other), file]) == [0, 0xB000, 0]


def test_no_room_is_a_status_that_invites_to_try_again(running: Running) -> None:
    running.has_room = False
    assert send(running.address, series(1)) == [intake.NO_ROOM] * 5
    running.has_room = True
    assert send(running.address, series(1)) == [0] * 5
    assert running.spool.counts()["count"]["refused"] == 5


def test_a_full_disk_refuses_and_recovers(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("medserve.dicom.spool.move", full)
        assert send(running.address, series(1)) == [intake.NO_ROOM] * 5
    assert send(running.address, series(1)) == [0] * 5


def test_an_object_that_is_another_than_was_announced_is_refused(running: Running) -> None:
    files = series(1)
    dataset = dcmread(io.BytesIO(files[0]))
    request = ApplicationEntity("SENDER")
    request.add_requested_context(dataset.SOPClassUID)
    association = request.associate(running.address.host, running.address.port, ae_title="NODE")
    assert association.is_established

    class Renamed(type(dataset)):  # type: ignore[misc]
        """Says another identifier than it holds: pynetdicom reads it as an attribute."""

        @property
        def SOPInstanceUID(self) -> str:
            return "1.2.3.4.5"

    dataset.__class__ = Renamed
    assert association.send_c_store(dataset).Status == intake.MISMATCH
    association.release()
    assert running.spool.counts()["count"]["mismatched"] == 1


@pytest.mark.parametrize(
    ("allow", "called", "calling", "is_there"),
    [
        ("FRIEND@127.0.0.1", "NODE", "FRIEND", True),
        ("FRIEND@127.0.0.1", "NODE", "STRANGER", False),
        ("FRIEND@10.0.0.0/8", "NODE", "FRIEND", False),
        ("*", "OTHER", "FRIEND", False),
    ],
)
def test_only_named_senders_that_call_this_node_come_in(
    tmp_path: Path, allow: str, called: str, calling: str, is_there: bool
) -> None:
    node = Running(tmp_path, senders=(Sender.parse(allow),))
    peer = Destination("peer", called, node.address)
    assert echo(calling, peer) is is_there
    if not is_there:
        assert node.spool.counts()["count"]["rejected"] == 1
    node.stop()


def test_associations_are_bounded_and_come_free_again(tmp_path: Path) -> None:
    node = Running(tmp_path, associations=2)
    ae = ApplicationEntity("SENDER")
    ae.add_requested_context("1.2.840.10008.1.1")
    where = (node.address.host, node.address.port)
    held = [ae.associate(*where, ae_title="NODE") for _ in range(3)]
    assert [each.is_established for each in held] == [True, True, False]
    held[0].release()
    end = time.monotonic() + 10
    while not (again := ae.associate(*where, ae_title="NODE")).is_established:
        assert time.monotonic() < end
    for each in (held[1], again):
        each.release()
    node.stop()


def test_a_broken_association_loses_only_what_was_not_acknowledged(running: Running) -> None:
    files = series(1)
    assert send(running.address, files, abort_after=3) == [0] * 3
    [found] = running.spool.open_series()
    assert len(running.spool.images(found.id)) == 3


def test_a_disk_that_fails_within_an_object_is_an_answer_and_no_broken_association(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 50 and "receiving" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        return writes(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr("os.write", full)
        assert send(running.address, series(1)) == [intake.NO_ROOM] * 5
    assert send(running.address, series(1)) == [0] * 5
    assert list(running.spool.receiving.iterdir()) == []


def test_a_file_that_cannot_be_made_is_an_answer_too(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkstemp", full)
        assert send(running.address, series(1)) == [intake.NO_ROOM] * 5
    assert send(running.address, series(1)) == [0] * 5


def test_syntaxes_are_those_that_can_be_read(running: Running) -> None:
    ae = ApplicationEntity("SENDER")
    for syntax in (RLELossless, JPEG2000Lossless):
        ae.add_requested_context("1.2.840.10008.5.1.4.1.1.4", syntax)
    ae.add_requested_context("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.2")  # big endian
    ae.add_requested_context("1.2.840.10008.5.1.4.1.1.481.3")  # structures: no rule is for them
    association = ae.associate(running.address.host, running.address.port, ae_title="NODE")
    accepted = {(each.abstract_syntax, each.transfer_syntax[0])
                for each in association.accepted_contexts}  # fmt: skip
    assert accepted == {
        ("1.2.840.10008.5.1.4.1.1.4", RLELossless),
        ("1.2.840.10008.5.1.4.1.1.4", JPEG2000Lossless),
    }
    association.release()
    assert JPEGLossless  # named in the documentation as refused without a decoder


def test_senders_at_the_same_time_do_not_disturb_each_other(running: Running) -> None:
    everything = [series(number) for number in range(8)]
    threads = [threading.Thread(target=send, args=(running.address, files)) for files in everything]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = running.spool.open_series()
    assert [len(running.spool.images(each.id)) for each in found] == [5] * 8


@pytest.mark.skipif(not HAVE_OPENSSL, reason="makes certificates with openssl")
def test_a_port_with_tls_opens_to_certificates_of_its_authority_alone(tmp_path: Path) -> None:
    own, sender, other = (self_signed(tmp_path, name) for name in ("node", "sender", "other"))
    files = CertificateFiles(*own, client_ca=sender[0])
    node = Running(tmp_path, tls=files.context())
    there = Destination("", "NODE", Address("localhost", node.address.port), is_tls=True)
    try:
        assert echo("SENDER", there, trusting(own[0], *sender))
        assert not echo("SENDER", there, trusting(own[0], *other))
        assert not echo("SENDER", there, trusting(own[0]))
        assert not echo("SENDER", replace(there, is_tls=False))
    finally:
        node.stop()
