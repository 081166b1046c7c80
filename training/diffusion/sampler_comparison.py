"""Compare ways from noise to an image: quality against the number of network calls.

    python -m training.diffusion.sampler_comparison --data-dir BrainMRI --out outputs/samplers

All draw by the same artifact from the same seeds, hence the same noise, for the same classes.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from matplotlib.figure import Figure

from medserve.errors import ConfigError
from medserve.inference.generation import SampleSettings
from medserve.spec.generation import SamplerKind
from training.classification.data import LabelledImages
from training.core.config import Setting, run
from training.core.files import write_json
from training.core.report import Table
from training.core.report import draw as draw_figure
from training.diffusion import extractor
from training.diffusion.distances import Features, frechet_distance, kernel_distance
from training.diffusion.evaluation import (
    DiffusionEvaluation,
    draw,
    open_artifact,
    real_images,
    seeing_network,
)
from training.diffusion.pictures import sheet, write_png

__all__ = ["ComparisonConfig", "Row", "main", "markdown", "parse_ways"]

_log = logging.getLogger(__name__)

_WAYS = "ddpm:1000,ddim:50,ddim:20,dpm-solver++:20,dpm-solver++:10"
_SHOWN = 8

Way = tuple[SamplerKind, int]


@dataclass(frozen=True)
class ComparisonConfig(DiffusionEvaluation):
    """Compare samplers at equal seeds by their distance to unseen real images."""

    model: Annotated[str, Setting("name of the room")] = "diffusion_sampler"
    ways: Annotated[str, Setting("samplers and calls of the network")] = _WAYS
    out: Annotated[Path, Setting("folder for samplers.json, samplers.md and pictures")] = Path(
        "outputs/samplers"
    )


@dataclass(frozen=True)
class Row:
    """One sampler.

    Attributes:
        sampler: Its name.
        calls: Of the network, an image.
        n: Images.
        frechet: Fréchet distance to unseen real images.
        kernel: Kernel distance to them.
        versus: Fréchet distance over that of the first row.
        apart: RMS difference in grey levels to the images of the first row with the same seeds.
        seconds: An image, one at a time.
    """

    sampler: str
    calls: int
    n: int
    frechet: float
    kernel: float
    versus: float
    apart: float
    seconds: float


def main(config: ComparisonConfig) -> None:
    """Draw by each way, measure, and write `samplers.json`, `samplers.md`, a curve and a sheet."""
    ways = parse_ways(config.ways)
    weights = config.folder
    pipeline = open_artifact(weights, config)
    real = real_images(weights, config, pipeline.spec)
    _, feature_network = seeing_network(weights, config, real)
    unseen = extractor.features(feature_network, real.unseen.images, real.mirrored)
    chosen = np.random.default_rng(config.seed).permutation(len(real.unseen))
    label_ids = np.resize(real.unseen.label_ids[chosen], config.images)
    rows: list[Row] = []
    sets: list[LabelledImages] = []
    for kind, calls in ways:
        settings = SampleSettings(calls, kind, 1.0, pipeline.generation.sizes[0])
        started = time.perf_counter()
        sets.append(draw(pipeline, label_ids, settings, config.seed))
        seconds = (time.perf_counter() - started) / len(label_ids)
        found = extractor.features(feature_network, sets[-1].images, real.mirrored)
        rows.append(_row((kind, calls), found, unseen, sets, rows[:1], seconds))
        _log.info("%s", rows[-1])
        _write(config.out, rows, sets)  # after each: the first way may take an hour


def parse_ways(text: str) -> list[Way]:
    """`ddim:50,ddim:20` -> samplers and their calls."""
    ways = []
    for part in text.split(","):
        name, _, calls = part.strip().rpartition(":")
        if name not in list(SamplerKind) or not calls.isascii() or not calls.isdigit():
            raise ConfigError(
                f"--ways: expected SAMPLER:CALLS with a sampler of {', '.join(SamplerKind)}, "
                f"got {part!r}"
            )
        ways.append((SamplerKind(name), int(calls)))
    return ways


def markdown(rows: Sequence[Row]) -> str:
    """The table of all rows."""
    first = f"{rows[0].sampler} {rows[0].calls}"
    columns: Mapping[str, Callable[[Row], object]] = {
        "sampler": lambda row: row.sampler,
        "network calls": lambda row: row.calls,
        "Fréchet distance": lambda row: f"{row.frechet:.4f}",
        f"over {first}": lambda row: f"{row.versus:.3f}",
        "kernel distance": lambda row: f"{row.kernel:.5f}",
        f"grey levels apart from {first}": lambda row: f"{row.apart:.1f}",
        "seconds an image": lambda row: f"{row.seconds:.2f}",
    }
    return Table.of(columns, rows).markdown()


def _row(
    way: Way,
    found: Features,
    unseen: Features,
    sets: Sequence[LabelledImages],
    first: Sequence[Row],
    seconds: float,
) -> Row:
    frechet = frechet_distance(found, unseen)
    difference = sets[-1].images.astype(np.float64) - sets[0].images
    return Row(
        sampler=way[0].value,
        calls=way[1],
        n=len(found),
        frechet=round(frechet, 5),
        kernel=round(kernel_distance(found, unseen), 6),
        versus=round(frechet / first[0].frechet, 4) if first else 1.0,
        apart=round(float(np.sqrt(np.square(difference).mean())), 2),
        seconds=round(seconds, 4),
    )


def _write(out: Path, rows: Sequence[Row], sets: Sequence[LabelledImages]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    content: list[dict[str, Any]] = [dict(vars(row)) for row in rows]
    write_json(out / "samplers.json", content)
    (out / "samplers.md").write_text(markdown(rows), encoding="utf-8")
    shown = np.concatenate([each.images[:_SHOWN] for each in sets])
    columns = min(_SHOWN, len(sets[0]))
    write_png(out / "samplers.png", sheet(shown, columns=columns), scale=2)
    (out / "curve.png").write_bytes(draw_figure(lambda: _curve(rows)))


def _curve(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row.sampler for row in rows):
        points = sorted((row.calls, row.frechet) for row in rows if row.sampler == name)
        axes.plot([x for x, _ in points], [y for _, y in points], "o-", label=name)
    axes.set(xlabel="calls of the network an image", ylabel="Fréchet distance", xscale="log")
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    sys.exit(run(main, ComparisonConfig))
