"""The storage service of a node: C-ECHO and C-STORE, bounded, from senders that are named."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from ssl import SSLContext
from typing import Any

from pynetdicom import _config, dimse_messages, evt

from medserve.dicom.classes import STORED_CLASSES, readable_syntaxes
from medserve.dicom.entity import application_entity
from medserve.dicom.headers import Facts
from medserve.dicom.intake import MISMATCH, SUCCESS, IncomingFile, Intake
from medserve.dicom.peers import Sender
from medserve.errors import ConfigError
from medserve.settings import Address

__all__ = ["Receiver", "ReceiverSettings"]

_PERMANENT, _SERVICE_USER = 0x01, 0x01  # PS3.8 9.3.4: result and source of a rejection
_CALLING_UNKNOWN, _CALLED_UNKNOWN = 0x03, 0x07
_VERIFICATION = "1.2.840.10008.1.1"
_PDU_BYTES = 128 * 1024
_NETWORK_S, _MESSAGE_S = 60.0, 60.0  # silence after which an association is ended

_messages: Any = dimse_messages
logger = logging.getLogger(__name__)


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
        intake: Where objects go.
    """

    def __init__(self, settings: ReceiverSettings, intake: Intake) -> None:
        self._settings, self._intake = settings, intake
        self._server: Any = None
        # No key or header goes into a log.
        _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
        self._replaced = _messages.NamedTemporaryFile
        self._ae = application_entity(settings.ae_title)
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
        self._keep_on_disk()
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
            self._keep_in_memory()
            raise ConfigError(f"DICOM port {address}: {error.strerror}") from error

    def stop(self) -> None:
        """End every association and close the port."""
        self._ae.shutdown()
        self._keep_in_memory()

    def _keep_on_disk(self) -> None:
        """Let objects go to the disk while they come in.

        pynetdicom has no parameter for either, so this holds for the whole process.
        """
        _config.STORE_RECV_CHUNKED_DATASET = True
        _messages.NamedTemporaryFile = partial(IncomingFile, self._intake.folder)

    def _keep_in_memory(self) -> None:
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
        self._intake.count("rejected")
        logger.warning("an association from %s was rejected: %s", address,
                       "it calls another AE title" if diagnostic == _CALLED_UNKNOWN
                       else "its sender is not allowed (--allow)")  # fmt: skip
        association.acse.send_reject(_PERMANENT, _SERVICE_USER, diagnostic)
        association.kill()

    def _on_store(self, event: evt.Event) -> int:
        request: Any = event.request
        if (error := request._dataset_file.error) is not None:
            return self._intake.refuse(error)
        asked = (str(request.AffectedSOPInstanceUID), str(request.AffectedSOPClassUID))

        def check(facts: Facts) -> int:
            return SUCCESS if (facts.sop_uid, facts.sop_class) == asked else MISMATCH

        calling = event.assoc.requestor.ae_title.strip()
        return self._intake.take(Path(event.dataset_path), calling, check).status
