"""The storage service of a node: C-ECHO and C-STORE, bounded, from senders that are named.

What a sender is told (PS3.4 B.2.3, PS3.7 annex C):

| status | meaning |
|---|---|
| 0000 | it is on the disk; or it is a result that has come back and is not worked on |
| B000 | another object with this identifier is here already; the first one is kept |
| A700 | no room: the disk, the queue or the limit of the operator; send again later |
| A900 | the object is another one than the request says |
| C000 | the object cannot be read |
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from ssl import SSLContext
from typing import Any

from pynetdicom import _config, dimse_messages, evt
from pynetdicom.ae import ApplicationEntity

from medserve.dicom.classes import STORED_CLASSES, readable_syntaxes
from medserve.dicom.headers import read_facts
from medserve.dicom.peers import Sender
from medserve.dicom.spool import Receipt, Spool
from medserve.errors import ConfigError, InvalidImageError
from medserve.settings import Address

__all__ = ["Receiver", "ReceiverSettings"]

SUCCESS, COERCED, NO_ROOM, MISMATCH, UNREADABLE = 0x0000, 0xB000, 0xA700, 0xA900, 0xC000
_PERMANENT, _SERVICE_USER = 0x01, 0x01  # PS3.8 9.3.4: result and source of a rejection
_CALLING_UNKNOWN, _CALLED_UNKNOWN = 0x03, 0x07
_VERIFICATION = "1.2.840.10008.1.1"
_PDU_BYTES = 128 * 1024
_NETWORK_S, _MESSAGE_S = 60.0, 60.0  # silence after which an association is ended

_messages: Any = dimse_messages
logger = logging.getLogger(__name__)


class _Incoming:
    """The file of an object that is on its way in, as pynetdicom uses it.

    An error of the disk would end the thread that reads the connection, and the sender would wait
    for an answer that never comes. It is kept instead, for the answer.
    """

    def __init__(self, folder: Path, **_: object) -> None:
        self.error: OSError | None = None
        self.file = self  # what is flushed
        self._descriptor, self.name = -1, str(folder / "none")
        try:
            self._descriptor, self.name = tempfile.mkstemp(dir=folder)
        except OSError as error:
            self.error = error

    def write(self, data: bytes) -> int:
        """Write all of the data, or remember why not."""
        left = memoryview(data)
        try:
            while left and self.error is None:
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            self.error = error
            os.ftruncate(self._descriptor, 0)
        return len(data)

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def tell(self) -> int:
        """Return the place of the next byte; the head of the file is written with it."""
        return os.lseek(self._descriptor, 0, os.SEEK_CUR) if self.error is None else 0

    def close(self) -> None:
        """Close the file, and delete what was not moved away."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            with contextlib.suppress(OSError):
                os.unlink(self.name)

    def __del__(self) -> None:  # of an association that was broken off
        self.close()


@dataclass(frozen=True)
class ReceiverSettings:
    """Where a node listens, and to whom.

    Attributes:
        ae_title: Its own title; an association that calls another one is rejected.
        address: Of the listening port; port 0 takes a free one.
        senders: Who may open an association; empty admits everybody.
        associations: How many are open at the same time.
        tls: Context of the port, which may ask for a client's certificate; None for plain text.
    """

    ae_title: str
    address: Address
    senders: tuple[Sender, ...] = ()
    associations: int = 20
    tls: SSLContext | None = None


class Receiver:
    """Takes objects into a spool.

    Args:
        settings: Where to listen.
        spool: Where objects are kept.
        has_room: Tells whether one more object may be taken.
        arrived: Called after each new image with the identifier of its series.
    """

    def __init__(
        self,
        settings: ReceiverSettings,
        spool: Spool,
        has_room: Callable[[], bool],
        arrived: Callable[[str], None],
    ) -> None:
        self._settings, self._spool = settings, spool
        self._has_room, self._arrived = has_room, arrived
        self._server: Any = None
        self._full = threading.Event()
        # Objects go to the disk while they come in, and no key or header into a log.
        _config.STORE_RECV_CHUNKED_DATASET = True
        _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
        # pynetdicom has no parameter for either.
        self._replaced = _messages.NamedTemporaryFile
        _messages.NamedTemporaryFile = partial(_Incoming, spool.receiving)
        self._ae = ApplicationEntity(settings.ae_title)
        self._ae.maximum_associations = settings.associations
        self._ae.maximum_pdu_size = _PDU_BYTES
        self._ae.network_timeout = _NETWORK_S
        self._ae.dimse_timeout = _MESSAGE_S
        self._ae.add_supported_context(_VERIFICATION)
        for sop_class in STORED_CLASSES:
            self._ae.add_supported_context(sop_class, list(readable_syntaxes()))

    @property
    def address(self) -> Address:
        """Where it listens."""
        host, port = self._server.server_address[:2]
        return Address(host, port)

    def start(self) -> None:
        """Listen; ConfigError where the port cannot be taken."""
        address = self._settings.address
        try:
            self._server = self._ae.start_server(
                (address.host, address.port),
                block=False,
                ssl_context=self._settings.tls,
                evt_handlers=[
                    (evt.EVT_REQUESTED, self._on_requested),
                    (evt.EVT_C_STORE, self._on_store),
                ],
            )
        except OSError as error:
            raise ConfigError(f"DICOM port {address}: {error.strerror}") from error

    def stop(self) -> None:
        """End every association and close the port."""
        self._ae.shutdown()
        _config.STORE_RECV_CHUNKED_DATASET = False
        _messages.NamedTemporaryFile = self._replaced

    def _on_requested(self, event: evt.Event) -> None:
        """Reject whom the operator has not named (called before pynetdicom negotiates)."""
        association = event.assoc
        request: Any = association.requestor.primitive
        calling, called = request.calling_ae_title.strip(), request.called_ae_title.strip()
        address = str(association.requestor.address)
        senders = self._settings.senders
        if called != self._settings.ae_title:
            diagnostic = _CALLED_UNKNOWN
        elif senders and not any(each.admits(calling, address) for each in senders):
            diagnostic = _CALLING_UNKNOWN
        else:
            return
        self._spool.count("rejected")
        logger.warning("an association from %s was rejected: %s", address,
                       "it calls another AE title" if diagnostic == _CALLED_UNKNOWN
                       else "its sender is not allowed (--allow)")  # fmt: skip
        association.acse.send_reject(_PERMANENT, _SERVICE_USER, diagnostic)
        association.kill()

    def _on_store(self, event: evt.Event) -> int:
        try:
            return self._store(event)
        except OSError as error:
            self._say_full(error.strerror or type(error).__name__)
            return NO_ROOM
        except Exception as error:  # whatever a foreign object provokes ends here, and unquoted
            logger.error("an object could not be taken: %s", type(error).__name__)
            self._spool.count("failed")
            return NO_ROOM

    def _store(self, event: evt.Event) -> int:
        if not self._has_room():
            self._say_full("the limit of the operator or of the disk is reached")
            return NO_ROOM
        request: Any = event.request
        if (error := request._dataset_file.error) is not None:
            raise error
        path = Path(event.dataset_path)
        try:
            facts = read_facts(path)
        except InvalidImageError:
            self._spool.count("unreadable")
            return UNREADABLE
        if (facts.sop_uid, facts.sop_class) != (
            str(request.AffectedSOPInstanceUID),
            str(request.AffectedSOPClassUID),
        ):
            self._spool.count("mismatched")
            return MISMATCH
        if facts.is_result or self._spool.is_own(facts):
            self._spool.count("results_ignored")
            return SUCCESS
        calling = event.assoc.requestor.ae_title.strip()
        receipt = self._spool.receive(path, facts, calling)
        if self._full.is_set():
            self._full.clear()
            logger.warning("there is room again")
        if receipt is Receipt.NEW:
            self._arrived(facts.series_uid)
        return COERCED if receipt is Receipt.OTHER_BYTES else SUCCESS

    def _say_full(self, reason: str) -> None:
        """Log the first refusal of a row of them."""
        self._spool_count_refused()
        if not self._full.is_set():
            self._full.set()
            logger.error("objects are refused for now (A700): %s", reason)

    def _spool_count_refused(self) -> None:
        try:
            self._spool.count("refused")
        except Exception:  # the disk is full
            logger.debug("a refusal could not be counted")
