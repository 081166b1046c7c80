"""The TCP ports of a server: given ones are checked, others are chosen."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import ExitStack
from dataclasses import dataclass, fields

from medserve.errors import ConfigError

__all__ = ["Ports", "choose_ports", "is_loopback", "port_in_use", "reachable_host", "resolve"]

_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """The three TCP ports; 0 asks for a free one. TorchServe's own HTTP is on socket files."""

    grpc: int = 0
    management: int = 0
    metrics: int = 0


def choose_ports(host: str, wanted: Ports) -> Ports:
    """The ports to use: each given one is free, each 0 is replaced.

    Raises:
        ConfigError: a given port is taken or given twice; the message names it.
    """
    chosen: dict[str, int] = {}
    with ExitStack() as stack:  # all are held until the last is chosen: no port is picked twice
        for field in sorted(fields(wanted), key=lambda each: getattr(wanted, each.name) == 0):
            port = getattr(wanted, field.name)
            address = host if field.name == "grpc" else _LOOPBACK
            try:
                held = stack.enter_context(_listen(address, port))
            except OSError as error:
                raise port_in_use(field.name, address, port, str(error.strerror)) from None
            chosen[field.name] = held.getsockname()[1]
    return Ports(**chosen)


def port_in_use(name: str, host: str, port: int, reason: str) -> ConfigError:
    """The one line for a port that cannot be had."""
    option = "--port" if name == "grpc" else f"--{name}-port"
    return ConfigError(
        f"port {port} on {host} cannot be used for {name} ({reason}); is a server running "
        f"already? Choose another with {option}, or 0 for a free one"
    )


def resolve(host: str) -> str:
    """The IP address of `host`: TorchServe takes no names."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ConfigError(
            f"expected an address of this machine, got {host!r}: {error.strerror}"
        ) from None


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the IP address."""
    return ipaddress.ip_address(address).is_loopback


def reachable_host(address: str) -> str:
    """Where a client on this machine finds a server that listens on `address`."""
    ip = ipaddress.ip_address(address)
    if not ip.is_unspecified:
        return address
    return _LOOPBACK if ip.version == 4 else "::1"


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        # As Java does: connections that linger from an earlier run do not block the port.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((host, port))
        server.listen(1)
    except OSError:
        server.close()
        raise
    return server
