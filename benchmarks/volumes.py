"""What serving volumes costs: against the same work without a server, against MONAI, in memory.

    python -m benchmarks.volumes [--archive FILE.mar] [--rounds 5] [--out outputs/volumes.json]

Measured with one worker on all cores:

- served / in-process: the same volumes through gRPC and by the handler's verbs called directly, in
  turns, while the other side rests;
- MONAI / ours: MONAI's `sliding_window_inference` with the eager network against our windows with
  the archive's engine, on one volume, and whether the masks are identical;
- the largest resident memory of the worker while it segments one large volume.

Mirrored windows are off throughout: they multiply both sides alike.
"""

from __future__ import annotations

import argparse
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
from rich.console import Console
from rich.table import Table

from benchmarks.archives import build_or_take, unpack, with_setting
from benchmarks.eager_network import eager_network
from benchmarks.gateway import PATIENT, gateway_before
from benchmarks.machine import describe_machine
from benchmarks.processes import family, hold, release
from benchmarks.ratios import Spread, percentile
from handlers.volumes import VolumeHandler
from medserve.archive.read import golden_input, inspect_archive
from medserve.client import Client, Limits
from medserve.cores import available_cores
from medserve.engine.torchserve.lifecycle import Server, ServerConfig
from medserve.imaging.codecs import nifti
from medserve.imaging.geometry import Geometry
from medserve.imaging.volume import Volume
from medserve.inference.engines import load_engine
from medserve.inference.volume_pipeline import VolumePipeline, VolumeSettings
from medserve.spec import EngineName

__all__ = ["Options", "Results", "large_volume", "main", "run"]

_PARAMS = {"flips": False}
_WORKER = "model_service_worker"  # in the command line of TorchServe's worker processes
_MIB = 2**20
_CALL_TIMEOUT_S = 3600.0
_MESSAGE_BYTES = 128 * _MIB


@dataclass(frozen=True)
class Options:
    """What the flags say."""

    archive: Path | None = None
    model: str = "segmentation_3d"
    rounds: int = 5
    volumes: int = 8  # per round and side
    shape: tuple[int, int, int] = (96, 128, 96)  # for the comparison of windows
    large: tuple[int, int, int] = (256, 256, 128)
    out: Path = Path("outputs/volumes.json")
    note: str = ""  # on the circumstances, for a reader of the file


@dataclass
class Results:
    """Everything that was measured; a figure is None where it was not."""

    served_of_in_process: Spread | None = None
    served_ms: Spread | None = None  # one volume at a time, from file to mask
    monai_over_ours: Spread | None = None
    identical_share: float | None = None  # of voxels
    worker_peak_mib: float | None = None
    large_s: float | None = None
    load1: list[float] = field(default_factory=list)


def run(options: Options, console: Console) -> Results:
    """Measure everything."""
    results = Results()
    with tempfile.TemporaryDirectory(prefix="medserve-volumes-") as scratch:
        built = build_or_take(options.archive, options.model, Path(scratch))
        # A worker that is slow because of its neighbours is not to be killed for it.
        archive = with_setting(built, Path(scratch) / "patient.mar", "responseTimeout", 3600)
        folder = unpack(archive, Path(scratch) / "archive")
        os.environ["MEDSERVE_ENGINE_THREADS"] = str(available_cores())
        handler = _handler(folder)
        payload = golden_input(archive)
        _compare_windows(options, handler.pipeline, folder, results)
        console.print("windows compared; starting the server")
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
            ask = _asking(client, inspect_archive(archive).spec.name)
            _compare_serving(options, handler, (ask, payload), server, results)
            console.print("serving compared; sending the large volume")
            started = time.perf_counter()
            ask(nifti.encode(large_volume(options.large)))
            results.large_s = time.perf_counter() - started
            results.worker_peak_mib = _peak_mib(server)
    return results


def large_volume(shape: Sequence[int]) -> Volume:
    """Noise around soft blobs, int16: it compresses as badly as a scan does."""
    generator = np.random.default_rng(0)
    geometry = Geometry.from_spacing(shape, (1.0, 1.0, 1.0))
    coarse = generator.normal(300.0, 120.0, [max(1, side // 16) for side in shape])
    for axis, side in enumerate(shape):
        coarse = np.repeat(coarse, -(-side // coarse.shape[axis]), axis=axis)
    array = coarse[: shape[0], : shape[1], : shape[2]] + generator.normal(0, 20, geometry.shape)
    return Volume(np.clip(array, 0, 1000).astype(np.int16), geometry)


def _handler(folder: Path) -> VolumeHandler:
    handler = VolumeHandler()
    context: Any = SimpleNamespace(
        system_properties={"model_dir": str(folder)}, model_yaml_config=None
    )
    handler.initialize(context)
    return handler


def _asking(client: Client, model: str) -> Callable[[bytes], bytes]:
    return lambda payload: client.predict(model, payload, _PARAMS)


def _in_process(handler: VolumeHandler, payload: bytes) -> bytes:
    """The five verbs, nothing around them."""
    options = handler.parse_params(_PARAMS)
    settings = handler.settings(options)
    volumes = handler.decode([payload], options)
    prepared = handler.to_network(volumes, settings)
    found = handler.infer(prepared, settings)
    return handler.encode(handler.from_network(found, prepared, settings), volumes[0], options)


def _compare_serving(
    options: Options,
    handler: VolumeHandler,
    served: tuple[Callable[[bytes], bytes], bytes],
    server: Server,
    results: Results,
) -> None:
    ask, payload = served
    for _ in range(3):  # Java compiles what runs often
        assert ask(payload) == _in_process(handler, payload)
    ratios, singles = [], []
    for _ in range(options.rounds):
        results.load1.append(os.getloadavg()[0])
        hold(server.pid or 0)
        own = [_seconds(lambda: _in_process(handler, payload)) for _ in range(options.volumes)]
        release(server.pid or 0)
        through = [_seconds(lambda: ask(payload)) for _ in range(options.volumes)]
        ratios.append(sum(own) / sum(through))
        singles.append(percentile(through, 0.5) * 1e3)
    results.served_of_in_process = Spread.of(ratios)
    results.served_ms = Spread.of(singles)


def _compare_windows(
    options: Options, pipeline: VolumePipeline, folder: Path, results: Results
) -> None:
    """MONAI with the eager network against our windows, on the same tensor and threads."""
    import torch
    from monai.inferers import sliding_window_inference  # type: ignore[attr-defined]

    torch.set_num_threads(available_cores())
    prepared = pipeline.prepare(large_volume(options.shape))
    engine = load_engine(pipeline.spec.engine.name, folder, threads=available_cores())

    def ours() -> npt.NDArray[np.uint8]:
        found = pipeline.segment(prepared, lambda x: engine.run(x)["logits"], VolumeSettings())
        return prepared.inverse.apply(found.segmentation.mask)

    def monai(predict: Callable[[Any], Any]) -> npt.NDArray[Any]:
        with torch.inference_mode():
            scores: Any = sliding_window_inference(
                torch.from_numpy(prepared.tensor[np.newaxis]), pipeline.window.size,
                pipeline.window.batch, predict, overlap=pipeline.window.overlap, mode="gaussian",
            )  # fmt: skip
        return np.asarray(scores.argmax(dim=1)[0])

    twin = load_engine(EngineName.TORCHSCRIPT, folder, threads=available_cores())
    same = monai(lambda windows: torch.from_numpy(twin.run(windows.numpy())["logits"])) == ours()
    results.identical_share = float(np.mean(same))
    eager = eager_network(pipeline.spec)
    if eager is None:
        return
    ratios = []
    for _ in range(max(1, options.rounds // 2)):
        results.load1.append(os.getloadavg()[0])
        ratios.append(_seconds(lambda: monai(eager)) / _seconds(ours))
    results.monai_over_ours = Spread.of(ratios)


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
    return {
        "format": 1,
        "machine": describe_machine(),
        "options": {
            "model": options.model,
            "rounds": options.rounds,
            "volumes": options.volumes,
            "shape": list(options.shape),
            "large": list(options.large),
        },
        "note": options.note,
        "load1": Spread.of(results.load1).format(1),
        "results": asdict(results),
    }


def _show(results: Results, options: Options, console: Console) -> None:
    def spread(value: Spread | None, digits: int = 2) -> str:
        return "-" if value is None else value.format(digits)

    def number(value: float | None, digits: int = 0) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    large = " x ".join(map(str, options.large))
    table = Table("what", "target", "median [least most]", title="volumes", title_justify="left")
    table.add_row("served of in-process", ">= 0.95", spread(results.served_of_in_process))
    table.add_row("file to mask through gRPC, ms", "<= 2000", spread(results.served_ms, 0))
    table.add_row("MONAI eager over our windows", ">= 1.5", spread(results.monai_over_ours))
    table.add_row("voxels with MONAI's label", "1", number(results.identical_share, 6))
    table.add_row(f"worker's peak, {large}, MiB", "<= 1536", number(results.worker_peak_mib))
    table.add_row(f"file to mask, {large}, s", "", number(results.large_s, 1))
    table.add_row("load of the machine", "", Spread.of(results.load1).format(1))
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and write a JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--archive", type=Path, help="a .mar; built from the room if none is given")
    parser.add_argument("--model", default=Options.model, help="the room")
    parser.add_argument("--rounds", type=int, default=Options.rounds)
    parser.add_argument("--volumes", type=int, default=Options.volumes, help="per round and side")
    parser.add_argument("--shape", type=_shape, default=Options.shape, help="I,J,K for MONAI")
    parser.add_argument("--large", type=_shape, default=Options.large, help="I,J,K for the memory")
    parser.add_argument("--out", type=Path, default=Options.out)
    parser.add_argument("--note", default="", help="on the circumstances, for the file")
    options = Options(**vars(parser.parse_args(arguments)))
    console = Console()
    results = run(options, console)
    _show(results, options, console)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(_content(options, results), indent=1)
    options.out.write_text(content + "\n", encoding="utf-8")


def _shape(text: str) -> tuple[int, int, int]:
    i, j, k = (int(part) for part in text.split(","))
    return i, j, k


if __name__ == "__main__":
    main()
