"""The JSON around an answer: which archive gave it, and whether it is one or an error."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from medserve.errors import MedserveError
from medserve.tasks.result import Provenance

__all__ = ["Envelope", "Outcome"]

Outcome = bytes | MedserveError  # of one file: a JSON object with at least one member, or why not


class Envelope:
    """Puts outcomes into the answers that clients know, without parsing them again.

    One file:      {"model", "version", "archive_digest", "status": "ok", …}
    one error:     {"model", "version", "archive_digest", "status": "error", "error": {…}}
    packed files:  {"model", "version", "archive_digest", "items": [{"index", "status", …}, …]}
    """

    def __init__(self, provenance: Provenance) -> None:
        self._head = _compact(provenance.to_json())[:-1] + b","

    def single(self, outcome: Outcome) -> bytes:
        """The answer to a call with one file, or to a call that failed as a whole."""
        return self._head + _members(outcome) + b"}"

    def packed(self, outcomes: Sequence[Outcome]) -> bytes:
        """The answer to a packed call: one entry per file, in order."""
        entries = (
            b'{"index":%d,%b}' % (index, _members(each)) for index, each in enumerate(outcomes)
        )
        return self._head + b'"items":[' + b",".join(entries) + b"]}"


def _members(outcome: Outcome) -> bytes:
    if isinstance(outcome, bytes):
        return b'"status":"ok",' + outcome[1:-1]
    error = {"code": outcome.code, "message": outcome.message}
    return b'"status":"error","error":' + _compact(error)


def _compact(members: Mapping[str, str]) -> bytes:
    return json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode()
