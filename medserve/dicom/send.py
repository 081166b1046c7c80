"""Sending results: by C-STORE to an archive, or by STOW-RS (PS3.18 10.5)."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pynetdicom import _config
from pynetdicom.ae import ApplicationEntity
from pynetdicom.presentation import build_context

from medserve.dicom.entity import application_entity
from medserve.dicom.peers import Destination
from medserve.dicom.spool import Delivery
from medserve.errors import ConfigError

__all__ = ["Outcome", "Sender", "echo", "forward", "image_count", "trusting"]

_EXPLICIT = "1.2.840.10008.1.2.1"
_REFUSED_FOR_GOOD = {0x0122, 0x0124, 0x0117}  # class not supported, not authorised, wrong UID
_DUPLICATE = 0x0111
_BOUNDARY = "medserve-object"
_FAILED, _STORED = "00081198", "00081199"
_REASON, _INSTANCE = "00081197", "00081155"
_TIMEOUT_S = 60.0
_CONTEXTS = 128  # of one association (PS3.8 9.3.2.2)
_VERIFICATION = "1.2.840.10008.1.1"
_STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"


@dataclass(frozen=True)
class Outcome:
    """What became of one object.

    Attributes:
        state: `sent`, `waiting` (try again later) or `held` (it would be refused again).
        reason: For the operator; "" where it was sent.
    """

    state: str
    reason: str = ""


SENT = Outcome("sent")


class Sender:
    """Sends the bytes that a spool keeps.

    Args:
        ae_title: The title that the node calls itself.
        token: Bearer token for STOW-RS.
        tls: For destinations with TLS; None trusts the authorities of this system.
    """

    def __init__(
        self, ae_title: str, token: str | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._ae_title, self._token, self.tls = ae_title, token, tls or trusting()
        _config.STORE_SEND_CHUNKED_DATASET = True  # the bytes of the file, never encoded anew

    def send(self, destination: Destination, deliveries: Sequence[Delivery]) -> list[Outcome]:
        """Send objects over one connection; one outcome each, in order."""
        if destination.url:
            return [self._stow(destination, each) for each in deliveries]
        return self._c_store(destination, deliveries)

    def _c_store(self, destination: Destination, deliveries: Sequence[Delivery]) -> list[Outcome]:
        ae = _ae(self._ae_title)
        kinds = [_kind(each) for each in deliveries]
        association = _associate(
            ae, destination, [build_context(*each) for each in sorted(set(kinds))], self.tls
        )
        if not association.is_established:
            reason = "the archive rejects the association"
            if not association.is_rejected:
                reason = _tls_problem(destination, self.tls) or "no association with the archive"
            return [Outcome("waiting", reason)] * len(deliveries)
        try:
            accepted = {
                (context.abstract_syntax, context.transfer_syntax[0])
                for context in association.accepted_contexts
            }
            return [
                _store_one(association, each)
                if kind in accepted
                else Outcome("held", "the archive does not take objects of this class and syntax")
                for each, kind in zip(deliveries, kinds, strict=True)
            ]
        finally:
            if association.is_established:
                association.release()

    def _stow(self, destination: Destination, delivery: Delivery) -> Outcome:
        content = _content(delivery)
        if isinstance(content, Outcome):
            return content
        head = f"--{_BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = head + content + f"\r\n--{_BOUNDARY}--\r\n".encode()
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}',
            "Accept": "application/dicom+json",
        }
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            status, answer = _post(destination.url, body, headers, self.tls)
        except ssl.SSLError as error:
            return Outcome("waiting", _said(error))
        except (OSError, http.client.HTTPException) as error:
            return Outcome("waiting", f"the service does not answer ({type(error).__name__})")
        return _stow_outcome(status, answer, delivery.sop_uid)


def trusting(
    authority: Path | None = None, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Return the context for destinations with TLS: 1.2 or later, names checked (BCP 195).

    Args:
        authority: PEM file of the authorities to trust; those of this system if left out.
        certificate: PEM chain to show to who asks for one, with its `key`.
        key: PEM private key of that certificate.

    Raises:
        ConfigError: a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate is not None:
            context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"TLS to destinations: {authority or certificate}: {error}") from error
    return context


def forward(
    ae_title: str,
    destination: Destination,
    files: Sequence[Path],
    tls: ssl.SSLContext | None = None,
) -> Counter[int]:
    """Store files as they are, in their own transfer syntaxes; returns how often each status came.

    A file that could not be sent at all counts as -1.
    """
    _config.STORE_SEND_CHUNKED_DATASET = True
    kinds = {}
    for file in files:
        meta = read_file_meta_info(file)
        kinds[file] = (str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID))
    contexts = [build_context(*kind) for kind in sorted(set(kinds.values()))]
    context = tls or trusting()
    association = _associate(_ae(ae_title), destination, contexts[:_CONTEXTS], context)
    if not association.is_established:
        return Counter({-1: len(files)})
    statuses: Counter[int] = Counter()
    try:
        for file in files:
            try:
                statuses[int(association.send_c_store(file).get("Status", -1))] += 1
            except (RuntimeError, ValueError):  # ended, or of a kind that is not accepted
                statuses[-1] += 1
    finally:
        if association.is_established:
            association.release()
    return statuses


def echo(ae_title: str, destination: Destination, tls: ssl.SSLContext | None = None) -> bool:
    """Tell whether the other end answers C-ECHO."""
    context = tls or trusting()
    association = _associate(_ae(ae_title), destination, [build_context(_VERIFICATION)], context)
    if not association.is_established:
        return False
    try:
        answer = association.send_c_echo()
        return "Status" in answer and answer.Status == 0
    finally:
        association.release()


def image_count(
    ae_title: str, archive: Destination, study: str, series: str, tls: ssl.SSLContext
) -> int | None:
    """Ask an archive how many images a series has (C-FIND); None where it does not say."""
    from pydicom import Dataset

    association = _associate(_ae(ae_title), archive, [build_context(_STUDY_ROOT_FIND)], tls)
    if not association.is_established:
        return None
    try:
        keys = Dataset()
        keys.QueryRetrieveLevel = "SERIES"
        keys.StudyInstanceUID, keys.SeriesInstanceUID = study, series
        keys.NumberOfSeriesRelatedInstances = None
        for _, found in association.send_c_find(keys, _STUDY_ROOT_FIND):
            number = None if found is None else found.get("NumberOfSeriesRelatedInstances")
            if number is not None:
                return int(number)
        return None
    finally:
        association.release()


def _ae(ae_title: str) -> ApplicationEntity:
    ae = application_entity(ae_title)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = _TIMEOUT_S
    ae.connection_timeout = 10.0
    return ae


def _associate(
    ae: ApplicationEntity, peer: Destination, contexts: list[Any], tls: ssl.SSLContext
) -> Any:
    assert peer.address is not None  # a destination without one has a URL
    return ae.associate(
        peer.address.host,
        peer.address.port,
        contexts,
        peer.ae_title,
        tls_args=(tls, peer.address.host) if peer.is_tls else None,
    )


def _tls_problem(peer: Destination, tls: ssl.SSLContext) -> str:
    """Return why no TLS comes about with a peer that answers, "" where it does or needs none."""
    if not peer.is_tls or peer.address is None:
        return ""
    host, port = peer.address.host, peer.address.port
    try:
        with (
            socket.create_connection((host, port), timeout=_TIMEOUT_S) as plain,
            tls.wrap_socket(plain, server_hostname=host),
        ):
            return ""
    except ssl.SSLError as error:
        return _said(error)
    except OSError:
        return ""


def _said(error: ssl.SSLError) -> str:
    text = getattr(error, "verify_message", "") or error.reason or type(error).__name__
    return f"TLS with the archive fails ({text})"


def _store_one(association: Any, delivery: Delivery) -> Outcome:
    content = _content(delivery)
    if isinstance(content, Outcome):
        return content
    if not association.is_established:
        return Outcome("waiting", "the archive ended the association")
    try:
        answer = association.send_c_store(delivery.path)
    except (RuntimeError, ValueError, OSError) as error:
        return Outcome("waiting", f"sending failed ({type(error).__name__})")
    if "Status" not in answer:
        return Outcome("waiting", "the archive ended the association")
    status = int(answer.Status)
    if status in (0, _DUPLICATE) or status >> 12 == 0xB:  # a warning: it was stored
        return SENT
    held = status in _REFUSED_FOR_GOOD or status >> 8 == 0xA9
    return Outcome("held" if held else "waiting", f"the archive answers {status:04X}")


def _kind(delivery: Delivery) -> tuple[str, str]:
    """Return class and transfer syntax of an object; one that cannot be read is told later."""
    try:
        if delivery.path is None:
            raise FileNotFoundError
        syntax = read_file_meta_info(delivery.path).get("TransferSyntaxUID", _EXPLICIT)
    except (OSError, InvalidDicomError):
        syntax = _EXPLICIT
    return delivery.sop_class, str(syntax)


def _content(delivery: Delivery) -> bytes | Outcome:
    """Return the bytes of an object, or the reason why they cannot be sent."""
    try:
        if delivery.path is None:
            raise FileNotFoundError
        content = delivery.path.read_bytes()
    except OSError:
        return Outcome("held", "the file of the result is gone")
    if sha256(content).hexdigest() != delivery.digest:
        return Outcome("held", "the file of the result was altered on the disk")
    return content


def _post(url: str, body: bytes, headers: dict[str, str], tls: ssl.SSLContext) -> tuple[int, bytes]:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=tls)
    try:
        connection.request("POST", parts.path or "/", body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(2**20)
    finally:
        connection.close()


def _stow_outcome(status: int, answer: bytes, sop_uid: str) -> Outcome:
    """Read the body, never the status alone: some services store an object and answer 400."""
    try:
        content: dict[str, Any] = json.loads(answer)
        content = content[0] if isinstance(content, list) else content
        stored = {_value(each, _INSTANCE) for each in content.get(_STORED, {}).get("Value", [])}
        failed = {
            _value(each, _INSTANCE): _value(each, _REASON)
            for each in content.get(_FAILED, {}).get("Value", [])
        }
    except (ValueError, AttributeError, TypeError, IndexError):
        stored, failed = set(), {}
    reason = failed.get(sop_uid)
    if sop_uid in stored or reason == _DUPLICATE or (status == 200 and not failed):
        return SENT
    if reason is not None and (int(reason) in _REFUSED_FOR_GOOD or int(reason) >> 8 == 0xA9):
        return Outcome("held", f"the service answers {status}, failure {int(reason):04X}")
    if status in (400, 406, 413, 415):
        return Outcome("held", f"the service answers {status}")
    return Outcome("waiting", f"the service answers {status}")


def _value(item: dict[str, Any], tag: str) -> Any:
    return item.get(tag, {}).get("Value", [None])[0]
