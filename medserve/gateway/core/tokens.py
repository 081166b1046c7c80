"""Bearer tokens: who may call, and which models; read from a file that holds no token.

    {"tokens": [{"id": "9f2c41aa", "name": "ward-7", "models": ["mednist"], "expires": "2027-06-30",
                 "salt": "…", "sha256": "…"}]}

`"manage": true` lets the owner change what is served of these models.

A token is `ms_<id>_<secret>`. The id finds the entry; the SHA-256 of salt and secret must match.
One round of SHA-256 is enough because the secret is 256 random bits from `new_token`: unlike a
password it cannot be guessed from its hash, and checking it costs a call nothing.

The file is looked at again whenever it changes, at most once a second: an entry that is added
counts at once, one that is removed or expired no longer counts. Two entries may have one name, so
a token is rotated by adding the new one, handing it out, and removing the old one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from medserve.errors import ConfigError
from medserve.gateway.core.calls import EVERY_MODEL, Caller
from medserve.whole_file import write_whole

__all__ = ["TokenEntry", "TokenFile", "add_token", "new_token", "read_entries"]

_PREFIX = "ms"
_LOOK_AGAIN_S = 1.0
_KEYS = {"id", "name", "models", "expires", "manage", "salt", "sha256"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenEntry:
    """One token as the file knows it."""

    id: str
    name: str
    models: tuple[str, ...]
    salt: str = field(repr=False)
    sha256: str = field(repr=False)
    expires: date | None = None  # the last day on which it counts, UTC
    manages: bool = False

    def matches(self, secret: str) -> bool:
        """Whether the secret is the one; takes the same time either way."""
        return hmac.compare_digest(_hash(self.salt, secret), self.sha256)

    def counts(self, today: date) -> bool:
        """Whether it has not expired."""
        return self.expires is None or today <= self.expires

    def to_json(self) -> dict[str, Any]:
        """The entry in the file."""
        content: dict[str, Any] = {"id": self.id, "name": self.name, "models": list(self.models)}
        if self.expires:
            content["expires"] = self.expires.isoformat()
        if self.manages:
            content["manage"] = True
        return content | {"salt": self.salt, "sha256": self.sha256}


class TokenFile:
    """Checks tokens against a file, and follows its changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = read_entries(path)
        self._signature = _signature(path)
        self._looked_at = time.monotonic()

    def caller(self, token: str) -> Caller | None:
        """The owner of the token, None where it is wrong or expired."""
        self._follow()
        prefix, _, rest = token.partition("_")
        name, _, secret = rest.partition("_")
        entry = self._entries.get(name)
        if prefix != _PREFIX or entry is None or not entry.matches(secret):
            return None
        if not entry.counts(datetime.now(UTC).date()):
            return None
        return Caller(entry.name, frozenset(entry.models), manages=entry.manages)

    def _follow(self) -> None:
        """Read the file again if it is another; a bad one changes nothing but the log."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_AGAIN_S:
            return
        self._looked_at = now
        try:
            signature = _signature(self._path)
            if signature == self._signature:
                return
            self._entries = read_entries(self._path)
            self._signature = signature
            logger.warning("tokens were read again: %d of them", len(self._entries))
        except (ConfigError, OSError) as error:
            logger.error("the tokens of before still count: %s", error)


def new_token(
    name: str,
    models: Sequence[str] = (EVERY_MODEL,),
    expires: date | None = None,
    *,
    manages: bool = False,
) -> tuple[str, TokenEntry]:
    """A new token, to be shown once, and its entry for the file."""
    identifier, secret, salt = (
        secrets.token_hex(4),
        secrets.token_urlsafe(32),
        secrets.token_hex(16),
    )
    digest = _hash(salt, secret)
    entry = TokenEntry(identifier, name, tuple(models), salt, digest, expires, manages)
    return f"{_PREFIX}_{identifier}_{secret}", _checked(entry, "new token")


def add_token(path: Path, entry: TokenEntry) -> None:
    """Put the entry into the file, which appears whole or not at all.

    A new file is readable by its owner alone; one that was there keeps its mode, and its owner and
    group where the system allows that, so that the gateway's user can still read it. One process at
    a time changes files of a folder, so that none loses the entry of another.
    """
    with _changing(path.parent):
        entries = read_entries(path) if path.exists() else {}
        content = {"tokens": [each.to_json() for each in [*entries.values(), entry]]}
        write_whole(path, (json.dumps(content, indent=2) + "\n").encode())


@contextlib.contextmanager
def _changing(folder: Path) -> Iterator[None]:
    """Wait until no other process changes token files in a folder, and keep others waiting."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_entries(path: Path) -> dict[str, TokenEntry]:
    """The entries of the file by id; ConfigError names what is wrong, and quotes no secret."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise ConfigError(f"tokens file {path}: {reason}") from None
    listed = content.get("tokens") if isinstance(content, Mapping) else None
    if not isinstance(listed, list):
        raise ConfigError(f"tokens file {path}: expected an object with a list under 'tokens'")
    entries: dict[str, TokenEntry] = {}
    for number, each in enumerate(listed):
        entry = _entry(each, f"tokens file {path}: entry {number}")
        if entry.id in entries:
            raise ConfigError(f"tokens file {path}: entry {number} has the id of another")
        entries[entry.id] = entry
    return entries


def _entry(content: object, where: str) -> TokenEntry:
    if not isinstance(content, Mapping) or not set(content) <= _KEYS:
        raise ConfigError(f"{where}: expected an object with the keys {', '.join(sorted(_KEYS))}")
    models = content.get("models")
    texts = [content.get(key) for key in ("id", "name", "salt", "sha256")]
    if not isinstance(models, list) or not all(isinstance(each, str) for each in [*texts, *models]):
        raise ConfigError(f"{where}: expected texts under id, name, salt, sha256 and in models")
    try:
        expires = date.fromisoformat(content["expires"]) if "expires" in content else None
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: expires: expected a date such as 2027-06-30") from None
    if not isinstance(manages := content.get("manage", False), bool):
        raise ConfigError(f"{where}: manage: expected true or false")
    identifier, name, salt, sha256 = map(str, texts)
    entry = TokenEntry(identifier, name, tuple(models), salt, sha256, expires, manages)
    return _checked(entry, where)


def _checked(entry: TokenEntry, where: str) -> TokenEntry:
    if not (entry.id.isalnum() and entry.name and entry.name.isprintable() and entry.models):
        raise ConfigError(f"{where}: expected an id of letters and digits, a name and models")
    return entry


def _hash(salt: str, secret: str) -> str:
    return hashlib.sha256(f"{salt}{secret}".encode()).hexdigest()


def _signature(path: Path) -> tuple[int, int, int]:
    """Another one for every other content; follows links, as Kubernetes swaps them."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino
