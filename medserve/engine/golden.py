"""An archive's golden input as a request, and the judgement of its answer.

A worker that calls itself ready may answer nobody, so every model proves itself by answering the
golden input of its own archive: at the start, in a health check, and while nobody calls it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from medserve.archive.read import ArchiveInfo, golden_input
from medserve.engine.interface import EngineRequest
from medserve.errors import ModelNotReadyError
from medserve.spec import Task

__all__ = ["GoldenInput"]


@dataclass(frozen=True)
class GoldenInput:
    """Where the golden input of one model is, and by what its answer is known."""

    name: str
    version: str
    archive: Path
    digest: str  # `archive_digest` that a JSON answer must name
    task: Task  # decides whether the golden input is a file or the parameters of one answer

    @classmethod
    def of(cls, archive: ArchiveInfo) -> GoldenInput:
        """Return the golden input of an archive."""
        spec = archive.spec
        return cls(spec.name, spec.version, archive.path, archive.digest, spec.task)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    def request(self, *, by_default: bool = False) -> EngineRequest:
        """Return the request to send; `by_default` names no version."""
        key = "params" if self.task is Task.GENERATION else "data"
        inputs = {key: golden_input(self.archive)}
        if self.task is Task.VOLUMES:  # mirror images prove nothing and cost most of the time
            inputs["params"] = b'{"flips": false}'
        version = "" if by_default else self.version
        return EngineRequest(self.name, version, inputs)

    def check(self, answer: bytes) -> None:
        """Accept a good JSON answer of this very archive; other formats cannot be told apart.

        Raises:
            ModelNotReadyError: the answer is not good, or is one of another archive.
        """
        if not answer:
            raise ModelNotReadyError("its golden input got an empty answer")
        if not answer.startswith(b"{"):
            return
        try:
            content = json.loads(answer)
        except ValueError:
            raise ModelNotReadyError("its golden input got an answer that is no JSON") from None
        if content.get("status") != "ok":
            error = content.get("error") or {}
            raise ModelNotReadyError(
                f"its golden input was refused: {error.get('message', content)}"
            )
        if content.get("archive_digest") != self.digest:
            raise ModelNotReadyError(
                f"expected an answer of the archive {self.digest}, got one of "
                f"{content.get('archive_digest')!r}"
            )
