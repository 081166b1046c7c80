"""What serving ultrasound frames costs: against the same work without a server.

    python -m benchmarks.frames [--archive FILE.mar] [--rounds 5] [--out outputs/frames.json]

Measured with one worker on all cores, a frame of 768 x 768 pixels sent as PNG:

- served / in-process: the same frame through gRPC and by the handler called directly, in turns,
  while the other side rests; the bare mask comes back;
- from file to mask through gRPC, in milliseconds, and what of it the network takes;
- a cine loop: milliseconds a frame, and the largest resident memory of the worker before and after.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as pillow
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from benchmarks.archives import build_or_take, unpack, with_setting
from benchmarks.gateway import PATIENT, gateway_before
from benchmarks.machine import describe_machine
from benchmarks.processes import family, hold, release
from benchmarks.ratios import Spread, percentile
from handlers.frames import FrameHandler
from medserve.archive.read import inspect_archive
from medserve.client import Client, Limits
from medserve.cores import available_cores
from medserve.engine.torchserve.lifecycle import Server, ServerConfig
from medserve.imaging.codecs import nifti
from medserve.imaging.frames import FrameGrid

__all__ = ["Options", "Results", "main", "run", "speckled"]

_WORKER = "model_service_worker"  # in the command line of TorchServe's worker processes
_MIB = 2**20
_CALL_TIMEOUT_S = 3600.0
_MESSAGE_BYTES = 256 * _MIB
_GRAIN = 3.0  # pixels that a speckle is wide


@dataclass(frozen=True)
class Options:
    """What the flags say."""

    archive: Path | None = None
    model: str = "trus_prostate"
    rounds: int = 5
    frames: int = 10  # per round and side
    side: int = 768  # pixels
    loop: int = 100  # frames of the cine loop
    out: Path = Path("outputs/frames.json")
    note: str = ""  # on the circumstances, for a reader of the file


@dataclass
class Results:
    """Everything that was measured."""

    served_of_in_process: Spread | None = None
    served_ms: Spread | None = None  # one frame at a time, from file to mask
    network_ms: Spread | None = None  # of that, the engine alone
    loop_ms: float | None = None  # a frame
    peak_before_mib: float | None = None
    peak_mib: float | None = None  # with the loop
    load1: list[float] = field(default_factory=list)


def run(options: Options, console: Console) -> Results:
    """Measure everything."""
    results = Results()
    with tempfile.TemporaryDirectory(prefix="medserve-frames-") as scratch:
        built = build_or_take(options.archive, options.model, Path(scratch))
        # A worker that is slow because of its neighbours is not to be killed for it.
        archive = with_setting(built, Path(scratch) / "patient.mar", "responseTimeout", 3600)
        os.environ["MEDSERVE_ENGINE_THREADS"] = str(available_cores())
        handler = _handler(unpack(archive, Path(scratch) / "archive"))
        store = Path(scratch) / "served"
        store.mkdir()
        (store / archive.name).symlink_to(archive.resolve())
        config = ServerConfig(store=store, workers=1, max_message_bytes=_MESSAGE_BYTES)
        limits = Limits(message_bytes=_MESSAGE_BYTES)
        with (
            Server(config) as server,
            gateway_before(server, *PATIENT) as (address, _),
            Client(address, timeout_s=_CALL_TIMEOUT_S, limits=limits) as client,
        ):
            client.wait_ready()
            name = inspect_archive(archive).spec.name
            _compare(
                options, handler, lambda payload: client.predict(name, payload), server, results
            )
            console.print("serving compared; sending the loop")
            results.peak_before_mib = _peak_mib(server)
            loop = _loop(options)
            results.loop_ms = _seconds(lambda: client.predict(name, loop)) * 1e3 / options.loop
            results.peak_mib = _peak_mib(server)
    return results


def speckled(side: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """A square frame of speckle: it compresses as badly as a scan does."""
    noise = np.random.default_rng(seed).normal(size=(side, side)).astype(np.float32)
    grain = ndimage.gaussian_filter(noise, _GRAIN / 2)
    grain /= grain.std()
    return np.asarray(np.clip(90.0 + 25.0 * grain, 0, 255), dtype=np.uint8)


def _handler(folder: Path) -> FrameHandler:
    handler = FrameHandler()
    context: Any = SimpleNamespace(
        system_properties={"model_dir": str(folder)}, model_yaml_config=None
    )
    handler.initialize(context)
    return handler


def _in_process(handler: FrameHandler, payload: bytes) -> bytes:
    """The handler's verbs, nothing around them."""
    options = handler.parse_params({})
    stack = handler.decode(payload, options)
    found = handler.segment(stack, options, handler.settings(options, stack))
    return bytes(handler.encode(found, stack, options, packed=False))


def _compare(
    options: Options,
    handler: FrameHandler,
    ask: Callable[[bytes], bytes],
    server: Server,
    results: Results,
) -> None:
    payload = _png(speckled(options.side))
    for _ in range(3):  # Java compiles what runs often
        assert ask(payload) == _in_process(handler, payload)
    plane = np.zeros((1, 1, *handler.spec.input.size), dtype=np.float32)
    ratios, singles, networks = [], [], []
    for _ in range(options.rounds):
        results.load1.append(os.getloadavg()[0])
        hold(server.pid or 0)
        own = [_seconds(lambda: _in_process(handler, payload)) for _ in range(options.frames)]
        network = [_seconds(lambda: handler.infer(plane)) for _ in range(options.frames)]
        release(server.pid or 0)
        through = [_seconds(lambda: ask(payload)) for _ in range(options.frames)]
        ratios.append(sum(own) / sum(through))
        singles.append(percentile(through, 0.5) * 1e3)
        networks.append(percentile(network, 0.5) * 1e3)
    results.served_of_in_process = Spread.of(ratios)
    results.served_ms = Spread.of(singles)
    results.network_ms = Spread.of(networks)


def _loop(options: Options) -> bytes:
    """Smaller frames of 4 : 3, by default 640 x 480, as a NIfTI stack."""
    columns = options.side * 5 // 6
    frame = speckled(columns)[: columns * 3 // 4]
    grid = FrameGrid((frame.shape[0], frame.shape[1]), options.loop)
    planes = (np.roll(frame, 3 * index, axis=1) for index in range(options.loop))
    return nifti.encode_planes(planes, grid.space().geometry(grid.shape), grid.space())


def _png(frame: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    pillow.fromarray(frame).save(stream, format="PNG")
    return stream.getvalue()


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _peak_mib(server: Server) -> float:
    """The most memory that a worker ever held resident, as Linux counted it."""
    peaks = []
    for process in family(server.pid or 0):
        if _WORKER in " ".join(process.cmdline()):
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
            (line,) = (each for each in status.splitlines() if each.startswith("VmHWM:"))
            peaks.append(int(line.split()[1]) / 1024)
    return max(peaks)


def _content(options: Options, results: Results) -> dict[str, object]:
    chosen = {key: value for key, value in asdict(options).items() if key not in ("archive", "out")}
    return {
        "format": 1,
        "machine": describe_machine(),
        "options": chosen,
        "load1": Spread.of(results.load1).format(1),
        "results": asdict(results),
    }


def _show(results: Results, options: Options, console: Console) -> None:
    def spread(value: Spread | None, digits: int = 2) -> str:
        return "-" if value is None else value.format(digits)

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.0f}"

    side, loop = options.side, options.loop
    table = Table("what", "target", "median [least most]", title="frames", title_justify="left")
    table.add_row("served of in-process", "", spread(results.served_of_in_process))
    table.add_row(
        f"{side} x {side} to mask through gRPC, ms", "<= 250", spread(results.served_ms, 0)
    )
    table.add_row("the network alone, ms", "", spread(results.network_ms, 0))
    table.add_row(f"a frame of a loop of {loop}, ms", "", number(results.loop_ms))
    table.add_row("worker's peak before the loop, MiB", "", number(results.peak_before_mib))
    table.add_row("worker's peak with the loop, MiB", "", number(results.peak_mib))
    table.add_row("load of the machine", "", Spread.of(results.load1).format(1))
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and write a JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--archive", type=Path, help="a .mar; built from the room if none is given")
    parser.add_argument("--model", default=Options.model, help="the room")
    parser.add_argument("--rounds", type=int, default=Options.rounds)
    parser.add_argument("--frames", type=int, default=Options.frames, help="per round and side")
    parser.add_argument("--side", type=int, default=Options.side, help="pixels of a frame")
    parser.add_argument("--loop", type=int, default=Options.loop, help="frames of the cine loop")
    parser.add_argument("--out", type=Path, default=Options.out)
    parser.add_argument("--note", default="", help="on the circumstances, for the file")
    options = Options(**vars(parser.parse_args(arguments)))
    console = Console()
    results = run(options, console)
    _show(results, options, console)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(_content(options, results), indent=1)
    options.out.write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
