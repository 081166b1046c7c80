"""An archive that takes what it is sent, and remembers the bytes of each object."""

from __future__ import annotations

import ssl
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity

from medserve.dicom.classes import STORED_CLASSES
from medserve.settings import Address

__all__ = ["Archive", "running_archive", "send"]

NO_ROOM = 0xA700


class Archive:
    """Stores in memory.

    Attributes:
        digests: For each object, the digests of the bytes that came under its identifier.
        refusing: Set while every object is refused.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.digests: dict[str, list[str]] = defaultdict(list)
        self.classes: dict[str, str] = {}
        self.contents: dict[str, bytes] = {}
        self.refusing = threading.Event()
        self._ae = ApplicationEntity("SINK")
        for sop_class in STORED_CLASSES:
            self._ae.add_supported_context(sop_class)
        self._server: Any = self._ae.start_server(
            ("127.0.0.1", 0),
            block=False,
            evt_handlers=[(evt.EVT_C_STORE, self._on_store)],
            ssl_context=tls,
        )

    @property
    def destination(self) -> str:
        """Where it is, as a node names it."""
        return f"SINK@127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """Where it listens on loopback."""
        port: int = self._server.server_address[1]
        return port

    def stop(self) -> None:
        """Close the port."""
        self._ae.shutdown()

    def _on_store(self, event: evt.Event) -> int:
        if self.refusing.is_set():
            return NO_ROOM
        request: Any = event.request
        uid = str(request.AffectedSOPInstanceUID)
        self.digests[uid].append(sha256(event.encoded_dataset(include_meta=False)).hexdigest())
        content = event.encoded_dataset()
        self.classes[uid] = str(request.AffectedSOPClassUID)
        self.contents[uid] = content
        return 0x0000


def send(
    address: Address, files: Sequence[bytes], calling: str = "SENDER", *, abort_after: int = -1
) -> list[int]:
    """Store files over one association; the statuses that came, fewer where it broke.

    `abort_after` ends the association rudely after so many files.
    """
    datasets = [dcmread(DicomBytesIO(content)) for content in files]
    ae = ApplicationEntity(calling)
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 5.0
    for sop_class, syntax in sorted(
        {(each.SOPClassUID, each.file_meta.TransferSyntaxUID) for each in datasets}
    ):
        ae.add_requested_context(sop_class, syntax)
    association = ae.associate(address.host, address.port, ae_title="NODE")
    statuses: list[int] = []
    if not association.is_established:
        return statuses
    for place, dataset in enumerate(datasets):
        if place == abort_after:
            association.abort()
            return statuses
        try:
            answer = association.send_c_store(dataset)
        except (RuntimeError, ValueError):
            return statuses
        if "Status" not in answer:
            return statuses
        statuses.append(int(answer.Status))
    association.release()
    return statuses


@contextmanager
def running_archive(tls: ssl.SSLContext | None = None) -> Iterator[Archive]:
    """Give an archive for the time of the block."""
    archive = Archive(tls)
    try:
        yield archive
    finally:
        archive.stop()
