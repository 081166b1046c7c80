"""Whether this server is still proven: `python -m medserve.engine.torchserve.probe`.

The health check of a container, which runs inside it. TorchServe's own Ping cannot be one: it says
healthy with no model at all. A server writes its `ProofFile` once every model has answered its
golden input and takes it back when it stops; the probe then asks each model for a READY worker and
sends one golden input, of another model each time, because a worker can be READY and answer nobody.

Exit code 0 and one line "ready: …", or 1 and one line that says which model is not, and why.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medserve.engine.golden import GoldenInput
from medserve.engine.interface import Engine
from medserve.engine.torchserve.calls import EngineAccess, TorchServeEngine
from medserve.engine.torchserve.failures import own_words
from medserve.engine.torchserve.keys import certificate_name
from medserve.engine.torchserve.readiness import prove_answer
from medserve.errors import MedserveError, ModelNotReadyError
from medserve.settings import Address
from medserve.spec import Task

__all__ = ["PROOF_FILE", "ProofFile", "main", "probe"]

PROOF_FILE = Path(tempfile.gettempdir()) / "medserve-proof.json"
_CANARIES = ("next", "all", "none")


@dataclass(frozen=True)
class ProofFile:
    """The file of a proven server: all that a probe has to know to ask it again."""

    inference_address: str
    management_address: str
    max_message_bytes: int
    models: tuple[GoldenInput, ...]
    key_file: str | None = None
    certificate: str | None = None

    def write(self, path: Path) -> None:
        """Publish it, whole or not at all."""
        new = path.with_suffix(".new")
        new.write_text(json.dumps(dataclasses.asdict(self), default=str), encoding="utf-8")
        new.replace(path)

    @classmethod
    def read(cls, path: Path) -> ProofFile:
        """Return what a running server has left.

        Raises:
            ModelNotReadyError: there is none: the server starts, stops or was never there.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelNotReadyError("no model is proven yet, or the server is stopping") from None
        models = tuple(
            GoldenInput(**model | {"archive": Path(model["archive"]), "task": Task(model["task"])})
            for model in content.pop("models")
        )
        return cls(**content, models=models)

    def access(self) -> EngineAccess:
        """Return the way to the server, with keys and certificate."""
        management = Address.parse(self.management_address)
        certificate = Path(self.certificate) if self.certificate else None
        return EngineAccess(
            Address.parse(self.inference_address),
            management,
            key_file=Path(self.key_file) if self.key_file else None,
            ca_file=certificate,
            server_name=(
                certificate_name(management.host, management.port, certificate)
                if certificate
                else None
            ),
            message_bytes=self.max_message_bytes,
        )


def probe(proof: ProofFile, canaries: Sequence[GoldenInput], timeout_s: float) -> None:
    """Ask every model for a worker, and each of `canaries` for its golden answer.

    Raises:
        ModelNotReadyError: a model has no worker, or does not answer in time.
    """
    asyncio.run(_probe(proof, canaries, timeout_s))


async def _probe(proof: ProofFile, canaries: Sequence[GoldenInput], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    engine = TorchServeEngine(proof.access())
    try:
        async with asyncio.timeout(timeout_s):
            for model in proof.models:
                await _require_worker(engine, model)
        for model in canaries:
            await prove_answer(engine, model, max(0.1, deadline - time.monotonic()))
    except TimeoutError:
        raise ModelNotReadyError(f"no answer within {timeout_s:g} s") from None
    finally:
        await engine.drain()


async def _require_worker(engine: Engine, model: GoldenInput) -> None:
    try:
        described = await engine.describe(model.name)
    except MedserveError as error:
        raise ModelNotReadyError(f"{model}: TorchServe says {own_words(error)}") from error
    found = next((each for each in described if each.version == model.version), None)
    # One is enough to answer: the others may be between a crash and their next start.
    if found is None or not found.workers_ready:
        number = found.workers if found else 0
        raise ModelNotReadyError(f"{model}: none of its {number} workers is ready")


def main(arguments: Sequence[str] | None = None) -> int:
    """Probe once; the exit code."""
    parser = argparse.ArgumentParser(description="Ask a server on this machine if it is ready.")
    parser.add_argument("--proof-file", type=Path, default=PROOF_FILE)
    parser.add_argument("--canary", choices=_CANARIES, default="next", help="whose golden input")
    parser.add_argument("--timeout-s", type=float, default=25.0)
    options = parser.parse_args(arguments)
    try:
        proof = ProofFile.read(options.proof_file)
        probe(proof, _canaries(proof, options.canary), options.timeout_s)
    except MedserveError as error:
        print(f"not ready: {error.message}")
        return 1
    print(f"ready: {', '.join(map(str, proof.models))}")
    return 0


def _canaries(proof: ProofFile, which: str) -> Sequence[GoldenInput]:
    """By the clock: probes keep no notes, and over time every model has its turn."""
    if which == "next" and proof.models:
        turn = int(time.time() // 10) % len(proof.models)
        return proof.models[turn : turn + 1]
    return proof.models if which == "all" else ()


if __name__ == "__main__":
    sys.exit(main())
