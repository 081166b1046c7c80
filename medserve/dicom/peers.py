"""Other ends of DICOM connections: where results go, and who may send."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from medserve.errors import ConfigError
from medserve.settings import Address

__all__ = ["Destination", "Sender", "ae_title", "read_destination"]

_TLS = "tls:"
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def ae_title(text: str, source: str) -> str:
    """Return an application entity title (PS3.5 6.2, VR AE); ConfigError names `source`."""
    if not (0 < len(text.strip()) <= 16 and text.isascii() and text.isprintable()):
        raise ConfigError(
            f"{source}: expected an AE title of 1 to 16 printable ASCII letters, got {text!r}"
        )
    if "\\" in text or "@" in text:
        raise ConfigError(f"{source}: an AE title holds neither a backslash nor an @, got {text!r}")
    return text.strip()


@dataclass(frozen=True)
class Destination:
    """Where objects are sent: by C-STORE, or by STOW-RS to the URL of `…/studies`.

    Attributes:
        name: As the operator wrote it, without a password.
        ae_title: Of the archive; empty for STOW-RS.
        address: Of the archive; None for STOW-RS.
        url: Of the service's studies; empty for C-STORE.
        is_tls: Whether C-STORE and C-FIND go over TLS; a URL says so itself.
    """

    name: str
    ae_title: str = ""
    address: Address | None = None
    url: str = ""
    is_tls: bool = False


def read_destination(text: str) -> Destination:
    """Read `AE@host:port`, `tls:AE@host:port` or an http(s) URL; ConfigError says which."""
    if text.startswith(("http://", "https://")):
        parts = urlsplit(text)
        if not parts.hostname or parts.username or parts.query or parts.fragment:
            raise ConfigError(
                "destination: expected the URL of a STOW-RS service without user, query and "
                "fragment; a token goes into MEDSERVE_DICOM_TOKEN"
            )
        return Destination(text, url=text.rstrip("/"))
    title, at, address = text.removeprefix(_TLS).partition("@")
    if not at:
        raise ConfigError(
            "destination: expected AE@host:port, tls:AE@host:port or the URL of a STOW-RS service, "
            f"got {text!r}"
        )
    return Destination(
        text,
        ae_title(title, "destination"),
        Address.parse(address, f"destination {text}"),
        is_tls=text.startswith(_TLS),
    )


@dataclass(frozen=True)
class Sender:
    """Who may open an association: a calling AE title, from an address or a network.

    Attributes:
        calling: The title; `*` stands for any.
        network: Where the connection may come from; None stands for anywhere.
    """

    calling: str
    network: _Network | None = None

    @classmethod
    def parse(cls, text: str) -> Sender:
        """Read `AE`, `AE@address` or `AE@network/bits`; `*` is any title."""
        title, at, network = text.partition("@")
        calling = "*" if title == "*" else ae_title(title, "--allow")
        try:
            return cls(calling, ipaddress.ip_network(network, strict=False) if at else None)
        except ValueError:
            raise ConfigError(
                f"--allow: expected AE, AE@address or AE@network/bits, got {text!r}"
            ) from None

    def admits(self, calling: str, address: str) -> bool:
        """Tell whether this is the sender."""
        if self.calling not in ("*", calling.strip()):
            return False
        try:
            peer = ipaddress.ip_address(address)
        except ValueError:
            return self.network is None
        mapped = getattr(peer, "ipv4_mapped", None)
        return self.network is None or (mapped or peer) in self.network
