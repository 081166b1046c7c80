"""A bare grpc.aio server with a small dynamic batcher: the least that a server can be.

    python -m benchmarks.peers.grpc_server --archive-dir DIR --port PORT --workers 1

Speaks TorchServe's `Predictions`. One process; the workers are threads, and share its interpreter
wherever the engine does not release it.
"""

from __future__ import annotations

import argparse
import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc.aio

from benchmarks.work import Work, load_work
from medserve.wire.inference_pb2 import PredictionResponse, PredictionsRequest

_BATCH = 16
_SERVICE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"

Job = tuple[bytes, asyncio.Future[bytes]]


async def serve(archive_dir: Path, port: int, workers: int) -> None:
    """Answer until the process is ended."""
    jobs: asyncio.Queue[Job] = asyncio.Queue()

    async def predictions(
        request: PredictionsRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> PredictionResponse:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        jobs.put_nowait((request.input["data"], answer))
        return PredictionResponse(prediction=await answer)

    method = grpc.unary_unary_rpc_method_handler(
        predictions,
        request_deserializer=PredictionsRequest.FromString,
        response_serializer=PredictionResponse.SerializeToString,
    )
    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler(_SERVICE, {"Predictions": method})
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    with ThreadPoolExecutor(workers) as threads:
        loaded = [load_work(archive_dir) for _ in range(workers)]
        await server.start()
        await asyncio.gather(*[_batch(jobs, work, threads) for work in loaded])


async def _batch(jobs: asyncio.Queue[Job], work: Work, threads: ThreadPoolExecutor) -> None:
    """Run what has gathered while the batch before ran; never wait for more."""
    loop = asyncio.get_running_loop()
    while True:
        gathered = [await jobs.get()]
        while len(gathered) < _BATCH and not jobs.empty():
            gathered.append(jobs.get_nowait())
        try:
            answers = await loop.run_in_executor(threads, work, [image for image, _ in gathered])
        except Exception as error:
            for _, future in gathered:
                if not future.done():  # its caller has not gone away
                    future.set_exception(error)
        else:
            for (_, future), answer in zip(gathered, answers, strict=True):
                if not future.done():
                    future.set_result(answer)


def main() -> None:
    """Serve the archive and port given by the flags."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--archive-dir", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    asyncio.run(serve(options.archive_dir, options.port, options.workers))


if __name__ == "__main__":
    main()
