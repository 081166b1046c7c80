"""Application entities of pynetdicom that leave no socket open."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from pynetdicom import transport
from pynetdicom.ae import ApplicationEntity

__all__ = ["application_entity"]

_transport: Any = transport


def application_entity(ae_title: str) -> ApplicationEntity:
    """Return an entity that calls, or answers, by this title."""
    # pynetdicom 3.0 leaves a socket open whose peer went first: a shutdown that fails ends its
    # attempt to close it.
    _transport.AssociationSocket._shutdown_socket = _close
    return ApplicationEntity(ae_title)


def _close(connection: Any) -> None:
    opened = connection.socket  # another thread may take it away meanwhile
    if opened is None:
        return
    with contextlib.suppress(OSError):
        opened.shutdown(socket.SHUT_RDWR)
    opened.close()
