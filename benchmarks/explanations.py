"""What an explanation costs, and whether its map tells the truth.

    python -m benchmarks.explanations --model mednist --images DIR [--each 20] [--out FILE]

DIR holds images, in folders by class if there are any; `--each` are taken evenly from every one.

- Cost: the handler with a plain image, with 16 at once, and with one whose class is explained, in
  CPU time, which other programs on the machine change little.
- Truth: the quarter of the image that a map calls warmest is covered with the mean, and the class
  is asked for again; so is the coolest quarter, and the warmest one of the map upside down, which
  has its shape and not its place. A map that tells the truth loses the class with the first alone.
- The same for maps of one square at a time, as most tools make them: 9 x 9 squares of a quarter
  of the image's side.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from benchmarks.archives import build_or_take, unpack
from benchmarks.machine import describe_machine
from benchmarks.work import load_handler
from handlers.classification import ClassificationHandler
from medserve.imaging import Image
from medserve.inference.engines import Outputs
from medserve.inference.fit import Box
from medserve.inference.occlusion import ROWS, log_odds, occlude

__all__ = ["Cost", "Truth", "cost", "main", "squares", "truth"]

_BATCH = 16
_QUARTER = 4
_PLACES, _SIDE = 9, 4  # of one square at a time

_Rows = npt.NDArray[np.float32]
_Map = npt.NDArray[np.float64]
_Mapper = Callable[[_Rows, Box, Callable[[_Rows], Outputs]], _Map]


@dataclass(frozen=True)
class Cost:
    """Medians, in milliseconds of CPU an image."""

    plain_ms: float
    batched_ms: float
    explained_ms: float
    rows: int  # of the network, for one explained image


@dataclass(frozen=True)
class Truth:
    """Share of the images whose class is lost without a quarter of the image.

    Attributes:
        warmest: By the map.
        coolest: By the map.
        turned: By the map upside down: the same shape in another place.
        in_order: Share of images that lose more without the warmest than without the coolest.
        images: How many.
    """

    warmest: float
    coolest: float
    turned: float
    in_order: float
    images: int


def cost(handler: ClassificationHandler, images: Sequence[bytes], rounds: int) -> Cost:
    """Ask the handler as TorchServe does, in turns."""
    context: Any = SimpleNamespace(
        get_request_id=str, metrics=None, model_name=handler.spec.name, request_ids={}
    )
    calls: dict[str, list[dict[str, Any]]] = {
        "plain": [{"data": bytearray(images[0])}],
        "batched": [{"data": bytearray(images[n % len(images)])} for n in range(_BATCH)],
        "explained": [{"data": bytearray(images[0]), "params": b'{"explain": true}'}],
    }
    took: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 + rounds):
        for name, call in calls.items():
            started = time.process_time()
            handler.handle(call, context)
            took[name].append(1e3 * (time.process_time() - started) / len(call))
    medians = {name: round(statistics.median(times[1:]), 3) for name, times in took.items()}
    return Cost(medians["plain"], medians["batched"], medians["explained"], ROWS)


def truth(handler: ClassificationHandler, images: Sequence[bytes], mapper: _Mapper) -> Truth:
    """Cover what maps of these images call warm and cool, and count what that costs."""
    lost, ordered = [], []
    for content in images:
        image: Image = handler.decode(content)
        row, box = handler.to_network(image), handler.place(image)
        values = mapper(row, box, handler.infer)
        rows = np.stack([row, *(_without(row, box, each) for each in _variants(values))])
        logits = handler.infer(rows)["logits"]
        odds = log_odds(logits, int(logits[0].argmax()))
        lost.append(logits[1:].argmax(axis=1) != logits[0].argmax())
        ordered.append(odds[1] < odds[2])
    warmest, coolest, turned = np.mean(lost, axis=0).round(3).tolist()
    return Truth(warmest, coolest, turned, round(float(np.mean(ordered)), 3), len(images))


def squares(row: _Rows, box: Box, run: Callable[[_Rows], Outputs]) -> _Map:
    """Mean fall of the log-odds over all squares that cover a pixel, one covered at a time."""
    side = -(-max(box.height, box.width) // _SIDE)
    places = [(top, left) for top in _starts(box.height, side) for left in _starts(box.width, side)]
    masks = np.ones((len(places), box.height, box.width))
    for mask, (top, left) in zip(masks, places, strict=True):
        mask[top : top + side, left : left + side] = 0
    logits = run(np.stack([row, *(_faded(row, box, mask) for mask in masks)]))["logits"]
    odds = log_odds(logits, int(logits[0].argmax()))
    covered = 1 - masks
    falls = (odds[0] - odds[1:])[:, None, None] * covered
    return np.asarray(falls.sum(axis=0) / covered.sum(axis=0))


def halves(row: _Rows, box: Box, run: Callable[[_Rows], Outputs]) -> _Map:
    """What the handler answers with."""
    return occlude(row, box, run).evidence


def _variants(values: _Map) -> Iterator[_Map]:
    yield values
    yield -values
    yield values[::-1, ::-1]


def _without(row: _Rows, box: Box, values: _Map) -> _Rows:
    """The row without the quarter of its image that has the highest values."""
    mask = np.ones(values.size)
    mask[np.argsort(-values, axis=None, kind="stable")[: -(-values.size // _QUARTER)]] = 0
    return _faded(row, box, mask.reshape(values.shape))


def _faded(row: _Rows, box: Box, mask: _Map) -> _Rows:
    faded = row.copy()
    part = np.s_[:, box.top : box.top + box.height, box.left : box.left + box.width]
    means = row[part].mean(axis=(1, 2), keepdims=True)
    faded[part] = means + mask.astype(np.float32) * (row[part] - means)
    return faded


def _starts(length: int, side: int) -> list[int]:
    return sorted({round(each) for each in np.linspace(0, max(length - side, 0), _PLACES).tolist()})


def chosen(folder: Path, each: int) -> list[bytes]:
    """So many files of every folder, evenly spread over its sorted names."""
    files = []
    for place in sorted({path.parent for path in folder.rglob("*") if path.is_file()}):
        own = sorted(path for path in place.iterdir() if path.is_file())
        files += [own[round(at)] for at in np.linspace(0, len(own) - 1, min(each, len(own)))]
    if not files:
        raise SystemExit(f"expected images in {folder}, got none")
    return [path.read_bytes() for path in files]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables and write the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="mednist", help="the room")
    parser.add_argument("--archive", type=Path, help="a .mar; built from the room if none is given")
    parser.add_argument("--images", type=Path, help="the room's examples if none are given")
    parser.add_argument("--each", type=int, default=20, help="images from every folder")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("outputs/explanations.json"))
    options = parser.parse_args(arguments)
    root = Path(__file__).parent.parent
    images = chosen(options.images or root / "models" / options.model / "examples", options.each)
    with tempfile.TemporaryDirectory(prefix="medserve-bench-") as scratch:
        archive = build_or_take(options.archive, options.model, Path(scratch))
        handler = load_handler(unpack(archive, Path(scratch) / "unpacked"))
        costs = cost(handler, images, options.rounds)
        truths = {
            "halves": truth(handler, images, halves),
            "squares": truth(handler, images, squares),
        }
    result = {
        "machine": describe_machine(),
        "model": f"{handler.spec.name} {handler.spec.version}",
        "images": "given" if options.images else "examples",
        "cost": asdict(costs),
        "truth": {name: asdict(each) for name, each in truths.items()},
    }
    _show(Console(width=100), costs, truths)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _show(console: Console, costs: Cost, truths: dict[str, Truth]) -> None:
    console.print(
        f"CPU an image: {costs.plain_ms:.2f} ms alone, {costs.batched_ms:.2f} ms in a batch of "
        f"{_BATCH}, {costs.explained_ms:.1f} ms explained ({costs.rows} rows)",
        highlight=False,
    )
    shape = Table("class lost without", "warmest", "coolest", "turned", "in order", "n", box=None)
    for name, each in truths.items():
        shares = (each.warmest, each.coolest, each.turned, each.in_order)
        shape.add_row(name, *(f"{share:.1%}" for share in shares), str(each.images))
    console.print(shape)


if __name__ == "__main__":
    main()
