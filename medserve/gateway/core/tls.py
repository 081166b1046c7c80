"""TLS for the gateway's ports, with certificates that may be replaced while it runs.

A certificate that was renewed on disk counts for the next connection; those that are open keep
theirs. With an authority for clients (`client_ca`) every client must show a certificate of it.
"""

from __future__ import annotations

import logging
import math
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc

from medserve.errors import ConfigError

__all__ = ["CertificateFiles", "grpc_credentials"]

_VERSION, _GENERALIZED_TIME = 0xA0, 0x18  # tags of DER

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CertificateFiles:
    """PEM files of one server."""

    certificate: Path
    private_key: Path
    client_ca: Path | None = None

    def __post_init__(self) -> None:
        self.context()  # raises where a file is missing or the two do not belong together

    @property
    def signature(self) -> tuple[int, ...]:
        """Another one whenever a file was replaced."""
        files = [file for file in (self.certificate, self.private_key, self.client_ca) if file]
        found = [file.stat() for file in files]
        return tuple(part for each in found for part in (each.st_mtime_ns, each.st_ino))

    @property
    def expires_at(self) -> float:
        """When the server's certificate ends, in seconds since 1970; NaN while it is replaced."""
        try:
            return _not_after(self.certificate.read_text(encoding="ascii", errors="replace"))
        except (OSError, ValueError, IndexError):
            return math.nan

    def context(self) -> ssl.SSLContext:
        """The files checked by Python's own TLS, which says what is wrong."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.private_key)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"TLS: {self.certificate}, {self.private_key}: {error}") from error
        return context


def grpc_credentials(files: CertificateFiles) -> grpc.ServerCredentials:
    """Credentials that look at the files at each handshake and take new ones over."""
    follower = _Follower(files)
    return grpc.dynamic_ssl_server_credentials(
        follower.configuration(),
        follower.changed,  # type: ignore[arg-type]  # the stubs forget that None means no change
        require_client_authentication=files.client_ca is not None,
    )


def _not_after(pem: str) -> float:
    """Return the end of the first certificate (RFC 5280, 4.1), which Python's TLS does not tell."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    body = pem[pem.index(begin) : pem.index(end) + len(end)]
    [certificate] = _der(ssl.PEM_cert_to_DER_cert(body))
    fields = [each for each in _der(_der(certificate[1])[0][1]) if each[0] != _VERSION]
    kind, text = _der(fields[3][1])[
        1
    ]  # after serial number, algorithm and issuer; not before, after
    year = "%Y" if kind == _GENERALIZED_TIME else "%y"  # %y turns the century at 69, the RFC at 50
    ends = datetime.strptime(text.decode("ascii"), f"{year}%m%d%H%M%SZ").replace(tzinfo=UTC)
    return ends.timestamp()


def _der(content: bytes) -> list[tuple[int, bytes]]:
    """Return tag and value of each element of DER, none of them opened."""
    found, place = [], 0
    while place < len(content):
        tag, size, start = content[place], content[place + 1], place + 2
        if size & 0x80:
            start += size & 0x7F
            size = int.from_bytes(content[place + 2 : start], "big")
        place = start + size
        found.append((tag, content[start:place]))
    return found


class _Follower:
    """Remembers which files were taken last."""

    def __init__(self, files: CertificateFiles) -> None:
        self._files = files
        self._signature = files.signature

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """The files as gRPC wants them."""
        files = self._files
        pair = (files.private_key.read_bytes(), files.certificate.read_bytes())
        authority = files.client_ca.read_bytes() if files.client_ca else None
        return grpc.ssl_server_certificate_configuration([pair], authority)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """New files that can be used, None while there are none; called by gRPC's threads."""
        try:
            signature = self._files.signature
            if signature == self._signature:
                return None
            self._files.context()  # half-written or mismatched files must not end the service
            configuration = self.configuration()
        except (ConfigError, OSError) as error:
            logger.error("the certificate of before still counts: %s", error)
            return None
        self._signature = signature
        logger.warning("a new certificate was taken from %s", self._files.certificate)
        return configuration
