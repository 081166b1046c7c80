"""How soon drift raises an alarm, and how often nothing does: from answers of `medserve batch`.

    python -m benchmarks.drift alter --images LIST.csv --kind blurred --to DIR [--count 300]
    python -m benchmarks.drift measure --reference models/mednist/weights/reference.json \
        --held-out OUT [--drifted OUT]... [--streams 20] [--length 10000] [--out outputs/drift.json]

`--held-out` has answers to inputs of the kind of the reference, and none of it: streams are drawn
from them with replacement. Of each `--drifted` the first 200 are looked at, in several orders, by a
test that has seen 1,000 held-out inputs before. `alter` writes images as another device would give
them: blurred (a Gaussian of 1 pixel) or stained (hues turned by 25 degrees, 15 % more saturated).
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image, ImageFilter
from rich.console import Console
from rich.table import Table

from medserve.archive.reference import Observed, Reference
from medserve.batch.receipts import BatchFolder
from medserve.gateway.core.watching import ALARM, DriftTest

__all__ = ["ALTERED", "alarms_in", "altered", "first_alarm"]

_BEFORE = 1000
_WITHIN = 200
_ORDERS = 25


def _blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(1.0))


def _stained(image: Image.Image) -> Image.Image:
    hue, saturation, value = (np.asarray(band, np.int64) for band in image.convert("HSV").split())
    turned = ((hue + 18) % 256, np.clip(saturation * 1.15, 0, 255), value)  # 256 is a whole turn
    bands = [Image.fromarray(band.astype(np.uint8)) for band in turned]
    return Image.merge("HSV", bands).convert("RGB")


ALTERED = {"blurred": _blurred, "stained": _stained}


def altered(content: bytes, kind: str) -> bytes:
    """Return an image file as PNG, altered in one of the ways of `ALTERED`."""
    target = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        ALTERED[kind](image).save(target, "PNG")
    return target.getvalue()


def alarms_in(test: DriftTest, stream: Iterable[Observed]) -> int:
    """Return how often an alarm begins."""
    count, on = 0, False
    for each in stream:
        test.observe(each)
        before, on = on, test.evidence >= ALARM
        count += on and not before
    return count


def first_alarm(test: DriftTest, stream: Iterable[Observed]) -> int | None:
    """Return after how many inputs the alarm begins; None where it does not."""
    for number, each in enumerate(stream, start=1):
        test.observe(each)
        if test.evidence >= ALARM:
            return number
    return None


def _answers(batch: Path) -> list[Observed]:
    receipts = BatchFolder(batch).receipts()
    return [msgspec.convert(each.answer, Observed) for each in receipts if each.status == "ok"]


def _delays(
    reference: Reference, held_out: Sequence[Observed], drifted: Sequence[Observed]
) -> list[int | None]:
    found = []
    for seed in range(_ORDERS):
        rng, test = random.Random(seed), DriftTest(reference)
        alarms_in(test, rng.choices(held_out, k=_BEFORE))
        found.append(first_alarm(test, rng.sample(drifted, min(_WITHIN, len(drifted)))))
    return found


def _alter(options: argparse.Namespace) -> None:
    with options.images.open(encoding="utf-8", newline="") as file:
        paths = [options.images.parent / row["path"] for row in csv.DictReader(file)]
    options.to.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(random.Random(0).sample(paths, min(options.count, len(paths)))):
        content = altered(path.read_bytes(), options.kind)
        (options.to / f"{number:04d}.png").write_bytes(content)


def _measure(options: argparse.Namespace) -> None:
    reference = Reference.decode(options.reference.read_bytes(), str(options.reference))
    held_out = _answers(options.held_out)
    false_alarms = [
        alarms_in(DriftTest(reference), random.Random(seed).choices(held_out, k=options.length))
        for seed in range(options.streams)
    ]
    by_class = alarms_in(DriftTest(reference), sorted(held_out, key=lambda each: each.label))
    delays = {path.name: _delays(reference, held_out, _answers(path)) for path in options.drifted}
    table = Table("inputs", "alarms")
    total = options.streams * options.length
    table.add_row(f"{total} held-out ones in {options.streams} streams", str(sum(false_alarms)))
    table.add_row(f"{len(held_out)} held-out ones, class after class", str(by_class))
    for name, found in delays.items():
        known = sorted(each for each in found if each is not None)
        after = f", after {known[0]} to {known[-1]} inputs" if known else ""
        table.add_row(f"{name}, the first {_WITHIN}", f"{len(known)} of {len(found)}{after}")
    Console().print(table)
    content = {
        "format": 1,
        "inputs_in_reference": reference.inputs,
        "held_out": {"inputs": total, "alarms": sum(false_alarms), "by_class": by_class},
        "first_alarm_after": delays,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write altered images; or measure, print a table and write a JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    alter = commands.add_parser("alter")
    alter.add_argument("--images", type=Path, required=True, help="CSV file with a column path")
    alter.add_argument("--kind", choices=ALTERED, required=True)
    alter.add_argument("--to", type=Path, required=True)
    alter.add_argument("--count", type=int, default=300)
    alter.set_defaults(run=_alter)
    measure = commands.add_parser("measure")
    measure.add_argument("--reference", type=Path, required=True)
    measure.add_argument("--held-out", type=Path, required=True)
    measure.add_argument("--drifted", type=Path, action="append", default=[])
    measure.add_argument("--streams", type=int, default=20)
    measure.add_argument("--length", type=int, default=10_000)
    measure.add_argument("--out", type=Path, default=Path("outputs/drift.json"))
    measure.set_defaults(run=_measure)
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
