"""LitServe around the same work: dynamic batches of 16 after at most 1 ms, JSON with base64.

python -m benchmarks.peers.litserve_app --archive-dir DIR --port PORT --workers 1
"""

from __future__ import annotations

import argparse
import base64
from pathlib import Path
from typing import Any

import litserve  # type: ignore[import-not-found, unused-ignore]

from benchmarks.work import load_work


class ClassifierApi(litserve.LitAPI):  # type: ignore[misc, unused-ignore]
    """LitServe's verbs, with the handler's own five in the middle one."""

    def __init__(self, archive_dir: Path, **options: Any) -> None:
        super().__init__(**options)
        self.archive_dir = archive_dir

    def setup(self, device: str) -> None:
        """Load in the worker process, where the engine will run."""
        self.work = load_work(self.archive_dir)

    def decode_request(self, request: dict[str, str]) -> bytes:
        """JSON -> image file."""
        return base64.b64decode(request["image"])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        """The work takes a list as it is."""
        return inputs

    def predict(self, x: list[bytes]) -> list[bytes]:
        """Image files -> answers."""
        return self.work(x)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """One answer per request."""
        return output

    def encode_response(self, output: bytes) -> dict[str, str]:
        """Answer -> JSON."""
        return {"answer": output.decode()}


def main() -> None:
    """Serve the archive and port given by the flags."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--archive-dir", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    api = ClassifierApi(options.archive_dir, max_batch_size=16, batch_timeout=0.001)
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        devices=1,
        workers_per_device=options.workers,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=options.port,
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )


if __name__ == "__main__":
    main()
