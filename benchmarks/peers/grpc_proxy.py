"""A bare grpc.aio server that passes each call on as it came: the least that a gateway can cost.

    python -m benchmarks.peers.grpc_proxy --engine 127.0.0.1:7070 --ready-file FILE

Speaks TorchServe's `Predictions`; it reads nothing of a call, knows no caller and bounds nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import grpc.aio

_SERVICE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
_TIMEOUT_S = 60.0


async def serve(engine: str, ready_file: Path) -> None:
    """Write the address to `ready_file` and answer until the process is ended."""
    unlimited = [("grpc.max_receive_message_length", -1)]
    channel: Any = grpc.aio.insecure_channel(engine, options=unlimited)
    predict = channel.unary_unary(f"/{_SERVICE}/Predictions")

    async def predictions(message: bytes, _: object) -> bytes:
        answer: bytes = await predict(message, timeout=_TIMEOUT_S)
        return answer

    server = grpc.aio.server(options=unlimited)
    method = grpc.unary_unary_rpc_method_handler(predictions)
    handler = grpc.method_handlers_generic_handler(_SERVICE, {"Predictions": method})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ready_file.write_text(json.dumps({"grpc": f"127.0.0.1:{port}"}), encoding="utf-8")
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", required=True, help="address of TorchServe's gRPC port")
    parser.add_argument("--ready-file", type=Path, required=True)
    given = parser.parse_args()
    asyncio.run(serve(given.engine, given.ready_file))
