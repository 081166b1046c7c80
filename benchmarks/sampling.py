"""What serving synthetic images costs: against the same walk without a server, and per stream.

    python -m benchmarks.sampling [--archive FILE.mar] [--rounds 5] [--out outputs/sampling.json]

Measured with one worker on all cores, at the model's default sampler and steps:

- served / in-process: the same images through gRPC and by the pipeline called directly, in turns,
  while the other side rests;
- streamed / unary: the same images with progress and previews, and without;
- rows together / alone: images a second of the network when one call carries 1, 2, 4 or 8 images,
  over those of one image a call. It says whether gathering requests into batches would pay.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from benchmarks.archives import build_or_take, unpack, with_setting
from benchmarks.gateway import PATIENT, gateway_before
from benchmarks.machine import describe_machine
from benchmarks.processes import hold, release
from benchmarks.ratios import Spread
from medserve.archive.read import inspect_archive
from medserve.client import Client, GenerationOptions
from medserve.cores import available_cores
from medserve.engine.torchserve.lifecycle import Server, ServerConfig
from medserve.inference.engines import Engine, load_engine
from medserve.inference.generation import DiffusionPipeline, SampleSettings
from medserve.results.files.synthetic import encode_png
from medserve.results.sample import Sample
from medserve.spec import ModelSpec
from medserve.tasks.result import Provenance

__all__ = ["Options", "Results", "main", "run"]

_CALL_TIMEOUT_S = 3600.0
_ROWS = (1, 2, 4, 8)
_LEAST_S = 0.5  # of repeated calls of the network, for one figure


@dataclass(frozen=True)
class Options:
    """What the flags say."""

    archive: Path | None = None
    model: str = "diffusion_sampler"
    rounds: int = 5
    images: int = 8  # per round and side
    out: Path = Path("outputs/sampling.json")
    note: str = ""  # on the circumstances, for a reader of the file


@dataclass
class Results:
    """Everything that was measured."""

    served_of_in_process: Spread | None = None
    served_ms: Spread | None = None  # one image of a call with several
    streamed_of_unary: Spread | None = None
    together_of_alone: dict[int, Spread] = field(default_factory=dict)
    load1: list[float] = field(default_factory=list)


def run(options: Options, console: Console) -> Results:
    """Measure everything."""
    results = Results()
    with tempfile.TemporaryDirectory(prefix="medserve-sampling-") as scratch:
        built = build_or_take(options.archive, options.model, Path(scratch))
        # A worker that is slow because of its neighbours is not to be killed for it.
        archive = with_setting(built, Path(scratch) / "patient.mar", "responseTimeout", 3600)
        folder = unpack(archive, Path(scratch) / "archive")
        info = inspect_archive(archive)
        engine = load_engine(info.spec.engine.name, folder, threads=available_cores())
        _compare_rows(options, info.spec, engine, results)
        console.print("rows compared; starting the server")
        store = Path(scratch) / "served"
        store.mkdir()
        (store / archive.name).symlink_to(archive.resolve())
        own = _Own(info.spec, engine, Provenance(info.name, info.version, info.digest))
        config = ServerConfig(
            store=store, workers=1, engine_threads=available_cores(), start_timeout_s=600
        )
        with (
            Server(config) as server,
            gateway_before(server, *PATIENT) as (address, _),
            Client(address, timeout_s=_CALL_TIMEOUT_S) as client,
        ):
            client.wait_ready()
            _compare_serving(options, own, (server, client), results)
    return results


class _Own:
    """The same images without a server: the walk and the files, nothing around them."""

    def __init__(self, spec: ModelSpec, engine: Engine, provenance: Provenance) -> None:
        self.spec, self._provenance = spec, provenance
        self._pipeline = DiffusionPipeline(spec, engine.run)
        self._settings = SampleSettings.default(self._pipeline.generation)

    def draw(self, seed: int, count: int) -> list[bytes]:
        """PNGs of the seeds from this one on."""
        return [self._png(each) for each in range(seed, seed + count)]

    def _png(self, seed: int) -> bytes:
        label_id, settings = self._pipeline.label_id(seed), self._settings
        pixels = self._pipeline.draw(seed, label_id, settings)
        sample = Sample(
            image=pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, 2).copy(),
            seed=seed,
            label=self.spec.labels[label_id] if self.spec.labels else "",
            steps=settings.steps,
            sampler=settings.sampler.value,
            guidance=settings.guidance,
            provenance=self._provenance,
        )
        return encode_png(sample)


def _compare_serving(
    options: Options, own: _Own, served: tuple[Server, Client], results: Results
) -> None:
    server, client = served
    name, count = own.spec.name, options.images

    def unary(seed: int) -> list[bytes]:
        drawn = client.sample_all(name, GenerationOptions(count=count, seed=seed))
        return [image.png for image in drawn.images]

    def streamed(seed: int) -> object:
        return list(client.sample(name, GenerationOptions(count=count, seed=seed)))

    # A copy that is withheld costs the server an image more; the first seeds show that none is.
    if own.draw(0, count) != unary(0):
        raise SystemExit("expected the same images served and in process; were some withheld?")
    ratios, singles, streams = [], [], []
    for turn in range(options.rounds):
        seed = 1000 * (turn + 1)
        results.load1.append(os.getloadavg()[0])
        hold(server.pid or 0)
        alone_s = _seconds(partial(own.draw, seed, count))
        release(server.pid or 0)
        unary_s = _seconds(partial(unary, seed))
        stream_s = _seconds(partial(streamed, seed))
        ratios.append(alone_s / unary_s)
        singles.append(1e3 * unary_s / count)
        streams.append(unary_s / stream_s)
    results.served_of_in_process = Spread.of(ratios)
    results.served_ms = Spread.of(singles)
    results.streamed_of_unary = Spread.of(streams)


def _compare_rows(options: Options, spec: ModelSpec, engine: Engine, results: Results) -> None:
    rates: dict[int, list[float]] = {rows: [] for rows in _ROWS}
    for _ in range(options.rounds):
        results.load1.append(os.getloadavg()[0])
        for rows in _ROWS:
            rates[rows].append(_images_per_s(spec, engine, rows))
    for rows in _ROWS[1:]:
        pairs = zip(rates[rows], rates[1], strict=True)
        results.together_of_alone[rows] = Spread.of([many / one for many, one in pairs])


def _images_per_s(spec: ModelSpec, engine: Engine, rows: int) -> float:
    draws = np.random.default_rng(rows)
    shape = (rows, spec.input.channels, *spec.input.size)
    assert spec.generation is not None  # it makes images
    inputs: dict[str, npt.NDArray[Any]] = {
        "image": draws.standard_normal(shape, dtype=np.float32),
        "step": np.full(rows, spec.generation.steps // 2, dtype=np.int64),
        "label": np.zeros(rows, dtype=np.int64),
    }
    engine.run(inputs)  # a new shape is prepared for
    calls, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < _LEAST_S:
        engine.run(inputs)
        calls += 1
    return calls * rows / passed


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _content(options: Options, results: Results) -> dict[str, object]:
    return {
        "format": 1,
        "machine": describe_machine(),
        "options": {
            "model": options.model,
            "rounds": options.rounds,
            "images": options.images,
        },
        "note": options.note,
        "load1": Spread.of(results.load1).format(1),
        "results": asdict(results),
    }


def _show(results: Results, console: Console) -> None:
    def spread(value: Spread | None, digits: int = 2) -> str:
        return "-" if value is None else value.format(digits)

    table = Table("what", "target", "median [least most]", title="sampling", title_justify="left")
    table.add_row("served of in-process", ">= 0.90", spread(results.served_of_in_process))
    table.add_row("one image through gRPC, ms", "<= 1000", spread(results.served_ms, 0))
    table.add_row("streamed of unary", "", spread(results.streamed_of_unary))
    for rows, found in results.together_of_alone.items():
        table.add_row(f"images a second, {rows} a call over 1", "", spread(found))
    table.add_row("load of the machine", "", Spread.of(results.load1).format(1))
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and write a JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--archive", type=Path, help="a .mar; built from the room if none is given")
    parser.add_argument("--model", default=Options.model, help="the room")
    parser.add_argument("--rounds", type=int, default=Options.rounds)
    parser.add_argument("--images", type=int, default=Options.images, help="per round and side")
    parser.add_argument("--out", type=Path, default=Options.out)
    parser.add_argument("--note", default="", help="on the circumstances, for the file")
    options = Options(**vars(parser.parse_args(arguments)))
    console = Console()
    results = run(options, console)
    _show(results, console)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(_content(options, results), indent=1)
    options.out.write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
